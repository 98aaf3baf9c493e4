"""Connections that nobody can return are taken back; those that somebody can are not."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from dbkit import Database, Databases, install
from dbkit.telemetry import leaks as detectors
from dbkit.telemetry.leaks import Detectors
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from marked import line_marked
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from starlette.types import Message, Scope
from waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning"),
    pytest.mark.parametrize(
        "declared", ["postgresql", "pgbouncer", "mariadb", "mysql", "sqlite"], indirect=True
    ),
]
line_of = partial(line_marked, __file__)

ONE = text("select 1")
TEN = " union all ".join(f"select '{'x' * 100}{n}' as x" for n in range(10))
MANY = f"with ten as ({TEN}) select a.x from ten a, ten b, ten c, ten d, ten e"  # noqa: S608 -- ours


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "LOOK", 0.05)
    monkeypatch.setattr(detectors, "ENDED", 0.05)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Have only the kit send for the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def connects(database: Database) -> None:
    connection = await database.engine.connect()  # takes
    await connection.execute(ONE)


async def opens_a_session(database: Database) -> None:
    session = AsyncSession(database.engine)
    await session.execute(ONE)


async def fails(database: Database) -> None:
    session = AsyncSession(database.engine)
    await session.execute(ONE)
    raise LookupError(session)


async def leaves_a_generator(database: Database) -> None:
    async def rows() -> AsyncGenerator[int]:
        with suppress(DBAPIError):  # Its connection is closed before it, or after.
            async with database.session() as session:
                yield await session.scalar(ONE) or 0

    cycle: list[Any] = [rows()]
    cycle.append(cycle)  # As what a framework refers to; else Python closes it at once.
    await anext(cycle[0])


async def gathers(database: Database) -> None:
    """Two tasks on one session, whose checkout has to wait."""
    session = AsyncSession(database.engine)
    async with database.engine.connect(), database.engine.connect():
        tasks = [asyncio.create_task(session.scalar(ONE)) for _ in range(2)]
        await until(lambda: database.pool.waiting() > 0)
    await asyncio.gather(*tasks, return_exceptions=True)


WAYS = [connects, opens_a_session, fails, leaves_a_generator, gathers]


@pytest.fixture
async def small(request: pytest.FixtureRequest, database: Database) -> Database:
    database.pool.resize(2, 0)
    return database


@pytest.mark.parametrize("lose", WAYS)
async def test_what_a_task_left_behind_is_taken_back(
    small: Database, lose: Callable[[Database], Awaitable[None]]
) -> None:
    for _ in range(3):
        await asyncio.gather(lose(small), return_exceptions=True)
        await until(lambda: small.pool.snapshot().in_use == 0)
    async with small.session() as session:
        assert await session.scalar(ONE) == 1


async def test_what_was_taken_back_is_counted_and_named(
    small: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.create_task(connects(small), name="nightly")
    await until(lambda: small.pool.snapshot().reclaimed == 1)

    (said,) = (each.getMessage() for each in caplog.records if "taken back" in each.message)
    assert said.startswith(
        "shop: a connection was never returned, and was taken back: task nightly"
    )
    assert f"it was taken at {line_of('takes')} in connects" in said
    assert small.pool.snapshot().in_use == 0


async def look(database: Database) -> None:
    """Have detectors look as often, and as late, as they will in a day."""
    ours = Detectors(lambda: database.pool, "DATABASE_")
    now = asyncio.get_running_loop().time()
    for hours in range(24):
        ours.look(now + 3600 * hours)
        await asyncio.sleep(0)
        ours.say_what_was_found()


async def test_what_somebody_refers_to_is_left_to_them(database: Database) -> None:
    kept: list[AsyncConnection] = []

    async def set_up() -> None:
        kept.append(await database.engine.connect())
        await kept[0].execute(ONE)

    await asyncio.create_task(set_up())
    await look(database)

    assert await kept[0].scalar(ONE) == 1
    await kept[0].close()
    assert database.pool.snapshot().reclaimed == 0


async def test_a_context_may_be_left_in_another_task_than_it_was_entered_in(
    database: Database,
) -> None:
    context = database.session()
    session = await asyncio.create_task(context.__aenter__())
    await asyncio.create_task(session.execute(ONE))
    await look(database)

    assert await session.scalar(ONE) == 1
    await asyncio.create_task(context.__aexit__(None, None, None))
    assert database.pool.snapshot().in_use == 0
    assert (database.pool.snapshot().reclaimed, database.pool.snapshot().lost) == (0, 0)


async def test_a_generator_that_goes_on_in_other_tasks_keeps_its_connection(
    database: Database,
) -> None:
    async def rows() -> AsyncGenerator[int]:
        async with database.session() as session:
            while True:
                yield await session.scalar(ONE) or 0

    steps = rows()
    for _ in range(2):
        assert await asyncio.create_task(steps.__anext__()) == 1
        await look(database)
    await steps.aclose()
    assert (database.pool.snapshot().reclaimed, database.pool.snapshot().lost) == (0, 0)


async def until_threads_end(database: Database) -> None:
    """Wait for the threads of SQLite's lost connections, which answer to this test's event loop."""

    def workers() -> int:
        return sum("_connection_worker" in each.name for each in threading.enumerate())

    await until(lambda: workers() <= database.pool.checkedin() + 1)  # With the probe's.


@pytest.mark.parametrize("middleware", [False, True])
async def test_streams_whose_clients_left_are_ended(
    database: Database, *, middleware: bool
) -> None:
    app = FastAPI()
    install(app, Databases(database))

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def rows() -> AsyncGenerator[str]:
            query = text(MANY)
            async with database.reader.stream(query) as result:
                async for row in result:
                    yield row[0]

        return StreamingResponse(rows())

    async def pass_on(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await call_next(request)

    if middleware:
        app.middleware("http")(pass_on)

    async def request() -> None:
        scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        scope |= {"http_version": "1.1", "scheme": "http", "query_string": b"", "root_path": ""}
        scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}}
        left = asyncio.Event()

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                left.set()
                await asyncio.sleep(0)

        await app(scope, receive, send)

    await asyncio.gather(*(request() for _ in range(4)), return_exceptions=True)
    await until(lambda: database.pool.snapshot().in_use == 0)
    await until_threads_end(database)
