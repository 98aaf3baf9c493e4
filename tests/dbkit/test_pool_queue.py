"""Who is served, in which order, and what the others are told."""

import asyncio
import logging
from typing import Any

import pytest
from dbkit.errors import PoolClosed, PoolOverloaded, PoolTimeout
from dbkit.pool import FairPool, refusals
from pool_fakes import FakeServer, give, in_virtual_time, outcomes, queue, settle, take
from sqlalchemy.util import greenlet_spawn


@in_virtual_time
async def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    pool = FakeServer().pool(pool_size=1)
    first = await take(pool)
    order: list[int] = []

    async def caller(number: int) -> None:
        connection = await take(pool)
        order.append(number)
        await asyncio.sleep(0)
        await give(connection)

    callers = [asyncio.create_task(caller(number)) for number in range(20)]
    await settle()
    await give(first)
    await asyncio.gather(*callers)

    assert order == list(range(20))


@in_virtual_time
async def test_newcomer_does_not_overtake_a_waiter_that_was_just_served() -> None:
    pool = FakeServer().pool(pool_size=1)
    held = await take(pool)
    (waiter,) = await queue(pool, 1)

    await give(held)  # The connection is the waiter's from here, though it has not run yet.
    (newcomer,) = await queue(pool, 1)

    assert outcomes([waiter, newcomer]) == ["served", "waiting"]


@in_virtual_time
async def test_connection_used_last_is_used_first() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3)
    a, b, c = [await take(pool) for _ in range(3)]
    for connection in (a, c, b):
        await give(connection)

    taken = [await take(pool) for _ in range(3)]

    numbers = [each.driver_connection.number for each in taken if each.driver_connection]
    assert numbers == [2, 3, 1]


@in_virtual_time
async def test_cancelled_waiter_leaves_the_queue() -> None:
    pool = FakeServer().pool(pool_size=1)
    held = await take(pool)
    callers = await queue(pool, 3)

    callers[1].cancel()
    await settle()

    assert pool.snapshot().waiting == 2
    await give(held)
    await settle()
    assert outcomes(callers) == ["served", "cancelled", "waiting"]


@in_virtual_time
async def test_cancelled_waiter_passes_on_what_it_was_given() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    first, second = await queue(pool, 2)

    await give(held)
    first.cancel()  # It owns the connection already, and has not run since.
    await settle()

    assert outcomes([first, second]) == ["cancelled", "served"]
    assert server.accepted == 1


@in_virtual_time
async def test_caller_waits_no_longer_than_the_timeout_and_is_told_the_numbers() -> None:
    pool = FakeServer().pool(pool_size=2, pool_timeout=5, queue_target=0, env_prefix="ORDERS_DB_")
    held = [await take(pool) for _ in range(2)]
    callers = await queue(pool, 2)

    with pytest.raises(PoolTimeout) as caught:
        await callers[0]

    assert str(caught.value).partition("\n  held by")[0] == (
        "primary: no connection within 5 s: 2 of 2 in use, 0 idle, 0 connecting, 1 waiting,"
        " the oldest for 5.00 s\n"
        "  1. Look for what holds connections: a handler that waits for something else"
        " meanwhile, a session that is never closed, a slow statement.\n"
        "  2. Raise ORDERS_DB_POOL_SIZE (2) or ORDERS_DB_MAX_OVERFLOW (0) if the server has"
        " connections to spare."
    )
    await settle()
    assert outcomes(callers) == ["PoolTimeout", "PoolTimeout"]
    assert pool.snapshot().timeouts == 2
    assert pool.snapshot().waiting == 0
    await give(held.pop())
    assert pool.snapshot().in_use == 1


@in_virtual_time
async def test_timeout_counts_from_each_callers_own_arrival() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=5, queue_target=0)
    await take(pool)
    early = await queue(pool, 1)
    await asyncio.sleep(3)
    late = await queue(pool, 1)

    await asyncio.sleep(2.5)
    assert outcomes(early + late) == ["PoolTimeout", "waiting"]
    await asyncio.sleep(3)
    assert outcomes(late) == ["PoolTimeout"]


