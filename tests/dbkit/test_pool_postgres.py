"""What the pool promises, on a real PostgreSQL: by what the server sees."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dbkit.errors import Unreachable
from dbkit.pool import FairPool
from pool_fakes import settings_of
from pool_proxy import Proxy
from sqlalchemy import URL, Connection, NullPool, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

pytestmark = pytest.mark.anyio

BACKENDS = """
    from pg_stat_activity
    where datname = current_database()
    and pid <> pg_backend_pid()
    and backend_type = 'client backend'
"""


@asynccontextmanager
async def engine_on(url: URL, **settings: Any) -> AsyncGenerator[AsyncEngine]:
    """Make an engine with our pool, and dispose of it at the end.

    Nobody is turned away for a machine that is slow; `test_pool_queue.py` has a clock of its own.
    """
    patient = {"queue_target": 0, "pool_timeout": 60, "connect_timeout": 30}
    engine = create_async_engine(
        url,
        poolclass=FairPool,
        settings=settings_of(patient | settings),
        pool_logging_name="primary",
    )
    try:
        yield engine
    finally:
        await engine.dispose()


def pool_of(engine: AsyncEngine) -> FairPool:
    """Return an engine's pool."""
    assert isinstance(engine.pool, FairPool)
    return engine.pool


async def ask(url: URL, query: str) -> Any:
    """Ask the server over a connection of its own."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        result = await connection.exec_driver_sql(query)
        return result.scalar() if result.returns_rows else None


async def backends(url: URL) -> int:
    """Count the server's processes for the test's database."""
    return await ask(url, "select count(*)" + BACKENDS)


async def see(url: URL, expected: int) -> None:
    """Wait until the server has so many processes for the test's database."""
    async with asyncio.timeout(10):
        while await backends(url) != expected:  # noqa: ASYNC110 -- the server sets no event
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in the background."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- nor does the pool, for this
            await asyncio.sleep(0.005)


async def terminate_backends(url: URL) -> None:
    """Close every connection to the test's database from the server's side."""
    await ask(url, "select count(pg_terminate_backend(pid))" + BACKENDS)
    await see(url, 0)


async def select(engine: AsyncEngine, query: str = "select 1") -> Any:
    """Do what a request does."""
    async with engine.connect() as connection:
        return await connection.scalar(text(query))


async def test_server_never_sees_more_connections_than_the_limit(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=3, max_overflow=2) as engine:
        counted = "select count(*)" + BACKENDS

        others = await asyncio.gather(*(select(engine, counted) for _ in range(200)))

        assert max(others) <= 4
        assert await backends(database_url) == pool_of(engine).snapshot().connects == 5
    await see(database_url, 0)


async def test_storm_of_cancellations_leaks_no_place_and_no_backend(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=5) as engine:
        requests: list[asyncio.Task[Any]] = []
        for number in range(2000):
            request = asyncio.create_task(select(engine, "select null from pg_sleep(0.001)"))
            requests.append(request)
            if number % 3:
                asyncio.get_running_loop().call_later(0.002 * (number % 200), request.cancel)
        results = await asyncio.gather(*requests, return_exceptions=True)

        pool = pool_of(engine)
        await until(lambda: pool.snapshot().in_use == pool.snapshot().connecting == 0)
        assert pool.snapshot().waiting == 0
        assert {type(each) for each in results} == {type(None), asyncio.CancelledError}
        assert pool.snapshot().idle <= 5
        assert await select(engine) == 1
        await see(database_url, pool.snapshot().idle)
    await see(database_url, 0)


async def test_terminated_backends_fail_no_request(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=5) as engine:
        assert await pool_of(engine).warm(5, deadline=10) == 5
        await terminate_backends(database_url)

        assert await asyncio.gather(*(select(engine) for _ in range(20))) == [1] * 20

        assert pool_of(engine).snapshot().pings == 0
        assert pool_of(engine).snapshot().connects <= 10


