"""How connections are opened, checked, kept and closed, and what a failure of the server does."""

import asyncio
import gc
import logging
import weakref
from contextvars import ContextVar

import pytest
from dbkit.errors import Unreachable
from dbkit.pool import FairPool
from dbkit.pool.breaker import Breaker
from pool_fakes import FakeServer, give, in_virtual_time, outcomes, queue, settle, take, taken
from sqlalchemy import event, exc
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn


def disconnected(pool: FairPool, connection: PoolProxiedConnection) -> None:
    """Do what the engine does when a statement fails because its connection is lost."""
    pool._invalidate(connection, OSError("reset"))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


# Opening


@in_virtual_time
async def test_connections_are_opened_when_they_are_needed() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)

    for _ in range(10):
        await give(await take(pool))

    assert server.accepted == 1


@in_virtual_time
async def test_connect_survives_the_caller_that_asked_for_it() -> None:
    server = FakeServer()
    server.latency = 1.0
    pool = server.pool()
    (caller,) = await queue(pool, 1)

    caller.cancel()
    await asyncio.sleep(2)

    assert pool.snapshot().idle == server.accepted == 1
    await take(pool)
    assert server.asked == 1


@in_virtual_time
async def test_impatient_callers_are_served_in_the_end() -> None:
    """With a connect that takes longer than any caller waits."""
    server = FakeServer()
    server.latency = 0.06
    pool = server.pool(pool_size=4)
    served = 0
    for _ in range(50):
        try:
            async with asyncio.timeout(0.03):
                connection = await take(pool)
        except TimeoutError:
            continue
        await give(connection)
        served += 1

    assert served >= 48
    assert server.asked <= 4


@in_virtual_time
async def test_waiter_is_served_by_whatever_comes_first() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2)
    held = await take(pool)
    server.latency = 60
    (caller,) = await queue(pool, 1)

    await give(held)
    await settle()

    assert outcomes([caller]) == ["served"]


@in_virtual_time
async def test_failed_connect_is_tried_again_for_the_waiters() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    server.refusal = OSError("no route")
    (caller,) = await queue(pool, 1)
    assert outcomes([caller]) == ["Unreachable"]

    server.refusal = None
    server.asked = 0
    await asyncio.sleep(1)  # The probe.

    connection = await take(pool)
    assert server.asked == 1
    await give(connection)


@in_virtual_time
async def test_single_failure_is_nobodys_error() -> None:
    server = FakeServer()
    failures = [OSError("reset"), OSError("reset")]

    async def sometimes() -> object:
        if failures:
            raise failures.pop()
        return await FakeServer.connect(server)

    server.connect = sometimes  # type: ignore[method-assign]
    pool = server.pool(pool_size=1)

    await give(await take(pool))

    assert pool.snapshot().connect_errors == 2


@in_virtual_time
async def test_refused_callers_are_told_at_once_and_why() -> None:
    server = FakeServer()
    server.refusal = ConnectionRefusedError(111, "Connect call failed")
    pool = server.pool(pool_size=10)
    began = asyncio.get_running_loop().time()

    callers = [asyncio.create_task(take(pool)) for _ in range(100)]
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert asyncio.get_running_loop().time() == began
    assert {type(result) for result in results} == {Unreachable}
    assert server.asked <= 12  # As many as fit, and the two that may fail before the third.
    error = results[0]
    assert isinstance(error, Unreachable)
    assert error.__cause__ is server.refusal
    assert str(error).startswith(
        "primary: cannot connect: ConnectionRefusedError: [Errno 111] Connect call failed"
        " (failures in a row: 3, asked again in "
    )
    assert str(error).endswith("  1. See that the server runs, and that DATABASE_URL names it.")


@in_virtual_time
async def test_open_breaker_asks_once_in_a_while_and_refuses_the_rest() -> None:
    server = FakeServer()
    server.refusal = OSError("no route")
    pool = server.pool(pool_size=10)
    await asyncio.gather(*(take(pool) for _ in range(20)), return_exceptions=True)
    server.asked = 0

    for _ in range(1000):
        with pytest.raises(Unreachable) as caught:
            await take(pool)
        assert 0 < caught.value.retry_after <= 0.75
        await asyncio.sleep(0.01)

    assert 13 <= server.asked <= 43  # Ten seconds, at most three quarters of one apart.
    assert pool.snapshot().breaker == "open"
    assert server.most_open == 0


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (OSError("no route"), "OSError: no route"),
        (Unreachable("primary", "cannot connect to there"), "cannot connect to there"),
    ],
)
@in_virtual_time
async def test_breaker_closes_when_the_server_is_back(
    caplog: pytest.LogCaptureFixture, refusal: Exception, said: str
) -> None:
    caplog.set_level(logging.WARNING, "dbkit")
    server = FakeServer()
    server.refusal = refusal
    pool = server.pool(pool_size=4)
    await asyncio.gather(*(take(pool) for _ in range(9)), return_exceptions=True)
    await asyncio.sleep(20)

    server.refusal = None
    await asyncio.sleep(0.76)  # Nobody has to ask: the pool finds out by itself.

    assert pool.snapshot().breaker == "closed"
    assert pool.snapshot().idle == 1
    await asyncio.gather(*(take(pool) for _ in range(4)))
    down, back = caplog.messages
    assert down == f"primary: unreachable after 3 failures in a row: {said}"
    assert back.startswith("primary: reachable again, after 2")


