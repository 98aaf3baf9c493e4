"""The pool: fair to its waiters, quick to refuse, and patient with nobody's dead connection.

Callers never open, ping or close a connection. They take an idle one, or wait in the queue for
the next that becomes ready, whichever way: returned by somebody, opened, or proved alive by a
ping. Tasks of the pool's own open, ping and close; so a caller that is cancelled loses nothing,
and each failure is noticed in one place, which looks after the waiters.

This is the only module that touches the contract between `sqlalchemy.pool.Pool` and its
subclasses; `tests/dbkit/test_pool_contract.py` holds SQLAlchemy to it.
"""

import asyncio
import logging
import random
import weakref
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from dataclasses import asdict
from math import inf
from time import monotonic
from typing import Any, cast

from sqlalchemy import Dialect, exc
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from .breaker import Breaker
from .errors import PoolClosed, PoolOverloaded, PoolTimeout, Unreachable
from .slots import Slot, closed_check, ping
from .sqlstates import sqlstate
from .status import Counters, PoolStatus, overloaded, timed_out, unreachable
from .waiters import Waiter, WaitQueue

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds that the server is given to close a connection before its socket is."""
LIFETIME_JITTER = 0.2
"""Part of `recycle` by which lifetimes differ: what opened together does not expire together."""
QUIET = 5.0
"""Seconds without anybody turned away after which an overload is over."""


class FairPool(Pool):
    """A pool of `pool_size` connections, and up to `max_overflow` more under pressure.

    Connections are opened when they are needed; the one used last is used first. Callers are
    served strictly in the order in which they came. Arguments are seconds or counts:

    * `timeout`: a caller waits no longer than this (`PoolTimeout`);
    * `recycle`: a connection is replaced after this long, less up to a fifth; -1 is never;
    * `queue_target`, `queue_interval`: while even the shortest wait of an interval is above the
      target, callers that have waited twice the target are turned away (`PoolOverloaded`);
      a target of None turns nobody away;
    * `max_waiting`: so many may wait, the next is turned away at once; None is any number;
    * `idle_timeout`: connections beyond `pool_size` are closed when unused for this long;
    * `keepalive`: idle connections are pinged this often; None is never;
    * `ping_after`: a connection unused for this long is pinged before it is handed out;
    * `ping_timeout`, `connect_timeout`: when a ping, or an attempt to connect, has failed;
    * `breaker_threshold`: after so many failures in a row nothing is asked of the server for a
      moment, and callers are told at once (`Unreachable`);
    * `env_prefix`: begins the names of the environment variables in messages.

    A pool serves one event loop at a time; connections are left behind with a loop that ended.
    """

    _is_asyncio = True

    # Not keyword-only: create_engine() finds the arguments of a pool among the positional ones.
    def __init__(
        self,
        creator: Any,
        pool_size: int = 10,
        max_overflow: int = 0,
        timeout: float = 5.0,
        recycle: float = 1800.0,
        queue_target: float | None = 0.05,
        queue_interval: float = 0.5,
        max_waiting: int | None = None,
        idle_timeout: float = 60.0,
        keepalive: float | None = 30.0,
        ping_after: float = 1.0,
        ping_timeout: float = 1.0,
        connect_timeout: float = 5.0,
        breaker_threshold: int = 3,
        env_prefix: str = "DATABASE_",
        **base: Any,
    ) -> None:
        # SQLAlchemy's own recycling would connect on the request path: it stays off.
        super().__init__(creator, recycle=-1, **base)
        self._check_size(pool_size, max_overflow)
        self.pool_size = pool_size
        self.max_overflow = max_overflow
        self.pool_timeout = timeout
        self.pool_recycle = recycle
        self.max_waiting = max_waiting
        self.idle_timeout = idle_timeout
        self.keepalive = keepalive
        self.ping_after = ping_after
        self.ping_timeout = ping_timeout
        self.connect_timeout = connect_timeout
        self.env_prefix = env_prefix

        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue = WaitQueue(queue_target, queue_interval)
        self._breaker = Breaker(breaker_threshold)
        self._counters = Counters()
        # Every open connection is in _slots; one that is in none of the others is in use.
        self._slots: dict[ConnectionPoolEntry, Slot] = {}
        self._idle: deque[Slot] = deque()  # The one used last is at the right.
        self._pinging: set[Slot] = set()
        self._closing: set[Slot] = set()
        self._connects: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._min_ready = 0
        self._suspected_at = -inf
        self._suspended = False
        self._closed = False
        self._disposed = False
        self._overload: tuple[float, float, int] | None = None

    # The contract with sqlalchemy.pool.Pool

    def _do_get(self) -> ConnectionPoolEntry:
        idle = self._idle
        if idle and not self._queue and not self._suspended:
            slot = idle[-1]
            now = monotonic()
            if (
                now - slot.contact < self.ping_after
                and not slot.is_closed()
                and self._loop is get_running_loop()
            ):
                idle.pop()
                slot.taken = now
                return slot.record
        return await_only(self._wait()).record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        slot = self._slots.get(record)
        if slot is None or record.dbapi_connection is not slot.connection:
            self._return_other(record)
            return
        slot.used = slot.contact = now = monotonic()
        if record._is_hard_or_soft_invalidated() or slot.is_closed():
            self._lose(slot)
        elif now >= slot.expires:
            self._retire(slot)
        elif slot.taken <= self._suspected_at:
            self._ping(slot)
        elif self._queue:
            self._offer(slot, now)
        else:
            self._idle.append(slot)
            if "tend" not in self._timers:
                self._tend_later()

    def _return_other(self, record: ConnectionPoolEntry) -> None:
        """Take back a record whose connection is gone, replaced, or from another loop.

        The garbage collector comes here from any thread, and between any two steps of this
        module: so nothing is done before the loop's next turn.
        """
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop has ended, and its connections with it.
                self._loop.call_soon_threadsafe(self._settle_other, record, context=Context())

    def _settle_other(self, record: ConnectionPoolEntry) -> None:
        slot = self._slots.pop(record, None)
        if record.dbapi_connection is None:
            self._counters.lost += slot is not None
        elif slot is None:
            self._hang_up(record)
        else:  # A listener raised DisconnectionError at checkout, and SQLAlchemy reconnected.
            self._offer(self._admit(record), monotonic())
        self._settle()

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,  # noqa: FBT001, FBT002: SQLAlchemy's signature.
    ) -> None:
        # SQLAlchemy would have every connection reconnect, each on the path of a request.
        self.suspect()
        if _checkin and connection.is_valid:
            connection.invalidate(exception)

    def recreate(self) -> "FairPool":
        """Return a new pool with the same settings, and the counters of this one."""
        pool = type(self)(
            self._creator,
            pool_size=self.pool_size,
            max_overflow=self.max_overflow,
            timeout=self.pool_timeout,
            recycle=self.pool_recycle,
            queue_target=self._queue.target,
            queue_interval=self._queue.interval,
            max_waiting=self.max_waiting,
            idle_timeout=self.idle_timeout,
            keepalive=self.keepalive,
            ping_after=self.ping_after,
            ping_timeout=self.ping_timeout,
            connect_timeout=self.connect_timeout,
            breaker_threshold=self._breaker.threshold,
            env_prefix=self.env_prefix,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )
        pool._counters = self._counters
        return pool

    def dispose(self) -> None:
        """Close the idle connections, and the others as they are returned.

        Callers that wait are still served: the engine already sends new ones to its new pool.
        """
        self._disposed = True
        self._stop_timers("tend", "probe")
        self._expire_in_use()
        self._breaker.succeed()
        idle = self._take_idle()
        if in_greenlet():
            for slot in idle:
                self._retire(slot)
            await_only(self._until(lambda: not self._closing))
        else:
            for slot in idle:
                self._drop(slot)

    def status(self) -> str:
        """Describe the pool in a line."""
        return f"{self.name}: {self.snapshot()}"

    def size(self) -> int:
        """Return the number of connections that are kept."""
        return self.pool_size

    def checkedin(self) -> int:
        """Return the number of connections that are open and not in use."""
        return len(self._slots) - self._in_use

    def checkedout(self) -> int:
        """Return the number of connections in use."""
        return self._in_use

    def overflow(self) -> int:
        """Return the number of connections open beyond `pool_size`."""
        return max(len(self._slots) - self.pool_size, 0)

    def timeout(self) -> float:
        """Return the seconds that a caller waits at the most."""
        return self.pool_timeout

    # Operations

    @property
    def name(self) -> str:
        """The database's name, as given by `logging_name`."""
        return self._orig_logging_name or "database"

    def snapshot(self) -> PoolStatus:
        """Return the state in numbers."""
        oldest = self._queue.oldest()
        return PoolStatus(
            name=self.name,
            pool_size=self.pool_size,
            max_overflow=self.max_overflow,
            in_use=self._in_use,
            idle=len(self._idle) + len(self._pinging),
            connecting=len(self._connects),
            waiting=len(self._queue),
            oldest_wait=monotonic() - oldest.since if oldest else 0.0,
            breaker=self._breaker.state,
            suspended=self._suspended,
            closed=self._closed,
            **asdict(self._counters),
        )

    def suspect(self) -> None:
        """Ping each connection before its next use: one has just failed somebody.

        To be called for a failure that SQLAlchemy does not take for a disconnect. Idle
        connections are pinged now, in the background; the others when they are returned.
        """
        self._suspected_at = monotonic()
        for slot in self._take_idle():
            self._ping(slot)

    def retire(self) -> None:
        """Replace every connection: idle ones now, the others when they are returned.

        For a server whose role has changed (SQLSTATE 25006), and for new credentials: such
        connections still answer a ping.
        """
        self._expire_in_use()
        for slot in self._take_idle():
            self._retire(slot)

    def suspend(self) -> None:
        """Hand out nothing until `resume`; callers wait, for `timeout` at the most."""
        self._suspended = True

    def resume(self) -> None:
        """Hand out connections again."""
        self._suspended = False
        self._settle()

    def resize(self, pool_size: int, max_overflow: int) -> None:
        """Change the limits; connections beyond them are closed, or will be at their return."""
        self._check_size(pool_size, max_overflow)
        self.pool_size = pool_size
        self.max_overflow = max_overflow
        surplus = self._open - self._limit
        while surplus > 0 and self._idle:
            self._retire(self._idle.popleft())
            surplus -= 1
        self._expire_in_use(surplus)
        self._settle()

    async def warm(self, min_ready: int, deadline: float) -> int:
        """Open connections until `min_ready` are ready, and keep so many from now on.

        Attempts that fail are made again, with pauses, until `deadline` seconds have passed:
        then `Unreachable`. Returns the number of connections that are open.
        """
        loop = self._attach()
        self._min_ready = min(min_ready, self.pool_size)
        self._settle()
        await self._until(lambda: len(self._slots) >= self._min_ready, deadline)
        if len(self._slots) < self._min_ready:
            raise self._unreachable() from self._breaker.error
        return len(self._slots)

    async def drain(self, timeout: float) -> int:
        """Hand out nothing more, give holders `timeout` seconds, and close every connection.

        Callers that wait are told at once (`PoolClosed`). What is not closed in time loses its
        socket, so a server that does not answer cannot delay this. Returns the number of
        connections that were taken from their holders.
        """
        self._attach()
        self._closed = True
        self._stop_timers(*self._timers)
        while waiter := self._queue.serve(monotonic()):
            waiter.future.set_exception(self._is_closed())
        for task in self._connects:
            task.cancel()
        self.retire()
        await self._until(lambda: not self._slots and not self._tasks, timeout)
        cut = self._in_use
        for slot in tuple(self._slots.values()):
            self._drop(slot)
        for task in self._tasks:
            task.cancel()
        await asyncio.sleep(0)
        return cut

    # The queue

    async def _wait(self) -> Slot:
        loop = self._attach()
        began = monotonic()
        self._admit_caller()
        waiter = Waiter(loop.create_future(), began)
        self._queue.join(waiter)
        self._watch_queue(began)
        self._settle()
        try:
            slot = await waiter.future
        except BaseException:
            self._leave(waiter)
            raise
        self._counters.waits += 1
        self._counters.wait_seconds += monotonic() - began
        return slot