async def test_checkout_asks_the_server_nothing(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, engine_on(proxy.url, ping_after=60) as engine:
        await select(engine)
        sent = proxy.sent

        for _ in range(50):
            async with engine.connect():
                pass

        assert proxy.sent == sent


async def test_ping_is_one_message(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, engine_on(proxy.url, ping_after=0) as engine:
        await select(engine)
        sent = proxy.sent

        async with engine.connect():
            pass

        assert proxy.sent - sent == len(b"Q\0\0\0\x0dSELECT 1\0")
        assert pool_of(engine).snapshot().pings == 1


async def test_connections_that_a_firewall_forgot_are_replaced(database_url: URL) -> None:
    async with (
        Proxy(database_url) as proxy,
        engine_on(proxy.url, pool_size=5, ping_after=0, ping_timeout=0.2) as engine,
    ):
        await pool_of(engine).warm(5, deadline=10)
        proxy.forget()

        assert await asyncio.gather(*(select(engine) for _ in range(40))) == [1] * 40

        status = pool_of(engine).snapshot()
        assert status.ping_errors == 5
        assert (status.refused, status.breaker) == (0, "closed")
        assert proxy.accepted <= 5 + 5


async def test_refused_server_is_answered_at_once_and_found_again(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, engine_on(proxy.url, pool_size=5) as engine:
        await proxy.refuse()
        results = await asyncio.gather(
            *(select(engine) for _ in range(100)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unreachable}
        assert pool_of(engine).snapshot().connect_errors <= 7
        assert pool_of(engine).snapshot().breaker != "closed"

        await proxy.accept()
        await until(lambda: pool_of(engine).snapshot().breaker == "closed")

        assert await asyncio.gather(*(select(engine) for _ in range(100))) == [1] * 100


async def test_lost_statement_has_the_other_connections_pinged(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=3, ping_after=60) as engine:
        await pool_of(engine).warm(3, deadline=10)
        async with engine.connect() as connection:
            pid = await connection.scalar(text("select pg_backend_pid()"))
            await ask(database_url, f"select pg_terminate_backend({pid})")
            with pytest.raises(exc.DBAPIError):
                await connection.scalar(text("select 1"))

        await until(lambda: pool_of(engine).snapshot().pings == 2)
        assert await asyncio.gather(*(select(engine) for _ in range(3))) == [1] * 3
        await until(lambda: pool_of(engine).snapshot().idle == 3)
        assert pool_of(engine).snapshot().connects == 4  # The lost one, and no other.


async def test_frozen_server_delays_neither_drain_nor_dispose(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, engine_on(proxy.url, pool_size=5) as engine:
        await pool_of(engine).warm(5, deadline=10)
        holders = [asyncio.create_task(select(engine, "select pg_sleep(60)")) for _ in range(3)]
        await until(lambda: pool_of(engine).snapshot().in_use == 3)
        proxy.freeze()

        async with asyncio.timeout(10):
            assert len(await pool_of(engine).drain(0.3)) == 3
            await engine.dispose()
            results = await asyncio.gather(*holders, return_exceptions=True)

        assert all(isinstance(result, exc.DBAPIError) for result in results)
    await terminate_backends(database_url)  # The server was told nothing, and sleeps on.


async def test_callers_share_what_the_server_has_left(database_url: URL) -> None:
    await ask(database_url, "create role limited login connection limit 2 password 'x'")
    try:
        url = database_url.set(username="limited", password="x")  # noqa: S106
        async with engine_on(url, pool_size=5) as engine:
            assert await asyncio.gather(*(select(engine) for _ in range(50))) == [1] * 50

            assert pool_of(engine).snapshot().connects == 2
            assert pool_of(engine).snapshot().connect_errors >= 3
    finally:
        await ask(database_url, "drop role limited")


async def test_wrong_password_is_told_without_the_password(database_url: URL) -> None:
    url = database_url.set(password="correct-horse-battery")  # noqa: S106
    async with engine_on(url) as engine:
        with pytest.raises(Unreachable, match="password authentication failed") as caught:
            await select(engine)

    assert "correct-horse" not in str(caught.value)
    assert "correct-horse" not in repr(pool_of(engine))


async def test_recycled_connections_are_replaced_one_for_one(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=3, pool_recycle=0.2) as engine:
        pids: set[int] = set()
        while len(pids) < 9:
            pids |= set(
                await asyncio.gather(*(select(engine, "select pg_backend_pid()") for _ in range(3)))
            )
            assert await backends(database_url) <= 3

        assert pool_of(engine).snapshot().retired >= 6


async def test_dispose_under_load_fails_nobody(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=3) as engine:
        requests: list[asyncio.Task[Any]] = []
        for _ in range(4):
            requests += [asyncio.create_task(select(engine)) for _ in range(50)]
            await asyncio.sleep(0.01)
            await engine.dispose()

        assert await asyncio.gather(*requests) == [1] * 200
        assert 6 <= pool_of(engine).snapshot().connects <= 24  # Of all the engine's pools.
    await see(database_url, 0)


async def test_connection_held_across_dispose_is_closed_at_its_return(database_url: URL) -> None:
    async with engine_on(database_url) as engine:
        connection = await engine.connect()
        await engine.dispose()
        assert await connection.scalar(text("select 1")) == 1

        await connection.close()

        await see(database_url, 0)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another thread"])
async def test_connection_dropped_unclosed_frees_its_place(
    database_url: URL, *, elsewhere: bool
) -> None:
    async with engine_on(database_url, pool_size=1) as engine:
        connection = await engine.connect()
        await connection.scalar(text("select 1"))
        waiter = asyncio.create_task(select(engine))
        await until(lambda: pool_of(engine).snapshot().waiting == 1)
        leaked = [connection]
        del connection

        def drop() -> None:
            leaked.clear()
            gc.collect()

        def drop_elsewhere() -> None:
            thread = threading.Thread(target=drop)
            thread.start()
            thread.join()

        with pytest.warns(exc.SAWarning, match="garbage collector"):
            drop_elsewhere() if elsewhere else drop()

        assert await waiter == 1
        assert pool_of(engine).snapshot().lost == 1


async def test_sessions_streams_and_transactions_work(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=1) as engine:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("create table item (id int)"))
            await session.execute(text("insert into item select generate_series(1, 1000)"))
        async with AsyncSession(engine) as session:
            rows = [row.id async for row in await session.stream(text("select id from item"))]
            assert len(rows) == 1000
        async with (
            engine.connect() as connection,
            connection.stream(text("select id from item")) as result,
        ):
            assert (await result.fetchmany(3))[0] == (1,)  # And the rest is left unread.
        async with engine.connect() as connection:
            count = await connection.run_sync(
                lambda sync: sync.scalar(text("select count(*) from item"))
            )
            assert count == 1000
        async with engine.connect() as connection:

            def in_two_phases(sync: Connection) -> None:
                with sync.begin_twophase() as transaction:
                    sync.execute(text("delete from item"))
                    transaction.rollback()

            await connection.run_sync(in_two_phases)
        async with engine.connect() as connection:
            await connection.begin()
            async with connection.begin_nested():
                await connection.execute(text("delete from item where id > 1"))
            await connection.commit()
        async with engine.connect() as connection:
            await connection.invalidate()
            assert await connection.scalar(text("select count(*) from item")) == 1
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            raw.detach()
            assert await connection.scalar(text("select 1")) == 1
        assert pool_of(engine).snapshot().in_use == 0
        assert await select(engine, "select count(*) from item") == 1