@in_virtual_time
async def test_only_one_probe_asks_a_server_that_does_not_answer() -> None:
    server = FakeServer()
    server.freeze()
    pool = server.pool(pool_size=10, connect_timeout=5, pool_timeout=60)
    callers = await queue(pool, 3)
    await asyncio.sleep(5.01)
    assert outcomes(callers) == ["Unreachable"] * 3
    server.asked = 0

    await asyncio.sleep(4)
    with pytest.raises(Unreachable, match="no answer within 5 s"):
        await take(pool)

    assert server.asked == 1
    assert pool.snapshot().breaker == "probing"


@in_virtual_time
async def test_a_server_that_answered_somebody_else_is_asked_at_once() -> None:
    server = FakeServer()
    server.freeze()
    pool = server.pool(pool_size=10, connect_timeout=5, pool_timeout=60)
    await queue(pool, 3)
    await asyncio.sleep(5.2)
    assert pool.snapshot().breaker == "probing"  # This attempt is never answered.
    server.forget()
    server.asked = 0

    pool.retry()
    await settle()

    assert server.asked == 1
    assert pool.snapshot().breaker == "closed"
    pool.retry()
    await settle()
    assert server.asked == 1


def test_breaker_counts_failures_in_a_row() -> None:
    breaker = Breaker(threshold=3)

    opened = [breaker.fail(OSError(), now=0.0) for _ in range(2)]
    breaker.succeed()
    opened += [breaker.fail(OSError(), now=0.0) for _ in range(3)]

    assert opened == [False, False, False, False, True]


def test_processes_do_not_ask_again_in_the_same_moment() -> None:
    breakers = [Breaker(threshold=1) for _ in range(20)]

    for breaker in breakers:
        breaker.fail(OSError(), now=0.0)

    assert len({breaker.retry_at for breaker in breakers}) == 20
    assert all(0.05 <= breaker.retry_at <= 0.15 for breaker in breakers)


def test_a_server_that_is_away_is_asked_within_three_quarters_of_a_second() -> None:
    breakers = [Breaker(threshold=1) for _ in range(20)]

    for breaker in breakers:
        for _ in range(10):
            breaker.probe()
            breaker.fail(OSError(), now=0.0)

    assert max(breaker.retry_at for breaker in breakers) <= 0.75


class TooManyConnections(Exception):
    """The server answers, and has no connection left."""

    sqlstate = "53300"


@in_virtual_time
async def test_callers_wait_for_holders_when_the_server_has_no_connection_left() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    held = [await take(pool) for _ in range(2)]
    server.refusal = TooManyConnections()

    callers = await queue(pool, 4)
    assert outcomes(callers) == ["waiting"] * 4
    for connection in held:
        await give(connection)
    await settle()

    assert outcomes(callers) == ["served", "served", "waiting", "waiting"]
    assert pool.snapshot().breaker == "open"


@in_virtual_time
async def test_callers_are_told_when_no_holder_is_left_to_wait_for() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    held = await take(pool)
    server.refusal = TooManyConnections()
    callers = await queue(pool, 2)

    held.invalidate()
    await settle()

    assert outcomes(callers) == ["Unreachable", "Unreachable"]


@in_virtual_time
async def test_idle_connection_is_used_while_the_breaker_is_open() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    held = await take(pool)
    server.refusal = OSError("no route")
    await queue(pool, 3)
    assert pool.snapshot().breaker == "open"

    await asyncio.sleep(0.01)
    pool.suspend()
    await give(held)
    pool.resume()
    await settle()

    assert pool.snapshot().breaker == "open"
    assert await take(pool)


# Checks


@in_virtual_time
async def test_closed_connection_is_replaced_without_asking_the_server() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3)
    held = [await take(pool) for _ in range(3)]
    for connection in held:
        await give(connection)

    server.kill_all()
    await give(await take(pool))

    assert server.pings == 0
    assert pool.snapshot().in_use == 0
    assert len(server.open) >= 1