@in_virtual_time
async def test_caller_beyond_max_waiting_is_turned_away_at_once() -> None:
    pool = FakeServer().pool(pool_size=1, max_waiting=2)
    await take(pool)
    callers = await queue(pool, 2)

    with pytest.raises(PoolOverloaded, match="2 waiting") as caught:
        await take(pool)

    assert "DATABASE_MAX_WAITING" in str(caught.value)
    assert caught.value.retry_after > 0
    assert outcomes(callers) == ["waiting", "waiting"]
    assert pool.snapshot().shed == 1


@in_virtual_time
async def test_what_a_refusal_says_is_written_once_and_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakeServer().pool(pool_size=1, max_waiting=1)
    await take(pool)
    callers = await queue(pool, 1)
    with pytest.raises(PoolOverloaded):
        await take(pool)  # The first is logged.
    steps: list[Any] = []

    def advise(*said: Any) -> str:
        steps.extend(said)
        return "wait"

    monkeypatch.setattr(refusals, "advise", advise)

    with pytest.raises(PoolOverloaded) as caught:
        await take(pool)

    assert steps == []
    assert [str(caught.value).partition("\n")[0] for _ in range(2)] == [f"{pool.name}: wait"] * 2
    assert len(steps) == 4
    assert outcomes(callers) == ["waiting"]


async def serve(pool: FairPool, seconds: float) -> float:
    """Take a connection and hold it, as a request does; return how long it waited."""
    clock = asyncio.get_running_loop().time
    began = clock()
    connection = await take(pool)
    waited = clock() - began
    try:
        await asyncio.sleep(seconds)
    finally:
        await give(connection)
    return waited


async def offer(
    pool: FairPool, rate: float, duration: float, hold: float
) -> list[BaseException | float]:
    """Send requests at a steady rate, whatever becomes of them."""
    requests: list[asyncio.Task[float]] = []
    for _ in range(int(rate * duration)):
        requests.append(asyncio.create_task(serve(pool, hold)))
        await asyncio.sleep(1 / rate)
    return await asyncio.gather(*requests, return_exceptions=True)


@in_virtual_time
async def test_burst_is_served_in_full() -> None:
    pool = FakeServer().pool(pool_size=4)

    waits = await asyncio.gather(*(serve(pool, 0.02) for _ in range(80)))

    assert len(waits) == 80
    assert max(waits) == pytest.approx(0.38)


@in_virtual_time
async def test_burst_on_a_busy_pool_is_served_in_full() -> None:
    pool = FakeServer().pool(pool_size=1)

    async def worker() -> None:
        for _ in range(70):
            await serve(pool, 0.01)

    workers = [asyncio.create_task(worker()) for _ in range(3)]  # Two of them always wait.
    await asyncio.sleep(1.5)
    assert pool.snapshot().waiting == 2

    assert len(await asyncio.gather(*(serve(pool, 0.01) for _ in range(25)))) == 25
    await asyncio.gather(*workers)


@pytest.mark.parametrize("load", [1.5, 3, 6])
@in_virtual_time
async def test_overload_is_served_at_capacity_and_the_rest_told_soon(load: float) -> None:
    pool = FakeServer().pool(pool_size=4)
    capacity = 4 / 0.02

    results = await offer(pool, load * capacity, duration=3, hold=0.02)

    waits = [result for result in results if isinstance(result, float)]
    assert len(waits) >= 0.97 * capacity * 3
    assert {type(result) for result in results} == {float, PoolOverloaded}
    # Once it is clear that the queue stands, nobody is served after twice the target.
    after_a_second = results[int(load * capacity) :]
    assert max(wait for wait in after_a_second if isinstance(wait, float)) <= 0.1001


@in_virtual_time
async def test_load_below_capacity_is_served_in_full() -> None:
    pool = FakeServer().pool(pool_size=4)

    results = await offer(pool, rate=190, duration=10, hold=0.02)

    assert {type(result) for result in results} == {float}


