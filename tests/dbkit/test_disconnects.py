"""Requests whose client has left, on a real server with real sockets."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from dbkit import Database, Databases, install, session_from
from dbkit.context import shield
from dbkit.web import disconnects
from dbkit.web.middleware import RequestMiddleware
from dbkit.web.workers import Workers
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Message, Receive, Scope, Send
from waiting import until


@pytest.fixture(autouse=True)
def notice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnects, "NOTICE_AFTER", 0.001)


class Service:
    """An application on one connection, served on a port; and what its routes saw."""

    def __init__(self, database: Database, app: FastAPI) -> None:
        self.database = database
        self.server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5)
        )
        self.cancelled: list[str] = []
        self.begun: list[str] = []
        self.bodies: list[bytes] = []

    async def request(
        self, path: str, *, method: str = "GET", length: int | None = None
    ) -> asyncio.StreamWriter:
        """Send a request, and return the connection: closing it is leaving."""
        _, writer = await self.send(path, method=method, length=length)
        return writer

    async def send(
        self, path: str, *, method: str = "GET", body: str = "", length: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request, and return both ends of its connection."""
        port = self.server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
        head += f"content-length: {length}\r\n\r\n" if length is not None else "\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        return reader, writer

    async def begin(self, what: str) -> None:
        """Note what was begun after a response."""
        self.begun.append(what)

    async def count(self) -> int:
        """Count the rows that requests have left."""
        async with self.database.session() as session:
            return int(await session.scalar(text("select count(*) from visits")) or 0)


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read a whole response."""
    async with asyncio.timeout(30):
        return await reader.read()


@asynccontextmanager
async def serving(database: Database) -> AsyncGenerator[Service]:
    """Serve the routes below."""
    databases = Databases(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with databases.open():
            async with database.session() as session:
                await session.execute(text("create table visits (id serial)"))
            yield

    app = FastAPI(lifespan=lifespan)
    service = Service(database, app)
    install(app, databases)
    of_this_request: AsyncSession = session_from(database)

    @app.post("/visit")
    async def visit(tasks: BackgroundTasks, session: AsyncSession = of_this_request) -> None:
        await session.execute(text("insert into visits default values"))
        tasks.add_task(service.begin, "mail")

    @app.get("/read")
    async def read(session: AsyncSession = of_this_request) -> None:
        try:
            await session.execute(text("select pg_sleep(60)"))
        except asyncio.CancelledError:
            service.cancelled.append("read")
            raise

    @app.post("/late")
    async def late(request: Request) -> None:
        service.begun.append("late")
        await asyncio.sleep(0.05)  # Many times as long as it takes to be watched.
        service.bodies.append(await request.body())

    @app.get("/events")
    async def events(count: int) -> StreamingResponse:
        async def chunks() -> AsyncGenerator[bytes]:
            try:
                for _ in range(count):
                    yield b"event"
                    await asyncio.sleep(0.01)
            finally:
                service.begun.append("end")

        await asyncio.sleep(0.05)  # Many times as long as it takes to be watched.
        return StreamingResponse(chunks())

    assert all((visit, read, late, events))
    task = asyncio.create_task(service.server.serve())
    await until(lambda: service.server.started)
    try:
        yield service
    finally:
        service.server.should_exit = True
        await task


@pytest.fixture
async def service(database_url: URL) -> AsyncGenerator[Service]:
    url = database_url.render_as_string(hide_password=False)
    database = Database(
        "primary", "postgresql", url=url, pool_size=1, pool_timeout=60, queue_target=0
    )
    async with serving(database) as service:
        yield service


async def test_who_left_the_queue_costs_no_statement(service: Service) -> None:
    pool = service.database.pool
    async with service.database.session() as session:
        await session.execute(text("select 1"))  # Now the pool has no other connection.
        clients = [
            await service.request("/visit", method="POST", length=length)
            for length in (None, 0)
            for _ in range(10)
        ]
        await until(lambda: pool.snapshot().waiting == len(clients))

        for client in clients:
            client.close()

        await until(lambda: pool.snapshot().waiting == 0)
    assert await service.count() == 0


async def test_who_left_a_read_frees_its_connection(service: Service) -> None:
    client = await service.request("/read")
    await until(lambda: service.database.pool.snapshot().in_use == 1)

    client.close()

    await until(lambda: service.database.pool.snapshot().in_use == 0)
    assert service.cancelled == ["read"]


async def test_who_left_in_a_commit_leaves_a_row_and_a_task(
    service: Service, database_url: URL
) -> None:
    async with service.database.engine.begin() as connection:
        await connection.execute(
            text("""
            create function wait() returns trigger language plpgsql as
            'begin perform pg_advisory_xact_lock(1); return null; end'
        """)
        )
        await connection.execute(
            text("""
            create constraint trigger waits after insert on visits
            deferrable initially deferred for each row execute function wait()
        """)
        )
    url = database_url.render_as_string(hide_password=False)
    async with Database("other", "postgresql", url=url).open() as other, other.session() as holder:
        await holder.execute(text("select pg_advisory_xact_lock(1)"))
        client = await service.request("/visit", method="POST")

        async def commit_waits() -> bool:
            async with other.engine.connect() as connection:
                query = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
                return bool(await connection.scalar(text(query)))

        await until(commit_waits)
        client.close()

        await until(lambda: not service.server.server_state.connections)
        for _ in range(10):  # The watcher learns of it in the next turns of the loop.
            await asyncio.sleep(0)
        assert not [task for task in asyncio.all_tasks() if task.cancelling()]
    await until(lambda: service.begun == ["mail"])
    assert await service.count() == 1


async def test_a_body_that_is_read_late_is_whole(service: Service) -> None:
    reader, writer = await service.send("/late", method="POST", body="first", length=9)
    await until(lambda: bool(service.begun))
    writer.write(b"last")

    assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    assert service.bodies == [b"firstlast"]
    writer.close()


async def test_a_request_without_a_body_can_still_ask_for_it(service: Service) -> None:
    reader, writer = await service.send("/late", method="POST")

    assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    assert service.bodies == [b""]
    writer.close()


async def test_a_response_that_has_begun_is_sent_whole(service: Service) -> None:
    reader, writer = await service.send("/events?count=10")

    assert (await answer(reader)).count(b"event") == 10
    writer.close()


async def test_a_stream_that_began_late_ends_when_its_client_leaves(service: Service) -> None:
    reader, writer = await service.send("/events?count=1000000")
    async with asyncio.timeout(30):
        await reader.readuntil(b"event")

    writer.close()

    await until(lambda: service.begun == ["end"])


async def test_no_commit_begins_once_the_client_has_left() -> None:
    async def left() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None: ...

    is_waiting = asyncio.Event()

    async def commit() -> None:
        await is_waiting.wait()
        shield()

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        # A task of its own, as behind `@app.middleware("http")`, learns of it later.
        inner = asyncio.create_task(commit())
        try:
            await asyncio.Event().wait()
        finally:
            is_waiting.set()
            with pytest.raises(asyncio.CancelledError):
                await inner

    scope: Scope = {"type": "http", "headers": [], "method": "GET", "path": "/", "app": FastAPI()}
    served = RequestMiddleware(app, Workers())(scope, left, send)
    request = asyncio.create_task(served)
    await request
