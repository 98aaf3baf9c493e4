"""Time in which the event loop stood: nobody's wait, and no server's fault."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from dbkit import Database, PoolOverloaded
from dbkit.pool.timeouts import within
from dbkit.telemetry import leaks as detectors
from pool_fakes import FakeServer, VirtualLoop, give, in_virtual_time, outcomes, queue, settle, take
from sqlalchemy import text
from waiting import until


def block(seconds: float) -> None:
    """Have the virtual clock jump as if one callback had taken so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.selector.now += seconds


@pytest.mark.parametrize("seconds", [0.45, 0.55, 1.0, 60.0])
@in_virtual_time
async def test_a_burst_is_served_whatever_blocked_the_loop_meanwhile(seconds: float) -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5, max_overflow=0, pool_timeout=10)
    held = [await take(pool) for _ in range(5)]
    callers = await queue(pool, 40)

    block(seconds)
    # The returns come before the timers that are late, as what a socket has does.
    for connection in held:
        await give(connection)
    served = 0
    while served < len(callers):
        await settle()
        done = [each for each in callers[served:] if each.done()]
        assert outcomes(done) == ["served"] * len(done)
        for each in done:
            await give(each.result())
        served += len(done)
        await asyncio.sleep(0.005)

    assert (pool.counters.shed, pool.counters.timeouts) == (0, 0)
    assert pool.counters.wait_seconds < 40 * 0.2


@in_virtual_time
async def test_what_a_queue_waits_beside_a_block_still_counts() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, max_overflow=0, pool_timeout=3, queue_target=0)
    await take(pool)
    (caller,) = await queue(pool, 1)

    await asyncio.sleep(1)
    block(60)
    await asyncio.sleep(1.8)
    assert outcomes([caller]) == ["waiting"]
    await asyncio.sleep(0.4)

    assert outcomes([caller]) == ["PoolTimeout"]


@in_virtual_time
async def test_a_queue_that_stands_is_shed_as_before() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, max_overflow=0, pool_timeout=30)
    await take(pool)
    callers = await queue(pool, 3)

    await asyncio.sleep(0.6)

    assert outcomes(callers) == ["PoolOverloaded"] * 3


@in_virtual_time
async def test_the_advice_is_about_what_blocked() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, max_overflow=0, pool_timeout=30)
    pool.usage.blocked_since = lambda _moment: "the event loop was blocked for 2.0 s by GET /slow"
    await take(pool)
    (caller,) = await queue(pool, 1)
    await asyncio.sleep(0.6)

    error = caller.exception()
    assert isinstance(error, PoolOverloaded)
    assert error.blocked in str(error)
    assert "asyncio.to_thread" in str(error)
    assert "POOL_SIZE" not in str(error)


@pytest.mark.parametrize("blocked", [0.5, 3.0, 600.0])
@in_virtual_time
async def test_an_answer_that_came_while_the_loop_stood_is_in_time(blocked: float) -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask() -> int:
        async with within(2):
            return await answer

    asked = asyncio.create_task(ask())
    await asyncio.sleep(1.9)
    block(blocked)
    asyncio.get_running_loop().call_later(0.01, answer.set_result, 1)

    assert await asked == 1


@in_virtual_time
async def test_a_timeout_ends_what_is_not_answered() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with within(2):
            await asyncio.Event().wait()
    assert asyncio.get_running_loop().time() - began == pytest.approx(2)  # pyright: ignore[reportUnknownMemberType] -- pytest's own


@in_virtual_time
async def test_a_ping_that_was_answered_while_the_loop_stood_loses_nothing() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, max_overflow=0, ping_after=0.0, ping_timeout=1.0)
    await give(await take(pool))
    server.freeze()
    (caller,) = await queue(pool, 1)  # Its ping is under way.
    await asyncio.sleep(0.9)
    block(30)
    asyncio.get_running_loop().call_later(0.01, server.thaw)
    await asyncio.sleep(0.3)

    assert outcomes([caller]) == ["served"]
    assert (pool.counters.lost, pool.counters.ping_errors) == (0, 0)
    assert pool.snapshot().breaker == "closed"


def slow_sync(seconds: float) -> None:
    time.sleep(seconds)  # blocks


def stop_the_process(seconds: float) -> None:
    """As a debugger, a container's freezer, or a laptop's lid does."""
    script = f"import os, time; time.sleep({seconds}); os.kill({os.getpid()}, {signal.SIGCONT})"
    with subprocess.Popen([sys.executable, "-c", script]):
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.anyio
@pytest.mark.parametrize("stop", [slow_sync, stop_the_process])
@pytest.mark.parametrize(
    "declared", ["postgresql", "pgbouncer", "mariadb", "mysql", "sqlite"], indirect=True
)
async def test_no_caller_is_turned_away_for_a_block_on_a_real_server(
    declared: Database, stop: Callable[[float], None]
) -> None:
    settings = declared.read_settings().model_copy(
        update={"pool_size": 5, "pool_timeout": 1, "queue_target": 0}
    )

    async def work() -> None:
        async with declared.session() as session:
            await session.execute(text("select 1"))

    async with declared.open(settings):
        pool = declared.pool
        callers = [asyncio.create_task(work()) for _ in range(20)]
        await until(lambda: pool.waiting() > 0)
        stop(1.5)
        await asyncio.gather(*callers)

        assert (pool.counters.shed, pool.counters.timeouts, pool.counters.lost) == (0, 0, 0)
        assert declared.probe.is_up


@pytest.mark.anyio
@pytest.mark.parametrize("declared", ["sqlite"], indirect=True)
async def test_no_holder_is_named_for_a_time_in_which_the_loop_stood(
    declared: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "LOOK", 0.05)
    async with declared.open(), declared.session() as session:
        await session.execute(text("select 1"))
        await asyncio.sleep(0.05)
        slow_sync(1.5)
        await asyncio.sleep(0.3)

    assert "has nothing to do" not in caplog.text