@in_virtual_time
async def test_long_queries_in_a_short_queue_are_not_shed() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=60)

    results = await offer(pool, rate=1.2, duration=20, hold=0.8)

    assert {type(result) for result in results} == {float}


@in_virtual_time
async def test_waiters_are_shed_when_nothing_is_returned() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=60)
    await take(pool)

    callers = await queue(pool, 3)
    await asyncio.sleep(0.4)
    assert outcomes(callers) == ["waiting"] * 3
    await asyncio.sleep(0.2)
    assert outcomes(callers) == ["PoolOverloaded"] * 3


@in_virtual_time
async def test_newcomers_are_told_sooner_once_the_queue_has_stood() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=60)
    await take(pool)
    await queue(pool, 3)
    await asyncio.sleep(0.6)

    callers = await queue(pool, 1)  # Alone; but nobody was served since.
    await asyncio.sleep(0.2)

    assert outcomes(callers) == ["PoolOverloaded"]


@in_virtual_time
async def test_overload_that_pauses_is_told_sooner_when_it_comes_back() -> None:
    pool = FakeServer().pool(pool_size=4)
    await offer(pool, rate=600, duration=2, hold=0.02)
    await asyncio.sleep(0.3)  # As when the whole process stood still.

    results = await offer(pool, rate=600, duration=2, hold=0.02)

    assert max(result for result in results if isinstance(result, float)) < 0.15


@in_virtual_time
async def test_queue_that_stood_long_ago_does_not_count() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=60, ping_after=1000)
    held = await take(pool)
    await queue(pool, 3)
    await asyncio.sleep(1.2)
    await give(held)
    await asyncio.sleep(60)

    await take(pool)
    callers = await queue(pool, 3)
    await asyncio.sleep(0.4)

    assert outcomes(callers) == ["waiting"] * 3


@in_virtual_time
async def test_nobody_is_shed_without_a_target() -> None:
    pool = FakeServer().pool(pool_size=1, pool_timeout=60, queue_target=0)
    await take(pool)

    callers = await queue(pool, 3)
    await asyncio.sleep(50)

    assert outcomes(callers) == ["waiting"] * 3


@in_virtual_time
async def test_slow_first_connect_is_no_overload() -> None:
    server = FakeServer()
    server.latency = 2.0
    pool = server.pool(pool_size=2)

    assert len(await asyncio.gather(*(serve(pool, 0.01) for _ in range(20)))) == 20


@in_virtual_time
async def test_slow_connect_beside_a_long_holder_is_no_overload() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=10)
    await take(pool)
    server.latency = 2.0

    callers = await queue(pool, 3)
    await asyncio.sleep(2.1)

    assert outcomes(callers) == ["served"] * 3


@in_virtual_time
async def test_overload_with_connections_lost_all_the_time_is_still_shed() -> None:
    """As when clients leave: a cancelled statement costs its connection."""
    server = FakeServer()
    server.latency = 0.005
    pool = server.pool(pool_size=4)

    async def leave() -> None:
        connection = await take(pool)
        await asyncio.sleep(0.02)
        connection.invalidate()
        await give(connection)

    requests: list[asyncio.Task[None]] = []
    for _ in range(1600):
        requests.append(asyncio.create_task(leave()))
        await asyncio.sleep(0.0025)
    results = await asyncio.gather(*requests, return_exceptions=True)

    assert 500 < results.count(None) < 700  # 4 seconds, at 160 a second.
    assert pool.snapshot().shed == 1600 - results.count(None)


@in_virtual_time
async def test_overload_is_logged_at_its_start_and_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "dbkit")
    pool = FakeServer().pool(pool_size=2)

    await offer(pool, rate=500, duration=3, hold=0.02)
    await asyncio.sleep(10)

    started, ended = caplog.messages
    assert started.startswith("primary: overloaded, turned away after ")
    assert "\n  1. Look for what holds connections" in started
    shed = pool.snapshot().shed
    assert shed > 500
    assert f"; no longer overloaded; callers turned away: {shed}, in " in ended


