"""Everything that can happen to a pool, in any order, and what must hold all the same."""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from math import inf
from typing import Any

from dbkit.errors import Unreachable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from pool_fakes import Caller, FakeServer, give, outcome, settle, take, virtual_time
from sqlalchemy import event
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

INDEX = st.integers(0, 100)  # Of a caller or a connection, modulo how many there are.


class PoolMachine(RuleBasedStateMachine):
    """Callers come, leave, hold and return, while the server and the operator do their worst."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.runner = self.stack.enter_context(virtual_time())
        self.server = FakeServer()
        self.callers: list[Caller] = []  # In the order in which they came.
        self.held: list[PoolProxiedConnection] = []
        self.drained = False
        self.failing_connects = 0

    @initialize(
        pool_size=st.integers(1, 3),
        max_overflow=st.integers(0, 2),
        queue_target=st.sampled_from([0, 0.05]),
        keepalive=st.sampled_from([0, 3.0]),
        pool_recycle=st.sampled_from([inf, 4.0]),
        ping_after=st.sampled_from([0.0, 1.0]),
        breaker_threshold=st.sampled_from([1, 3]),
    )
    def open(self, pool_size: int, max_overflow: int, **options: Any) -> None:
        self.pool = self.server.pool(
            pool_size=pool_size,
            max_overflow=max_overflow,
            idle_timeout=2,
            pool_timeout=5,
            connect_timeout=2,
            **options,
        )
        self.allowed = pool_size + max_overflow
        event.listen(self.pool, "connect", self.on_connect)

    def on_connect(self, *_: object) -> None:
        """Ask the server, as those do that set a session up."""
        await_only(asyncio.sleep(0))
        if self.failing_connects:
            self.failing_connects -= 1
            raise OSError

    def run(self, *work: Coroutine[Any, Any, Any]) -> None:
        async def all_of_it() -> None:
            for each in work:
                await each
            await settle()

        self.runner.run(all_of_it())
        self.collect()

    def collect(self) -> None:
        """See who was served since, and who was not."""
        outcomes = [outcome(caller) for caller in self.callers]
        if "waiting" in outcomes:
            after_a_waiter = outcomes[outcomes.index("waiting") :]
            assert "served" not in after_a_waiter, "a newcomer was served before a waiter"
        self.held += [c.result() for c in self.callers if outcome(c) == "served"]
        self.callers = [c for c in self.callers if outcome(c) == "waiting"]

    async def arrive(self) -> None:
        self.callers.append(asyncio.create_task(take(self.pool)))

    # Callers

    @rule()
    def caller_comes(self) -> None:
        self.run(self.arrive())

    @rule(count=st.integers(2, 6))
    def callers_come_at_once(self, count: int) -> None:
        self.run(*(self.arrive() for _ in range(count)))

    @precondition(lambda self: self.callers)
    @rule(index=INDEX)
    def caller_leaves(self, index: int) -> None:
        self.callers[index % len(self.callers)].cancel()
        self.run()

    @rule(steps=st.integers(0, 12))
    def caller_comes_and_leaves(self, steps: int) -> None:
        async def come_and_leave() -> None:
            await self.arrive()
            for _ in range(steps):  # Before its connect, in it, when it is handed out, after.
                await asyncio.sleep(0)
            self.callers[-1].cancel()

        self.run(come_and_leave())

    @rule(count=st.integers(1, 3))
    def caller_comes_and_connections_are_not_set_up(self, count: int) -> None:
        self.failing_connects = count
        self.run(self.arrive())

    @precondition(lambda self: self.held)
    @rule(index=INDEX)
    def connection_is_returned(self, index: int) -> None:
        self.run(give(self.held.pop(index % len(self.held))))

    @precondition(lambda self: self.held and self.callers)
    @rule(index=INDEX, leaves=INDEX)
    def connection_is_returned_as_a_caller_leaves(self, index: int, leaves: int) -> None:
        async def at_once() -> None:
            await give(self.held.pop(index % len(self.held)))
            self.callers[leaves % len(self.callers)].cancel()

        self.run(at_once())

    @precondition(lambda self: self.held)
    @rule(index=INDEX, soft=st.booleans())
    def connection_is_invalidated(self, index: int, *, soft: bool) -> None:
        async def invalidate() -> None:
            connection = self.held.pop(index % len(self.held))
            await greenlet_spawn(connection.invalidate, soft=soft)
            if soft:
                await give(connection)

        self.run(invalidate())

    @precondition(lambda self: self.held)
    @rule(index=INDEX)
    def statement_finds_its_connection_lost(self, index: int) -> None:
        async def lose() -> None:
            connection = self.held.pop(index % len(self.held))
            await greenlet_spawn(self.pool._invalidate, connection, OSError())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

        self.run(lose())

    @precondition(lambda self: self.held)
    @rule(index=INDEX, steps=st.integers(1, 8))
    def caller_leaves_as_its_connection_is_lost(self, index: int, steps: int) -> None:
        connection = self.held.pop(index % len(self.held))

        async def leave() -> None:
            loses = asyncio.create_task(greenlet_spawn(connection.invalidate))
            for _ in range(steps):
                await asyncio.sleep(0)
            loses.cancel()
            await asyncio.wait([loses])
            if connection.is_valid:
                await give(connection)

        self.run(leave())

    # The server

    @rule(refuses=st.booleans(), answers=st.booleans())
    def server_refuses_or_accepts(self, *, refuses: bool, answers: bool) -> None:
        self.server.refusal = (Full() if answers else OSError("no route")) if refuses else None
        self.run()

    @rule(latency=st.sampled_from([0.0, 0.03, 1.0]))
    def server_takes_its_time(self, latency: float) -> None:
        self.server.latency = latency
        self.run()

    @rule()
    def server_closes_every_connection(self) -> None:
        self.server.kill_all()
        self.run()

    @rule(index=INDEX)
    def network_forgets_a_connection(self, index: int) -> None:
        for connection in self.server.open:
            connection.dead = connection.number % 5 == index % 5
        self.run()

    @rule()
    def server_freezes(self) -> None:
        self.server.freeze()
        self.run()

    @rule()
    def server_thaws(self) -> None:
        self.server.thaw()
        self.run()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.6, 1.1, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # The operator

    @rule(pool_size=st.integers(1, 4), max_overflow=st.integers(0, 2))
    def pool_is_resized(self, pool_size: int, max_overflow: int) -> None:
        async def resize() -> None:
            self.pool.resize(pool_size, max_overflow)

        self.run(resize())

    @rule()
    def pool_is_suspended(self) -> None:
        self.pool.suspend()
        self.run()

    @rule()
    def pool_is_resumed(self) -> None:
        async def resume() -> None:
            self.pool.resume()

        self.run(resume())

    @rule()
    def connections_are_suspected(self) -> None:
        async def suspect() -> None:
            self.pool.suspect()

        self.run(suspect())

    @rule(within=st.sampled_from([0.0, 3.0]))
    def connections_are_retired(self, within: float) -> None:
        async def retire() -> None:
            self.pool.retire(within=within)

        self.run(retire())

    @rule()
    def server_answers_the_probe(self) -> None:
        async def retry() -> None:
            self.pool.retry()

        self.run(retry())

    @precondition(lambda self: not self.drained and not self.callers and not self.held)
    @rule()
    def pool_is_replaced(self) -> None:
        # What is being opened or pinged is closed after that, within the timeouts.
        self.run(greenlet_spawn(self.pool.dispose), asyncio.sleep(5))
        assert not self.server.open
        self.pool = self.pool.recreate()

    @precondition(lambda self: not self.drained)
    @rule(min_ready=st.integers(0, 3))
    def pool_is_warmed(self, min_ready: int) -> None:
        async def warm() -> None:
            with suppress(Unreachable):
                await self.pool.warm(min_ready, 0.05)

        self.run(warm())

    @precondition(lambda self: not self.drained)
    @rule(timeout=st.sampled_from([0.0, 1.0]))
    def pool_is_drained(self, timeout: float) -> None:
        self.drained = True
        self.run(self.pool.drain(timeout))
        assert not self.server.open
        assert not self.callers

    # What holds at any time

    @invariant()
    def limit_is_kept(self) -> None:
        status = self.pool.snapshot()
        exists = len(self.server.open) + status.connecting
        self.allowed = max(status.limit, min(self.allowed, exists))
        assert exists <= self.allowed

    @invariant()
    def every_place_is_accounted_for(self) -> None:
        status = self.pool.snapshot()
        assert status.waiting == len(self.callers)
        assert status.in_use == (0 if self.drained else len(self.held))
        assert status.closed == self.drained
        assert status.breaker != "probing" or status.connecting or self.drained

    @invariant()
    def nobody_waits_beside_a_free_connection(self) -> None:
        status = self.pool.snapshot()
        if self.callers and not status.suspended:
            assert status.in_use + status.connecting + status.idle + status.closing > 0

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "pool"):
                self.end_well()

    def end_well(self) -> None:
        """Once all is well again, whoever waits is served or told, and nothing is left behind."""

        async def all_is_well() -> None:
            self.failing_connects = 0
            self.server.refusal = None
            self.server.latency = 0
            self.server.thaw()
            self.pool.resume()
            for _ in range(200):  # Far less time than the timeout.
                while self.held:
                    await give(self.held.pop())
                await asyncio.sleep(0.02)
                self.collect()

        self.run(all_is_well())
        status = self.pool.snapshot()
        assert not self.callers
        assert (status.in_use, status.waiting) == (0, 0)
        self.run(self.pool.drain(1))
        assert not self.server.open


class Full(Exception):
    """The server answers that it has no connection left."""

    sqlstate = "53300"


PoolMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
test_pool_keeps_its_promises_whatever_happens = PoolMachine.TestCase