@in_virtual_time
async def test_connection_in_use_a_moment_ago_is_not_pinged() -> None:
    server = FakeServer()
    pool = server.pool(ping_after=1)
    for _ in range(10):
        await give(await take(pool))
        await asyncio.sleep(0.9)

    assert server.pings == 0


@in_virtual_time
async def test_connection_unused_for_a_while_is_pinged() -> None:
    server = FakeServer()
    pool = server.pool(ping_after=1)
    await give(await take(pool))

    await asyncio.sleep(1.5)
    await give(await take(pool))

    assert (server.pings, server.accepted) == (1, 1)


@in_virtual_time
async def test_connection_whose_peer_is_gone_delays_a_caller_for_one_ping() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3, ping_timeout=1)
    held = [await take(pool) for _ in range(3)]
    for connection in held:
        await give(connection)
    for connection in server.open:
        connection.dead = True
    await asyncio.sleep(5)
    began = asyncio.get_running_loop().time()

    await give(await take(pool))

    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
    await asyncio.sleep(2)
    assert pool.snapshot().ping_errors == 3  # The failure had the others pinged as well.
    assert {connection.dead for connection in server.open} == {False}


@in_virtual_time
async def test_dead_idle_connections_do_not_open_the_breaker() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=10, ping_timeout=1)
    held = [await take(pool) for _ in range(10)]
    for connection in held:
        await give(connection)
    for connection in server.open:
        connection.dead = True
    await asyncio.sleep(60)

    served = await asyncio.gather(*(take(pool) for _ in range(10)))

    assert len(served) == 10
    assert pool.snapshot().ping_errors == 10
    assert pool.snapshot().refused == 0


@in_virtual_time
async def test_waiter_does_not_rely_on_a_slow_ping_where_there_is_room_to_connect() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2, ping_timeout=1)
    await give(await take(pool))
    for connection in server.open:
        connection.dead = True
    await asyncio.sleep(5)
    began = asyncio.get_running_loop().time()

    await take(pool)

    assert asyncio.get_running_loop().time() - began < 0.1


@in_virtual_time
async def test_lost_connection_makes_the_others_suspect() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3)
    a, b, c = [await take(pool) for _ in range(3)]
    await give(a)
    await asyncio.sleep(0.01)

    disconnected(pool, b)
    await settle()
    assert server.pings == 1  # The idle one, at once.
    await give(c)
    await settle()
    assert server.pings == 2  # The one in use, at its return.
    assert pool.snapshot().idle == 2

    await asyncio.sleep(0.01)
    await give(await take(pool))
    await settle()
    assert server.pings == 2  # What was proved once, or taken since, is no longer suspect.


@in_virtual_time
async def test_suspect_connections_are_pinged_at_once() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=4)
    held = [await take(pool) for _ in range(4)]
    for connection in held[1:]:
        await give(connection)
    for connection in server.open:
        connection.dead = connection.number == 2

    await asyncio.sleep(0.01)
    pool.suspect()
    await asyncio.sleep(1.5)

    assert pool.snapshot().ping_errors == 1
    assert pool.snapshot().idle == 2
    assert sorted(connection.number for connection in server.open) == [1, 3, 4]


@in_virtual_time
async def test_keepalive_finds_dead_connections_before_a_caller_does() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3, keepalive=30, ping_after=1000)
    held = [await take(pool) for _ in range(3)]
    for connection in held:
        await give(connection)

    await asyncio.sleep(31)
    assert server.pings == 3
    for connection in server.open:
        connection.dead = True
    await asyncio.sleep(31)

    assert pool.snapshot().idle == 0
    assert server.open == set()


@in_virtual_time
async def test_keepalive_does_not_make_a_connection_look_used() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1, max_overflow=2, keepalive=20, idle_timeout=60)
    held = [await take(pool) for _ in range(3)]
    for connection in held:
        await give(connection)

    await asyncio.sleep(100)

    assert len(server.open) == 1


@in_virtual_time
async def test_keepalive_does_not_change_which_connection_is_used_next() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2, keepalive=20, ping_after=1000)
    seldom, often = await take(pool), await take(pool)
    await give(seldom)
    await asyncio.sleep(10)
    await give(often)

    await asyncio.sleep(11)
    assert server.pings == 1
    used = await take(pool)

    assert used.driver_connection
    assert used.driver_connection.number == 2


# Keeping


