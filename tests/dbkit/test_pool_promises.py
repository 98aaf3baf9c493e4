"""What other pools' tests promise: those of psycopg_pool, HikariCP, pgxpool, db_connection."""

import asyncio
import logging
import os
from typing import Any

import anyio
import pytest
from dbkit import Database
from dbkit.errors import PoolClosed
from pool_fakes import FakeServer, give, in_virtual_time, outcome, outcomes, queue, settle, take
from sqlalchemy import URL, event, exc
from test_pool_postgres import engine_on, pool_of, select

# Listeners that raise


async def test_a_listener_that_fails_when_a_connection_is_opened_costs_no_place(
    database_url: URL,
) -> None:
    async with engine_on(database_url, pool_size=1) as engine:
        fail = [True]

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(*_: object) -> None:
            if fail:
                fail.pop()
                raise ValueError("no such codec")

        with pytest.raises(ValueError, match="no such codec"):
            await select(engine)
        assert not fail
        assert pool_of(engine).snapshot().in_use == 0

        assert await pool_of(engine).warm(1, deadline=10) == 1
        assert await select(engine) == 1


@pytest.mark.parametrize(
    "mistake",
    [exc.ArgumentError("no such isolation level"), exc.InvalidRequestError("not that way")],
    ids=lambda mistake: type(mistake).__name__,
)
async def test_a_mistake_that_sqlalchemy_finds_at_a_connect_is_no_outage(
    database_url: URL, mistake: Exception
) -> None:
    async with engine_on(database_url, pool_size=1) as engine:

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(*_: object) -> None:
            raise mistake

        with pytest.raises(type(mistake), match=str(mistake)):
            await select(engine)


@pytest.mark.parametrize("when", ["reset", "checkin"])
async def test_a_listener_that_fails_at_a_return_costs_no_place(
    database_url: URL, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine_on(database_url, pool_size=1, pool_timeout=10) as engine:
        fail = [True]

        @event.listens_for(engine.sync_engine, when)
        def look(*_: object) -> None:
            if fail:
                fail.pop()
                raise ValueError("the listener's own")

        with caplog.at_level(logging.CRITICAL):
            try:
                await select(engine)
            except ValueError:
                assert when == "checkin"

        assert await select(engine) == 1
        assert pool_of(engine).snapshot().in_use == 0


# Drain


@in_virtual_time
async def test_draining_twice_ends_twice() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2)
    held = await take(pool)

    first = asyncio.create_task(pool.drain(5))
    await settle()
    second = asyncio.create_task(pool.drain(5))
    await settle()
    await give(held)

    assert (await first, await second) == ([], [])
    assert await pool.drain(5) == []
    assert not server.open


@in_virtual_time
async def test_drain_ends_what_waits_for_connections_to_be_ready() -> None:
    server = FakeServer()
    server.freeze()
    pool = server.pool(pool_size=2)
    warm = asyncio.create_task(pool.warm(2, deadline=3600))
    await settle()

    await pool.drain(1)

    with pytest.raises(PoolClosed):
        await warm
    server.thaw()
    await settle()
    assert not server.open


@in_virtual_time
async def test_a_drained_pool_stays_closed() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2)
    await give(await take(pool))
    await pool.drain(1)

    pool.resume()
    pool.resize(5, 0)
    with pytest.raises(PoolClosed):
        await take(pool)
    with pytest.raises(PoolClosed):
        await pool.warm(1, deadline=1)
    assert not server.open


async def test_an_engine_kept_from_before_the_stop_connects_no_more(database_url: URL) -> None:
    url = database_url.render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, pool_size=1).open() as database:
        engine = database.engine
        assert await select(engine) == 1

    with pytest.raises(PoolClosed, match="shop: the pool is closed"):
        await select(engine)
    assert pool_of(engine).snapshot().connects == 1


# What a caller may do to itself


@pytest.mark.parametrize(
    ("pool_size", "max_overflow"),
    [(10**9, 0), (2.5, 0), (True, 0), (1, 10**9), (1, False)],
)
def test_a_size_is_an_integer_within_bounds(pool_size: Any, max_overflow: Any) -> None:
    pool = FakeServer().pool(pool_size=2)

    with pytest.raises(exc.ArgumentError, match="must be an integer from"):
        pool.resize(pool_size, max_overflow)
    assert pool.size() == 2


@in_virtual_time
async def test_a_scope_that_ends_leaves_the_queue_and_passes_on_what_it_was_given() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, queue_target=0)
    held = await take(pool)

    async def wait_in_a_scope() -> bool:
        with anyio.move_on_after(1) as scope:
            await take(pool)
        return scope.cancelled_caught

    waiters = [asyncio.create_task(wait_in_a_scope()) for _ in range(3)]
    await settle()
    patient = (await queue(pool, 1))[0]
    assert await asyncio.gather(*waiters) == [True] * 3
    assert pool.waiting() == 1

    await give(held)
    await settle()
    assert outcome(patient) == "served"


@in_virtual_time
async def test_a_scope_that_ends_in_the_moment_of_the_hand_over_loses_nothing() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)

    async def wait_in_a_scope(scope: anyio.CancelScope) -> None:
        with scope:
            await give(await take(pool))

    scope = anyio.CancelScope()
    waiter = asyncio.create_task(wait_in_a_scope(scope))
    await settle()
    others = await queue(pool, 1)
    held.close()  # It goes to the waiter, which is cancelled before it runs.
    scope.cancel()
    await waiter
    await settle()

    assert outcomes(others) == ["served"]
    assert pool.checkedout() == 1


# Busy, or in a transaction


@in_virtual_time
async def test_what_is_in_a_transaction_is_closed_and_not_given_to_who_waits() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    waiter = (await queue(pool, 1))[0]
    first: Any = held.dbapi_connection
    first.in_transaction = True

    await give(held)
    await settle()

    assert outcome(waiter) == "served"
    assert first not in server.open
    assert server.accepted == 2
    assert pool.snapshot().lost == 1


# Forks


async def test_a_pool_that_is_used_after_a_fork_says_so(database_url: URL) -> None:
    async with engine_on(database_url, pool_size=1) as engine:
        assert await select(engine) == 1
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:  # As a worker that was forked while the service ran begins a loop of its own.
                asyncio._set_running_loop(None)  # noqa: SLF001 -- pyright: ignore
                asyncio.new_event_loop().run_until_complete(select(engine))
            except BaseException as error:  # noqa: BLE001 -- whatever it is, the parent looks at it
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        said = os.read(reading, 1000).decode()
        os.close(reading)
        os.close(writing)

        assert "forked" in said
        assert "dispose(close=False)" in said
        assert await select(engine) == 1  # The parent's connection is as it was.
        assert await select(engine, "SELECT pg_backend_pid()") is not None
        assert pool_of(engine).snapshot().connects == 1
