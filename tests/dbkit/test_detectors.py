"""What is said of connections that are held for too long or for nothing, and of a blocked loop."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from dbkit import Database, Databases, DatabaseSettings, PoolTimeout, install, session_from
from dbkit.telemetry.event_loop import Watchdog
from dbkit.telemetry.leaks import IDLE_HOLD, QUIET, Detectors
from fastapi import FastAPI
from marked import line_marked
from pool_proxy import Proxy
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from waiting import until

pytestmark = pytest.mark.anyio
line_of = partial(line_marked, __file__)


@asynccontextmanager
async def opened(url: URL, **changed: Any) -> AsyncGenerator[Database]:
    """Open a database whose detectors look only when a test has them look."""
    database = Database("primary", "postgresql")
    settings = DatabaseSettings(url=url, pool_size=2, leak_after=0, **changed)
    async with database.open(settings):
        yield database


@pytest.fixture
async def database(database_url: URL) -> AsyncGenerator[Database]:
    async with opened(database_url) as database:
        yield database


def detectors_of(database: Database, leak_after: float = 10) -> Detectors:
    """Make detectors that the test calls, at the times that it likes."""
    database.change(leak_after=leak_after)
    return Detectors(lambda: database.pool, "DATABASE_")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said, and forget it."""
    said = [each.getMessage() for each in caplog.records]
    caplog.clear()
    return said


async def hold(database: Database, until_: asyncio.Event) -> None:
    """Hold a connection for nothing."""
    async with database.session() as session:
        await session.scalar(text("select 1"))
        await until_.wait()  # holds


@asynccontextmanager
async def holding(database: Database) -> AsyncGenerator[None]:
    """Have a task hold a connection for nothing until exit."""
    event = asyncio.Event()
    task = asyncio.create_task(hold(database, event), name="holder")
    await until(lambda: any(use.in_sql for use in database.pool.uses()))
    try:
        yield
    finally:
        event.set()
        await task