@in_virtual_time
async def test_overflow_is_kept_while_it_is_used() -> None:
    """Where SQLAlchemy's own pool connects at every other checkout."""
    server = FakeServer()
    pool = server.pool(pool_size=2, max_overflow=3)

    async def request() -> None:
        connection = await take(pool)
        await asyncio.sleep(0.01)
        await give(connection)

    for _ in range(100):
        await asyncio.gather(*(request() for _ in range(5)))

    assert server.accepted == 5


@in_virtual_time
async def test_overflow_is_closed_when_it_is_not_needed_for_a_while() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2, max_overflow=3, idle_timeout=60)
    held = [await take(pool) for _ in range(5)]
    for connection in held:
        await give(connection)

    await asyncio.sleep(59)
    assert len(server.open) == 5
    await asyncio.sleep(31)

    assert len(server.open) == 2
    assert pool.snapshot().retired == 3
    assert server.goodbyes == 3


@in_virtual_time
async def test_limit_counts_connections_that_are_being_closed() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2)
    a, b = [await take(pool) for _ in range(2)]
    server.freeze()
    pool.retire()
    await give(a)
    await give(b)
    callers = await queue(pool, 2)

    assert (server.asked, outcomes(callers)) == (2, ["waiting", "waiting"])
    server.thaw()
    await settle()

    assert outcomes(callers) == ["served", "served"]
    assert server.most_open == 2


@in_virtual_time
async def test_old_connection_is_replaced_at_its_return() -> None:
    server = FakeServer()
    pool = server.pool(pool_recycle=100)
    held = await take(pool)
    await asyncio.sleep(100)

    await give(held)
    await settle()

    assert server.open == set()
    assert server.goodbyes == 1


@in_virtual_time
async def test_old_connections_are_replaced_in_the_background_and_not_at_once() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=20, pool_recycle=1000)
    await pool.warm(20, deadline=1)
    closed: list[float] = []

    @event.listens_for(pool, "close")
    def note(*_: object) -> None:
        closed.append(asyncio.get_running_loop().time())

    began = asyncio.get_running_loop().time()
    await asyncio.sleep(1000 + 31)

    assert server.accepted >= 40
    assert server.most_open == 20
    first = sorted(closed)[:20]
    assert 800 <= first[0] - began <= first[-1] - began <= 1000 + 31
    assert first[-1] - first[0] > 60


@in_virtual_time
async def test_callers_do_not_wait_for_an_old_connection_to_be_replaced() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3, pool_recycle=100, ping_after=1000)
    await pool.warm(3, deadline=1)
    server.latency = 0.1

    for _ in range(1000):
        connection = await take(pool)
        await asyncio.sleep(0.1)
        await give(connection)

    assert pool.snapshot().waits == 0
    assert server.accepted >= 3


@in_virtual_time
async def test_invalidated_connection_frees_its_place() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    (caller,) = await queue(pool, 1)

    held.invalidate()
    await settle()

    assert outcomes([caller]) == ["served"]
    assert server.most_open == 1
    assert pool.snapshot().lost == 1


@in_virtual_time
async def test_softly_invalidated_connection_is_not_used_again() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    await asyncio.sleep(0.01)

    held.invalidate(soft=True)
    await give(held)
    await settle()

    assert server.open == set()


@in_virtual_time
async def test_detached_connection_frees_its_place() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    (caller,) = await queue(pool, 1)

    held.detach()
    await settle()

    assert outcomes([caller]) == ["served"]
    assert len(server.open) == 2  # The detached one is no longer the pool's.


@in_virtual_time
async def test_listener_that_refuses_a_connection_gets_another() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    await give(await take(pool))
    refuse = [True]

    @event.listens_for(pool, "checkout")
    def check(*_: object) -> None:
        if refuse.pop() if refuse else False:
            raise exc.DisconnectionError

    await give(await take(pool))
    await settle()

    assert pool.snapshot().idle == len(server.open) == 1
    assert pool.snapshot().in_use == 0


@in_virtual_time
async def test_listener_that_fails_frees_the_place() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)

    @event.listens_for(pool, "checkout")
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await take(pool)
    await settle()

    assert pool.snapshot().in_use == 0
    assert server.open == set()


# Start and stop


@in_virtual_time
async def test_warm_opens_connections_in_parallel() -> None:
    server = FakeServer()
    server.latency = 1.0
    pool = server.pool(pool_size=10)
    began = asyncio.get_running_loop().time()

    assert await pool.warm(10, deadline=5) == 10

    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
    assert server.accepted == 10


@in_virtual_time
async def test_warm_waits_for_a_server_that_starts_later() -> None:
    server = FakeServer()
    server.refusal = OSError("not yet")
    pool = server.pool(pool_size=5)
    warming = asyncio.create_task(pool.warm(5, deadline=10))
    await asyncio.sleep(4)

    server.refusal = None

    assert await warming == 5
    assert server.accepted == 5


