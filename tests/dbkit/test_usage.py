"""Who holds the connections of a pool, and which routes use them: on a real PostgreSQL."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from dbkit import Database, Databases, DatabaseSettings, install, session_from
from dbkit.callsites import waiting_lines
from dbkit.pool import FairPool, usage
from fastapi import APIRouter, Depends, FastAPI
from marked import line_marked
from sqlalchemy import URL, Connection, event, exc, text
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import until

pytestmark = pytest.mark.anyio
line_of = partial(line_marked, __file__)


@dataclass
class Service:
    """An application on one database, a client of it, and what its routes wait for."""

    database: Database
    app: FastAPI
    client: httpx.AsyncClient
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    kept: list[Any] = field(default_factory=list[Any])

    @property
    def pool(self) -> FairPool:
        """The live pool."""
        return self.database.pool

    @asynccontextmanager
    async def holding(self, path: str, **headers: str) -> AsyncGenerator[usage.Holder]:
        """Send a request that holds a connection until exit; describe its holder."""
        sent = asyncio.create_task(self.client.get(path, headers=headers))

        def waits() -> bool:
            found = self.pool.holders()
            return bool(found) and found[0].statements == 1 and found[0].use.sql_since is None

        await until(waits)
        try:
            yield self.pool.holders()[0]
        finally:
            self.hold.set()
            await sent


@asynccontextmanager
async def serving(url: URL, **changed: Any) -> AsyncGenerator[Service]:
    """Serve the routes below on a pool of four."""
    database = Database("primary", "postgresql")
    app = FastAPI()
    install(app, Databases(database))
    router = APIRouter(prefix="/items")
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://test")
    service = Service(database, app, client)
    of_this_request: AsyncSession = session_from(database)

    @router.get("/{item_id}")
    async def wait(item_id: int, session: AsyncSession = of_this_request) -> int:
        await session.scalar(text("select 1"))
        await service.hold.wait()  # holds
        return item_id

    async def slow_dependency(session: AsyncSession = of_this_request) -> AsyncGenerator[None]:
        await session.scalar(text("select 1"))
        await service.hold.wait()  # holds in a dependency
        yield

    @app.get("/dependency", dependencies=[Depends(slow_dependency, scope="function")])
    async def dependent() -> None: ...

    @app.get("/sync")
    async def sync(session: AsyncSession = of_this_request) -> None:
        def look(connection: Connection) -> None:
            connection.execute(text("select pg_sleep(60)"))  # holds in SQL

        await (await session.connection()).run_sync(look)

    @app.get("/forget")
    async def forget() -> None:
        service.kept.append(await database.engine.connect())  # takes

    @app.get("/nested")
    async def nested(session: AsyncSession = of_this_request) -> None:
        await session.scalar(text("select 1"))
        async with database.session() as another:
            await another.scalar(text("select 1"))  # nested

    @app.get("/sleep")
    async def sleep(session: AsyncSession = of_this_request) -> None:
        await session.execute(text("select pg_sleep(0.05)"))

    app.include_router(router, prefix="/api")
    settings = DatabaseSettings(url=url, pool_size=4, queue_target=0, **changed)
    async with client, database.open(settings):
        yield service
        for each in service.kept:
            await each.close()


@pytest.fixture
async def service(database_url: URL) -> AsyncGenerator[Service]:
    async with serving(database_url) as service:
        yield service


async def test_a_holder_is_named_by_route_request_and_line(service: Service) -> None:
    async with service.holding("/api/items/7", **{"X-Request-ID": "abc"}) as holder:
        pass
    assert (holder.database, holder.route) == ("primary", "GET /api/items/{item_id}")
    assert (holder.request_id, holder.statements) == ("abc", 1)
    assert holder.where == (f"{line_of('holds')} in wait",)
    assert 0 < holder.in_sql < holder.held
    assert not holder.ended
    assert service.pool.holders() == []


async def test_a_trace_is_a_request_id_too(service: Service) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with service.holding("/api/items/7", traceparent=f"00-{trace}-b7ad6b7169203331-01") as (
        holder
    ):
        assert holder.request_id == trace


@pytest.mark.parametrize("header", ["x", "-", ""])
async def test_a_malformed_trace_is_none(service: Service, header: str) -> None:
    async with service.holding("/api/items/7", traceparent=header) as holder:
        assert len(holder.request_id or "") == 16  # The log's own.


async def test_a_dependency_that_waits_is_named_by_its_line(service: Service) -> None:
    async with service.holding("/dependency") as holder:
        assert holder.where == (f"{line_of('holds in a dependency')} in slow_dependency",)


async def test_code_that_runs_in_a_greenlet_is_named_by_its_line(service: Service) -> None:
    sent = asyncio.create_task(service.client.get("/sync"))
    await until(lambda: any(each.where for each in service.pool.holders()))
    (holder,) = service.pool.holders()
    assert holder.where[0] == f"{line_of('holds in SQL')} in look"
    assert holder.in_sql > 0  # Though the statement has not ended.
    sent.cancel()
    await asyncio.wait([sent])


async def test_a_holder_whose_task_has_ended_is_named_by_where_it_took_it(service: Service) -> None:
    await asyncio.create_task(service.client.get("/forget"))
    (holder,) = service.pool.holders()
    assert holder.ended
    assert holder.route == "GET /forget"
    assert holder.where == (f"{line_of('takes')} in forget",)
    assert "; its task has ended, it was taken at tests/" in str(holder)


async def test_a_holder_in_a_thread_is_named_by_where_it_took_it(service: Service) -> None:
    of_this_request: AsyncSession = session_from(service.database)
    go_on = threading.Event()

    async def look(session: AsyncSession = of_this_request) -> None:
        await session.scalar(text("select 1"))  # takes for a thread

    @service.app.get("/thread", dependencies=[Depends(look)])
    def work() -> None:
        go_on.wait(30)

    async with service.holding("/thread") as holder:
        go_on.set()
    assert f"in SQL, it was taken at {line_of('takes for a thread')} in look" in str(holder)


async def test_holders_outside_a_request_are_named_by_their_task(service: Service) -> None:
    async def work() -> None:
        async with service.database.session() as session:
            await session.scalar(text("select 1"))
            await service.hold.wait()

    task = asyncio.create_task(work(), name="nightly")
    await until(lambda: bool(service.pool.holders()))
    (holder,) = service.pool.holders()
    assert (holder.route, holder.task) == (None, "nightly")
    assert "task nightly for" in str(holder)
    service.hold.set()
    await task


async def test_holders_come_with_the_longest_first(service: Service) -> None:
    first, second = [await service.database.engine.connect() for _ in range(2)]
    longest, shortest = service.pool.holders()
    assert longest.held > shortest.held
    assert service.pool.holders(1)[0].use is longest.use
    await first.close()
    await second.close()


async def test_routes_are_counted_with_their_hold_and_sql_time(service: Service) -> None:
    for _ in range(3):
        await service.client.get("/sleep")
    used = service.pool.usage.routes["GET /sleep"]
    assert (used.checkouts, used.statements) == (3, 3)
    assert 0.15 <= used.in_sql <= used.held
    assert used.held / 3 <= used.longest <= used.held
    assert sum(service.pool.usage.buckets) == 3


async def test_a_statement_that_fails_is_timed_too(service: Service) -> None:
    with pytest.raises(exc.DBAPIError):
        async with service.database.session() as session:
            await session.execute(text("select 1 / (random() * 0)::int from pg_sleep(0.05)"))
    used = service.pool.usage.routes[usage.NO_ROUTE]
    assert used.statements == 1
    assert used.in_sql >= 0.05


async def test_statements_of_two_tasks_on_one_connection_are_timed(service: Service) -> None:
    async with service.database.engine.connect() as connection:
        answers = await asyncio.gather(
            connection.scalar(text("select 1 from pg_sleep(0.05)")),
            connection.scalar(text("select 2")),
        )
        assert answers == [1, 2]
    assert service.pool.usage.routes[usage.NO_ROUTE].statements == 2


async def test_the_number_of_routes_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_ROUTES", 1)
    await service.client.get("/sleep")
    for _ in range(2):
        async with service.database.session() as session:
            await session.scalar(text("select 1"))
    routes = service.pool.usage.routes
    assert {name: used.checkouts for name, used in routes.items()} == {
        "GET /sleep": 1,
        usage.OTHERS: 2,
    }


async def test_what_routes_have_used_survives_dispose(service: Service) -> None:
    await service.client.get("/sleep")
    before = service.pool
    await service.database.engine.dispose()
    assert service.pool is not before
    assert service.pool.usage is before.usage


async def test_a_nested_checkout_is_warned_of_once_for_each_route(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await service.client.get("/nested")
    (said,) = (each.message for each in caplog.records if "asks for another" in each.message)
    assert said.startswith("primary: GET /nested holds a connection and asks for another")
    assert line_of("nested") in said
    assert service.pool.usage.nested == 2


async def test_a_nested_checkout_is_warned_of_before_it_waits(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(database_url, pool_timeout=0.05) as service:
        service.pool.resize(1, 0)
        assert (await service.client.get("/nested")).status_code == 503
    assert "asks for another" in caplog.text


async def test_who_takes_one_connection_after_another_is_not_warned_of(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.database.engine.connect() as connection:
        await connection.invalidate()
    for _ in range(2):
        async with service.database.session() as session:
            await session.scalar(text("select 1"))
    assert "asks for another" not in caplog.text


async def test_time_in_sql_costs_no_engine_events(service: Service) -> None:
    """They would switch on every other event, at 8 us a statement."""
    engine = service.database.engine.sync_engine
    assert not engine._has_events  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    event.listen(engine, "before_cursor_execute", lambda *_: None)
    assert engine._has_events  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def test_a_task_that_has_ended_waits_nowhere() -> None:
    async def work() -> None: ...

    task = asyncio.create_task(work())
    await task
    assert waiting_lines(task) == ()


async def test_what_a_generator_waits_for_is_found() -> None:
    event = asyncio.Event()

    async def generate() -> AsyncGenerator[int]:
        await event.wait()  # waits in a generator
        yield 1

    async def consume(work: Callable[[], Awaitable[Any]]) -> None:
        await work()

    task = asyncio.create_task(consume(generate().__anext__))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting_lines(task)[0] == f"{line_of('waits in a generator')} in generate"
    event.set()
    await task