@in_virtual_time
async def test_suspended_pool_lets_callers_wait_and_serves_them_after() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2, pool_timeout=60)
    held = await take(pool)
    await give(await take(pool))

    pool.suspend()
    callers = await queue(pool, 3)
    await give(held)
    await asyncio.sleep(10)
    assert outcomes(callers) == ["waiting"] * 3
    assert pool.snapshot().suspended

    pool.resume()
    await settle()
    assert outcomes(callers) == ["served", "served", "waiting"]
    assert server.accepted == 2


@in_virtual_time
async def test_wait_for_a_suspended_pool_is_no_overload() -> None:
    pool = FakeServer().pool(pool_size=2)
    await take(pool)
    await give(await take(pool))

    pool.suspend()
    callers = await queue(pool, 3)
    await asyncio.sleep(0.7)
    pool.resume()
    await asyncio.sleep(0.3)

    assert outcomes(callers) == ["served", "waiting", "waiting"]


@in_virtual_time
async def test_suspended_pool_still_keeps_the_timeout() -> None:
    pool = FakeServer().pool(pool_timeout=5)
    pool.suspend()

    with pytest.raises(PoolTimeout, match="suspended"):
        await take(pool)


@in_virtual_time
async def test_dispose_of_a_suspended_pool_serves_who_waits() -> None:
    pool = FakeServer().pool()
    pool.suspend()
    callers = await queue(pool, 2)

    await greenlet_spawn(pool.dispose)
    await settle()

    assert outcomes(callers) == ["served", "served"]


@in_virtual_time
async def test_growing_pool_serves_who_waits() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    await take(pool)
    callers = await queue(pool, 5)

    pool.resize(pool_size=3, max_overflow=1)
    await settle()

    assert outcomes(callers) == ["served"] * 3 + ["waiting"] * 2
    assert server.most_open == 4


@in_virtual_time
async def test_shrinking_pool_closes_idle_connections_now_and_used_ones_when_returned() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    held = [await take(pool) for _ in range(5)]
    await give(held.pop())

    pool.resize(pool_size=2, max_overflow=0)
    await settle()
    assert len(server.open) == 4
    for connection in held:
        await give(connection)
    await settle()

    assert len(server.open) == 2
    assert pool.snapshot().idle == 2


@in_virtual_time
async def test_shrunken_pool_replaces_nothing_that_it_does_not_keep() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=4, idle_timeout=2)
    await pool.warm(4, deadline=1)

    pool.resize(pool_size=2, max_overflow=2)
    await asyncio.sleep(100)

    assert (server.accepted, len(server.open)) == (4, 2)


@pytest.mark.parametrize(("pool_size", "max_overflow"), [(0, 10), (5, -1)])
def test_pool_without_a_limit_is_refused(pool_size: int, max_overflow: int) -> None:
    with pytest.raises(Exception, match="never unlimited"):
        FakeServer().pool().resize(pool_size=pool_size, max_overflow=max_overflow)


@in_virtual_time
async def test_drain_tells_waiters_and_newcomers_at_once() -> None:
    pool = FakeServer().pool(pool_size=1)
    held = await take(pool)
    callers = await queue(pool, 2)

    draining = asyncio.create_task(pool.drain(10))
    await settle()

    assert outcomes(callers) == ["PoolClosed", "PoolClosed"]
    with pytest.raises(PoolClosed, match="primary: the pool is closed"):
        await take(pool)
    await give(held)
    assert await draining == []


@in_virtual_time
async def test_storm_of_cancellations_leaves_nothing_behind() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5, pool_timeout=60, queue_target=0)
    requests = [asyncio.create_task(serve(pool, 0.001 * (n % 7))) for n in range(5000)]

    for turn in range(50):
        await asyncio.sleep(0.001)
        for request in requests[turn::61]:
            request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    await settle()

    status = pool.snapshot()
    assert (status.in_use, status.waiting, status.connecting) == (0, 0, 0)
    assert status.idle == len(server.open) == 5
    assert server.most_open == 5
    assert server.accepted == 5