@in_virtual_time
async def test_warm_says_at_its_deadline_what_is_wrong() -> None:
    server = FakeServer()
    server.refusal = OSError("no such host")
    pool = server.pool(pool_size=5)

    with pytest.raises(Unreachable, match="primary: cannot connect: OSError: no such host") as told:
        await pool.warm(5, deadline=10)

    assert told.value.__cause__ is server.refusal
    server.refusal = None
    await asyncio.sleep(3)
    assert pool.snapshot().idle == 5  # It goes on in the background.


@in_virtual_time
async def test_lost_connections_are_replaced_before_anybody_asks() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5, keepalive=10)
    await pool.warm(3, deadline=1)

    server.kill_all()
    await asyncio.sleep(11)

    assert pool.snapshot().idle == len(server.open) == 3


@in_virtual_time
async def test_drain_gives_holders_their_time() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3)
    held = [await take(pool) for _ in range(3)]
    await give(held.pop())
    draining = asyncio.create_task(pool.drain(10))
    await asyncio.sleep(1)
    assert len(server.open) == 2

    for connection in held:
        await asyncio.sleep(1)
        await give(connection)

    assert await draining == []
    assert server.open == set()
    assert server.goodbyes == 3


@in_virtual_time
async def test_drain_takes_the_connections_of_those_who_keep_them() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3)
    held = [await take(pool) for _ in range(2)]

    assert len(await pool.drain(5)) == 2

    assert server.open == set()
    for connection in held:
        await give(connection)  # Too late, and harmless.
    await settle()
    assert pool.snapshot().in_use == 0


@in_virtual_time
async def test_drain_is_not_delayed_by_a_frozen_server() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=4, max_overflow=1)
    held = [await take(pool) for _ in range(4)]
    await give(held.pop())
    server.freeze()
    callers = await queue(pool, 2)  # The one idle connection, and one to be opened.
    began = asyncio.get_running_loop().time()

    assert len(await pool.drain(3)) == 4

    assert asyncio.get_running_loop().time() - began == pytest.approx(3.0)
    assert server.open == set()
    assert outcomes(callers) == ["served", "PoolClosed"]


@in_virtual_time
async def test_dispose_closes_the_idle_connections_all_at_once() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    await pool.warm(5, deadline=1)
    server.freeze()
    began = asyncio.get_running_loop().time()

    await greenlet_spawn(pool.dispose)

    assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)
    assert server.open == set()


@in_virtual_time
async def test_disposed_pool_serves_its_waiters_and_closes_what_is_returned() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=1)
    held = await take(pool)
    callers = await queue(pool, 2)

    await greenlet_spawn(pool.dispose)
    await give(held)
    await settle()
    assert outcomes(callers) == ["served", "waiting"]
    await give(await callers[0])
    await give(await callers[1])
    await settle()

    assert server.open == set()
    assert pool.snapshot().in_use == 0


@in_virtual_time
async def test_recreated_pool_keeps_the_options_and_the_counters() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=3, max_overflow=2, keepalive=17)
    pool.resize(pool_size=4, max_overflow=1)
    await give(await take(pool))

    again = pool.recreate()

    assert again.settings == pool.settings
    assert again.settings.pool_size == 4
    assert again.name == "primary"
    assert again.snapshot().connects == 1
    assert again.snapshot().idle == 0


@in_virtual_time
async def test_recreated_pool_keeps_min_ready_open_from_its_first_use_on() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=5)
    await pool.warm(3, deadline=1)
    await greenlet_spawn(pool.dispose)

    again = pool.recreate()
    await give(await take(again))
    await asyncio.sleep(1)

    assert again.min_ready == again.snapshot().idle == len(server.open) == 3


@in_virtual_time
async def test_pool_that_is_dropped_leaves_no_timer_behind() -> None:
    server = FakeServer()
    pool = server.pool(pool_size=2, keepalive=10)
    await give(await take(pool))
    gone = weakref.ref(pool)
    await settle()

    del pool
    taken.clear()
    gc.collect()

    assert gone() is None
    await asyncio.sleep(60)
    assert server.pings == 0


@in_virtual_time
async def test_background_work_runs_in_no_callers_context() -> None:
    request = ContextVar("request", default="none")
    seen: list[str] = []
    pool = FakeServer().pool()

    @event.listens_for(pool, "connect")
    def note(*_: object) -> None:
        seen.append(request.get())

    request.set("GET /")
    await take(pool)

    assert seen == ["none"]
