"""What belongs to a request, and what only began in it: on real servers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from dbkit import Database, Databases, context, install
from dbkit.pool.usage import NO_ROUTE
from dbkit.web import disconnects
from fastapi import BackgroundTasks, FastAPI, Request, Response
from sqlalchemy import text
from starlette.types import Message, Scope
from waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "declared", ["postgresql", "pgbouncer", "mariadb", "mysql", "sqlite"], indirect=True
    ),
]

INSERT = text("insert into visits values ('x')")


@dataclass
class Service:
    """An application, what its routes wait for, and what they left behind."""

    database: Database
    app: FastAPI = field(default_factory=FastAPI)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[str] = field(default_factory=list[str])
    tasks: list[asyncio.Task[Any]] = field(default_factory=list[asyncio.Task[Any]])
    statuses: list[int] = field(default_factory=list[int])

    def request(self, path: str) -> asyncio.Task[None]:
        """Send a request, as a server does; its client leaves when `left` is set."""
        scope: Scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        scope |= {"http_version": "1.1", "scheme": "http", "query_string": b"", "root_path": ""}

        async def receive() -> Message:
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])

        async def serve() -> None:
            async with asyncio.timeout(30):  # For one that is not cancelled, as it should be.
                await self.app(scope, receive, send)

        return asyncio.create_task(serve())

    async def count(self) -> int:
        """Count the rows that were committed."""
        return int(await self.database.reader.scalar(text("select count(*) from visits")) or 0)


@pytest.fixture(autouse=True)
def notice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnects, "NOTICE_AFTER", 0.001)


@pytest.fixture
async def service(declared: Database) -> AsyncGenerator[Service]:
    service = Service(declared)
    install(service.app, Databases(declared))
    async with declared.open():
        await declared.execute(text("create table visits (note char(1))"))
        yield service
        for task in service.tasks:
            task.cancel()


async def in_session(database: Database) -> None:
    async with database.session() as session:
        await session.execute(INSERT)


async def in_one_statement(database: Database) -> None:
    await database.execute(INSERT)


async def in_transaction(database: Database) -> None:
    await database.run_transaction(lambda session: session.execute(INSERT))


WAYS = [in_session, in_one_statement, in_transaction]


@pytest.mark.parametrize("way", WAYS)
async def test_a_task_that_a_left_request_began_still_writes(
    service: Service, way: Callable[[Database], Awaitable[None]]
) -> None:
    async def audit() -> None:
        await service.go_on.wait()
        await way(service.database)

    @service.app.get("/")
    async def route() -> None:
        service.tasks.append(asyncio.create_task(audit()))
        await asyncio.Event().wait()

    request = service.request("/")
    await until(lambda: bool(service.tasks))
    service.left.set()
    await request
    service.go_on.set()
    await service.tasks[0]

    assert service.statuses == []  # The request itself was cancelled.
    assert await service.count() == 1
    assert "GET /" not in service.database.pool.usage.routes


@pytest.mark.parametrize("way", WAYS)
async def test_a_commit_of_a_task_that_nobody_awaits_leaves_its_request_watched(
    service: Service, way: Callable[[Database], Awaitable[None]]
) -> None:
    @service.app.get("/")
    async def route() -> None:
        service.tasks.append(asyncio.ensure_future(way(service.database)))
        await asyncio.Event().wait()

    request = service.request("/")
    await until(lambda: bool(service.tasks) and service.tasks[0].done())
    service.left.set()
    await request

    assert service.statuses == []
    assert await service.count() == 1
    assert "GET /" not in service.database.pool.usage.routes


async def test_what_a_request_shields_is_not_cancelled_with_it(service: Service) -> None:
    async def save() -> None:
        await service.go_on.wait()
        await in_session(service.database)

    @service.app.get("/")
    async def route() -> None:
        service.tasks.append(asyncio.create_task(save()))
        try:
            await asyncio.shield(service.tasks[0])
        finally:
            service.go_on.set()
            await asyncio.shield(asyncio.sleep(0.05))  # It commits while the request still ends.

    request = service.request("/")
    await until(lambda: bool(service.tasks))
    service.left.set()
    await request
    await service.tasks[0]

    assert await service.count() == 1


async def test_what_a_request_shields_does_not_keep_it_from_being_cancelled(
    service: Service,
) -> None:
    @service.app.get("/")
    async def route() -> None:
        await asyncio.shield(in_session(service.database))
        service.begun.append("committed")
        await asyncio.Event().wait()

    request = service.request("/")
    await until(lambda: service.begun == ["committed"])
    service.left.set()
    await request

    assert service.statuses == []
    assert await service.count() == 1
    assert "GET /" not in service.database.pool.usage.routes


async def gather(work: Awaitable[None]) -> None:
    await asyncio.gather(work)


async def task_group(work: Awaitable[None]) -> None:
    async def run() -> None:
        await work

    async with asyncio.TaskGroup() as group:
        group.create_task(run())


async def anyio_group(work: Awaitable[None]) -> None:
    async def run() -> None:
        await work

    async with anyio.create_task_group() as group:
        group.start_soon(run)


async def timeout(work: Awaitable[None]) -> None:
    async with asyncio.timeout(60):
        await work


async def wait_for(work: Awaitable[None]) -> None:
    await asyncio.wait_for(work, 60)


async def awaited(work: Awaitable[None]) -> None:
    await asyncio.ensure_future(work)


async def wait(work: Awaitable[None]) -> None:
    done, _ = await asyncio.wait([asyncio.ensure_future(work)])
    await done.pop()


async def thread(work: Awaitable[None]) -> None:
    async def run() -> None:
        await work

    await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(run))


@pytest.mark.parametrize(
    "way", [gather, task_group, anyio_group, timeout, wait_for, awaited, wait, thread]
)
async def test_a_request_that_committed_in_a_task_it_waits_for_is_finished(
    service: Service, way: Callable[[Awaitable[None]], Awaitable[None]]
) -> None:
    @service.app.get("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(service.begun.append, "mail")
        await way(in_session(service.database))
        service.begun.append("committed")
        await service.go_on.wait()

    request = service.request("/")
    await until(lambda: service.begun == ["committed"])
    service.left.set()
    for _ in range(10):  # The watcher learns of it in the next turns of the loop.
        await asyncio.sleep(0)
    service.go_on.set()
    await request

    assert service.statuses == [200]
    assert service.begun == ["committed", "mail"]
    assert service.database.pool.usage.routes["GET /"].checkouts == 1


async def gathered_and_shielded(work: Awaitable[None]) -> None:
    await asyncio.shield(asyncio.gather(work))


# Not `thread`: which task waits for a thread is not known.
@pytest.mark.parametrize(
    "way",
    [gather, task_group, anyio_group, timeout, wait_for, awaited, wait, gathered_and_shielded],
)
async def test_what_a_worker_of_a_living_request_waits_for_is_not_the_requests(
    service: Service, way: Callable[[Awaitable[None]], Awaitable[None]]
) -> None:
    async def save() -> None:
        await service.go_on.wait()
        await in_session(service.database)

    async def work() -> None:
        await way(save())

    @service.app.get("/")
    async def route() -> None:
        service.tasks.append(asyncio.create_task(work()))
        try:
            await asyncio.Event().wait()
        finally:  # Its client has left, and it still ends.
            service.go_on.set()
            await until(service.tasks[0].done)

    request = service.request("/")
    await until(lambda: bool(service.tasks))
    await asyncio.sleep(0)
    service.left.set()
    await request
    await service.tasks[0]

    assert await service.count() == 1
    assert "GET /" not in service.database.pool.usage.routes


@pytest.mark.parametrize("commits", [False, True])
async def test_behind_a_middleware_of_its_own_a_request_is_one(
    service: Service, *, commits: bool
) -> None:
    @service.app.middleware("http")
    async def pass_on(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await call_next(request)

    @service.app.get("/")
    async def route() -> None:
        if commits:
            await in_session(service.database)
        service.begun.append("route")
        await service.go_on.wait()

    request = service.request("/")
    await until(lambda: service.begun == ["route"])
    service.left.set()
    if commits:
        for _ in range(10):
            await asyncio.sleep(0)
        service.go_on.set()
    await request

    assert service.statuses == ([200] if commits else [])


@pytest.mark.parametrize("middleware", [False, True])
async def test_background_tasks_of_a_request_that_was_answered_go_on_without_its_client(
    service: Service, *, middleware: bool
) -> None:
    async def pass_on(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await call_next(request)

    if middleware:
        service.app.middleware("http")(pass_on)

    async def mail() -> None:
        await service.go_on.wait()
        service.begun.append("mail")

    @service.app.get("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(mail)

    request = service.request("/")
    await until(lambda: service.statuses == [200])
    service.left.set()
    await asyncio.sleep(0.05)  # Many times as long as it takes to be watched.
    service.go_on.set()
    await request

    assert service.begun == ["mail"]


async def test_a_worker_is_no_request_once_the_request_that_began_it_has_ended(
    service: Service,
) -> None:
    ids: list[str] = []

    async def work() -> None:
        await service.go_on.wait()
        async with service.database.session() as session:
            await session.execute(INSERT)
            (holder,) = service.database.pool.holders()
            assert (holder.route, holder.request_id, holder.task) == (None, None, "worker")
        ids.append(context.request_id())

    @service.app.get("/")
    async def route() -> None:
        service.tasks.append(asyncio.create_task(work(), name="worker"))
        ids.append(context.request_id())

    await service.request("/")
    service.go_on.set()
    await service.tasks[0]

    assert len(ids[0]) == 16
    assert ids[1] == ""
    assert service.database.pool.usage.routes.keys() == {NO_ROUTE}