async def test_a_leak_is_named_once_and_once_when_it_comes_back(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    detectors, now = detectors_of(database), time.monotonic()
    async with holding(database):
        for seconds in (0, 5, 11, 12, 13):
            detectors.look(now + seconds)
        leaks = [each for each in messages(caplog) if "LEAK_AFTER" in each]
    assert len(leaks) == 1
    assert leaks[0].startswith("primary: a connection is held for longer than DATABASE_LEAK_AFTER")
    assert f"now at {line_of('holds')} in hold" in leaks[0]
    assert database.pool.usage.leaks == 1
    for seconds in (14, 15):
        detectors.look(now + seconds)
    (returned,) = messages(caplog)
    assert "returned its connection after" in returned


async def test_a_leak_is_followed_across_dispose(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    detectors, now = detectors_of(database), time.monotonic()
    async with holding(database):
        detectors.look(now + 11)
        await database.engine.dispose()
        messages(caplog)
        detectors.look(now + 12)
        assert messages(caplog) == []
    # The pool that was replaced notices returns in the loop's next turn.
    await asyncio.sleep(0)
    detectors.look(now + 13)
    assert "returned its connection" in messages(caplog)[0]


async def test_leaks_are_not_looked_for_without_the_setting(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with holding(database):
        detectors_of(database, leak_after=0).look(time.monotonic() + 1e6)
    assert not [each for each in messages(caplog) if "LEAK_AFTER" in each]


async def test_who_holds_a_connection_for_nothing_is_named_once_in_a_while(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    detectors, now = detectors_of(database, leak_after=0), time.monotonic()
    async with holding(database):
        detectors.look(now + IDLE_HOLD / 2)
        assert messages(caplog) == []
        for seconds in (2, 3, QUIET / 2, QUIET + 3):
            detectors.look(now + seconds)
        named = messages(caplog)
    assert len(named) == 2
    assert "held while the database has nothing to do: task holder for" in named[0]
    assert f"now at {line_of('holds')} in hold" in named[0]


async def test_a_slow_statement_is_not_taken_for_an_idle_hold(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(connection: AsyncConnection) -> None:
        await connection.execute(text("select pg_sleep(60)"))

    async with database.engine.connect() as connection:
        task = asyncio.create_task(ask(connection))
        await until(lambda: database.pool.uses()[0].sql_since is not None)
        detectors_of(database, leak_after=0).look(time.monotonic() + 30)
        task.cancel()
        await asyncio.wait([task])
    assert messages(caplog) == []


async def test_who_streams_rows_is_not_taken_for_an_idle_hold(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with database.session() as session:
        rows = await session.stream(text("select generate_series(1, 9)"))
        detectors_of(database, leak_after=0).look(time.monotonic() + 30)
        (holder,) = database.pool.holders()
        await rows.close()
        await session.scalar(text("select 1"))
        (after,) = database.pool.holders()
    assert messages(caplog) == []
    assert "in SQL, streaming rows, it was taken at" in str(holder)
    assert not after.streams


async def test_a_server_that_does_not_even_hang_up_is_not_taken_for_an_idle_hold(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(database_url) as way, opened(way.url) as database:

        async def ask() -> None:
            async with database.session() as session:
                await session.execute(text("select pg_sleep(60)"))

        task = asyncio.create_task(ask())
        await until(lambda: any(use.sql_since for use in database.pool.uses()))
        way.freeze()
        task.cancel()  # SQLAlchemy gives the server two seconds to close the connection.
        await until(lambda: database.pool.uses()[0].in_sql > 0)
        detectors_of(database, leak_after=0).look(time.monotonic() + 30)
        (holder,) = database.pool.holders()
        way.thaw()
        await asyncio.wait([task])
    assert "nothing to do" not in caplog.text
    assert holder.idle < holder.in_sql


# A loop that is blocked


@asynccontextmanager
async def watched(after: float) -> AsyncGenerator[Watchdog]:
    """Watch this loop."""
    watchdog = Watchdog(lambda: "1 of primary")
    with watchdog.watching(after):
        yield watchdog


def block(said: Callable[[], bool]) -> None:
    """Block the loop until something was said."""
    end = time.monotonic() + 30
    while not said() and time.monotonic() < end:
        time.sleep(0.01)  # blocks


async def test_the_line_that_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(0.1) as watchdog:
        before = time.monotonic()
        block(lambda: bool(caplog.records))
        told = watchdog.blocked_since(before)  # Before the loop has come round.
        assert watchdog.blocked_since(time.monotonic() + 1) == ""
        await until(lambda: len(caplog.records) > 1)
        blocked, goes_on = messages(caplog)
    assert told.startswith("the event loop was blocked for 0.")
    assert f" s by a task, at {line_of('blocks')} in block" in told
    assert watchdog.blocks == 1
    assert f"{line_of('blocks')} in block" in blocked
    assert "in use: 1 of primary" in blocked
    assert "the event loop goes on, after" in goes_on
    assert watchdog.blocked_seconds >= 0.1


async def test_the_route_that_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    install(app, Databases())

    @app.get("/block/{number}")
    async def blocking(number: int) -> int:
        block(lambda: bool(caplog.records))
        return number

    transport = httpx.ASGITransport(app)
    async with watched(0.1), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await client.get("/block/7")
    assert "by GET /block/{number}, at" in messages(caplog)[0]


async def test_a_loop_that_goes_round_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(5) as watchdog:
        for _ in range(100):
            await asyncio.sleep(0)
        assert watchdog.blocks == 0
    assert messages(caplog) == []
    assert not [each for each in threading.enumerate() if each.name == "watchdog"]


# What callers are told


async def exhausted(database: Database, work: Callable[[], Awaitable[Any]]) -> None:
    """Run while all connections are held for nothing."""
    async with holding(database), database.engine.connect() as connection:
        await connection.get_raw_connection()
        await work()


async def test_a_timeout_names_who_holds_the_connections(database_url: URL) -> None:
    async with opened(database_url, pool_timeout=0.1, queue_target=0) as database:

        async def one_more() -> None:
            async with database.session() as session:
                with pytest.raises(PoolTimeout, match="no connection within") as caught:
                    await session.scalar(text("select 1"))
            longest = caught.value.holders[0]
            assert longest.where == (f"{line_of('holds')} in hold",)
            assert f"\n  held by {longest}" in str(caught.value)

        await exhausted(database, one_more)


@pytest.mark.parametrize(("token", "shown"), [(None, False), ("x" * 16, True), ("y" * 16, False)])
async def test_the_public_is_not_told_who_holds_the_connections(
    database_url: URL, token: str | None, shown: bool
) -> None:
    async with opened(database_url, pool_timeout=0.1, queue_target=0) as database:
        databases = Databases(database)
        databases.service = databases.service.model_copy(update={"pools_token": "x" * 16})
        app = FastAPI()
        install(app, databases)
        of_this_request: AsyncSession = session_from(database)

        @app.get("/one")
        async def one(session: AsyncSession = of_this_request) -> None:
            await session.scalar(text("select 1"))

        async def one_more() -> None:
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                answer = await client.get("/one", headers=headers)
            assert answer.status_code == 503
            assert ("holders" in answer.json()) is shown
            assert ("in hold" in answer.text) is shown

        await exhausted(database, one_more)
