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
from sqlalchemy.util.concurrency import in_greenlet

from .breaker import Breaker
from .errors import PoolClosed, PoolOverloaded, PoolTimeout, Unreachable
from .slots import Slot, closed_check, ping
from .sqlstates import sqlstate
from .status import Counters, Overload, PoolStatus, overloaded, timed_out, unreachable
from .waiters import Waiter, WaitQueue

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds that the server is given to close a connection before its socket is."""
LIFETIME_JITTER = 0.2
"""Part of `recycle` by which lifetimes differ: what opened together does not expire together."""
LONGEST_REST = 30.0
"""Seconds between two looks at the idle connections, at the most."""
REFILL_DELAY = 0.1
"""Seconds after which a connection that was lost is replaced, where nobody waits for it."""
QUIET = 5.0
"""Seconds without anybody turned away after which an overload is over."""


class FairPool(Pool):
    """A pool of `pool_size` connections, and up to `max_overflow` more under pressure.

    Connections are opened when they are needed; the one used last is used first. Callers are
    served strictly in the order in which they came. Arguments are counts and seconds:

    * `timeout`: a caller waits no longer than this (`PoolTimeout`);
    * `recycle`: a connection is replaced after this long, less up to a fifth; -1 is never;
    * `queue_target`, `queue_interval`: while even the shortest wait of an interval is above the
      target, callers that have waited for twice the target are turned away (`PoolOverloaded`);
      with a target of None nobody is;
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

    _is_asyncio = True  # pyright: ignore[reportAssignmentType] - as SQLAlchemy's own pools do

    # Not keyword-only: create_engine() finds the arguments of a pool among the positional ones.
    def __init__(  # noqa: PLR0917
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
        check_size(pool_size, max_overflow)
        # SQLAlchemy's own recycling would connect on the request path: it stays off.
        super().__init__(creator, recycle=-1, **base)
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

        self._queue = WaitQueue(queue_target, queue_interval)
        self._breaker = Breaker(breaker_threshold)
        self._counters = Counters()
        self._overload: Overload | None = None
        self._min_ready = 0
        self._suspected_at = -inf
        self._suspended = False
        self._closed = False
        self._disposed = False
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._forget_everything()

    def _forget_everything(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # Every open connection is a slot; one that is in none of the next three is in use.
        self._slots: dict[ConnectionPoolEntry, Slot] = {}
        self._idle: deque[Slot] = deque()  # In the order of their last use.
        self._pinging: set[Slot] = set()
        self._closing: set[Slot] = set()
        self._connects: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

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
        if cast("Any", record)._is_hard_or_soft_invalidated() or slot.is_closed():  # noqa: SLF001
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
                self._tend_later(now)

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
        _checkin: bool = True,
    ) -> None:
        # SQLAlchemy's own has every connection reconnect, each on the path of a request.
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
        pool._counters = self._counters  # noqa: SLF001 - one of us
        return pool

    def dispose(self) -> None:
        """Close the idle connections now, and the others at their return.

        Callers that wait are still served; new ones go to the pool that replaces this one.
        """
        self._disposed = True
        self._stop_timers("tend", "refill", "probe")
        self._breaker.succeed()
        self._expire_in_use()
        if in_greenlet():
            await_only(self._close_idle())
        else:
            for slot in self._take_idle():
                self._drop(slot)

    async def _close_idle(self) -> None:
        self._attach()
        for slot in self._take_idle():
            self._retire(slot)
        await self._until(lambda: not self._closing)

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
        """The name of the database: `logging_name`."""
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
        """Ping every connection before it is used again: one has just failed somebody.

        To be called for a failure that SQLAlchemy does not take for a disconnect. Idle
        connections are pinged now, in the background; the others at their return.
        """
        self._suspected_at = monotonic()
        for slot in self._take_idle():
            self._ping(slot)

    def retire(self) -> None:
        """Replace every connection: idle ones now, the others at their return.

        For a server whose role has changed (SQLSTATE 25006) and for new credentials: such
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
        self._queue.restart(monotonic())
        self._settle()

    def resize(self, pool_size: int, max_overflow: int) -> None:
        """Change the limit; connections beyond it are closed, now or at their return."""
        check_size(pool_size, max_overflow)
        self.pool_size = pool_size
        self.max_overflow = max_overflow
        surplus = self._open - len(self._closing) - self._limit
        while surplus > 0 and self._idle:
            self._retire(self._idle.popleft())
            surplus -= 1
        self._expire_in_use(surplus)
        self._settle()

    async def warm(self, min_ready: int, deadline: float) -> int:
        """Open connections until `min_ready` are open, and keep so many from now on.

        What fails is tried again until `deadline` seconds have passed: then `Unreachable`, and
        the pool goes on trying in the background. Returns how many connections are open.
        """
        self._attach()
        self._min_ready = min(min_ready, self.pool_size)
        self._refill()
        await self._until(lambda: len(self._slots) >= self._min_ready, deadline)
        if len(self._slots) < self._min_ready:
            raise self._unreachable(monotonic())
        return len(self._slots)

    async def drain(self, timeout: float) -> int:
        """Hand out nothing more, give holders `timeout` seconds, and close every connection.

        Callers that wait are told at once (`PoolClosed`). What is not closed in time has its
        socket cut, so that a server which does not answer delays nothing. Returns how many
        connections were taken from their holders.
        """
        self._attach()
        self._closed = True
        self._stop_timers(*self._timers)
        while waiter := self._queue.serve(monotonic()):
            waiter.future.set_exception(self._draining())
        for task in self._connects:
            task.cancel()
        self.retire()
        await self._until(lambda: not self._slots and not self._connects, timeout)
        taken = self._in_use
        for slot in tuple(self._slots.values()):
            self._drop(slot)
        if tasks := tuple(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
        return taken

    # The queue

    async def _wait(self) -> Slot:
        loop = self._attach()
        now = monotonic()
        if self._closed:
            raise self._draining()
        if self._hopeless():
            self._counters.refused += 1
            raise self._unreachable(now)
        if self.max_waiting is not None and len(self._queue) >= self.max_waiting:
            raise self._overloaded(now, waited=0.0)
        waiter = Waiter(loop.create_future(), now)
        self._queue.join(waiter)
        self._check_queue_later(now)
        self._settle()
        try:
            slot = await waiter.future
        except BaseException:
            self._leave(waiter)
            raise
        self._counters.waits += 1
        self._counters.wait_seconds += monotonic() - now
        return slot

    def _leave(self, waiter: Waiter) -> None:
        """See off a caller that gave up; what it was given in the meantime is passed on."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self._offer(future.result(), monotonic())
        else:
            self._queue.leave(waiter)

    def _offer(self, slot: Slot, now: float) -> None:
        """Hand a connection to the oldest waiter, or keep it."""
        if not self._suspended:
            for waiter in self._queue.shed(now):
                self._turn_away(waiter, now)
            if waiter := self._queue.serve(now):
                slot.taken = now
                waiter.future.set_result(slot)
                return
        if now >= slot.expires:
            self._retire(slot)
            return
        if self._idle and slot.used < self._idle[-1].used:
            self._idle.appendleft(slot)  # It was pinged while unused, and stays behind the others.
        else:
            self._idle.append(slot)
        self._tend_later(now)

    def _check_queue_later(self, now: float) -> None:
        if oldest := self._queue.oldest():
            times_out = oldest.since + self.pool_timeout - now
            self._later("queue", min(self._queue.due(now), times_out), self._check_queue)

    def _check_queue(self) -> None:
        now = monotonic()
        for waiter in self._queue.expire(now, self.pool_timeout):
            self._turn_away(waiter, now, late=True)
        # A first connect may be slow: that is no overload. Without a failure it has its time.
        if not self._suspended and (self._in_use or self._breaker.failures):
            for waiter in self._queue.shed(now):
                self._turn_away(waiter, now)
        self._check_queue_later(now)

    def _turn_away(self, waiter: Waiter, now: float, *, late: bool = False) -> None:
        """Tell a waiter that it will not be served, and whether the pool or the server is why."""
        if not self._in_use and not self._suspended:
            self._counters.refused += 1
            waiter.future.set_exception(self._unreachable(now))
        elif late:
            self._counters.timeouts += 1
            self._note_overload(now)
            text = timed_out(self.snapshot(), self.pool_timeout, self.env_prefix)
            waiter.future.set_exception(PoolTimeout(text))
        else:
            waiter.future.set_exception(self._overloaded(now, now - waiter.since))

    def _overloaded(self, now: float, waited: float) -> PoolOverloaded:
        self._counters.shed += 1
        self._note_overload(now)
        return PoolOverloaded(overloaded(self.snapshot(), waited, self.env_prefix))

    def _unreachable(self, now: float) -> Unreachable:
        text = unreachable(self.snapshot(), self._breaker, now, self.env_prefix)
        error = Unreachable(text, retry_after=self._breaker.retry_after(now))
        error.__cause__ = self._breaker.error
        return error

    def _draining(self) -> PoolClosed:
        return PoolClosed(f"{self.name}: the pool is closed, the service stops: {self.snapshot()}")

    def _note_overload(self, now: float) -> None:
        """Log the first that is turned away, and the end; not each request in between."""
        if self._overload is None:
            self._overload = Overload(began=now)
            logger.warning("%s: overloaded: %s", self.name, self.snapshot())
            self._later("quiet", QUIET, self._check_quiet)
        self._overload.last = now
        self._overload.turned_away += 1

    def _check_quiet(self) -> None:
        if (overload := self._overload) is None:
            return
        if (rest := overload.last + QUIET - monotonic()) > 0:
            self._later("quiet", rest, self._check_quiet)
            return
        self._overload = None
        logger.warning(
            "%s: no longer overloaded: %d callers were turned away in %.1f s: %s",
            self.name,
            overload.turned_away,
            overload.last - overload.began,
            self.snapshot(),
        )

    # Connections: opened, pinged, retired, lost

    @property
    def _limit(self) -> int:
        return self.pool_size + self.max_overflow

    @property
    def _open(self) -> int:
        return len(self._slots) + len(self._connects)

    @property
    def _in_use(self) -> int:
        return len(self._slots) - len(self._idle) - len(self._pinging) - len(self._closing)

    def _hopeless(self) -> bool:
        """Whether callers would wait in vain: nothing is asked for, and nothing can come back.

        A server that answers, if only with "too many connections", will let holders finish.
        """
        silent = self._breaker.error is None or sqlstate(self._breaker.error) is None
        return self._breaker.state != "closed" and not self._idle and (silent or not self._in_use)

    def _settle(self) -> None:
        """After anything changed: look after the waiters, and after whoever watches."""
        now = monotonic()
        if self._hopeless():
            while waiter := self._queue.serve(now):
                self._counters.refused += 1
                waiter.future.set_exception(self._unreachable(now))
        elif not self._suspended and self._queue.oldest():
            self._supply(now)
        if len(self._slots) < self._min_ready and not self._closed and not self._disposed:
            self._later("refill", REFILL_DELAY, self._refill)
        for condition, future in self._watchers:
            if not future.done() and condition():
                future.set_result(None)

    def _supply(self, now: float) -> None:
        """Set to work, for each waiter, an idle connection or an attempt to connect."""

        def wanted() -> bool:
            return len(self._queue) > len(self._pinging) + len(self._connects)

        while wanted() and self._idle:
            slot = self._idle.pop()
            if slot.is_closed():
                self._lose(slot)
            elif now - slot.contact < self.ping_after:
                self._offer(slot, now)
            else:
                self._ping(slot)
        while wanted() and self._may_connect():
            self._start_connect()

    def _refill(self) -> None:
        while self._open - len(self._closing) < self._min_ready and self._may_connect():
            self._start_connect()

    def _may_connect(self) -> bool:
        return self._breaker.state == "closed" and self._open < self._limit and not self._closed

    def _start_connect(self) -> None:
        self._connects.add(self._spawn(self._connect()))

    async def _connect(self) -> None:
        began = monotonic()
        try:
            async with asyncio.timeout(self.connect_timeout):
                record = await greenlet_spawn(self._create_connection)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            self._end_connect()
            self._connect_failed(error)
        except BaseException:
            self._end_connect()
            raise
        else:
            self._end_connect()
            self._counters.connects += 1
            self._counters.connect_seconds += monotonic() - began
            self._note_answer()
            self._offer(self._admit(record), monotonic())
        finally:
            self._settle()

    def _end_connect(self) -> None:
        self._connects.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _connect_failed(self, error: Exception) -> None:
        now = monotonic()
        self._counters.connect_errors += 1
        if isinstance(error, TimeoutError) and not str(error):
            error = TimeoutError(f"no answer within {self.connect_timeout:g} s")
        if self._breaker.fail(error, now):
            reason = unreachable(self.snapshot(), self._breaker, now, self.env_prefix)
            logger.warning("%s", reason)
        if self._breaker.state == "open":
            self._later("probe", self._breaker.retry_at - now, self._probe)

    def _probe(self) -> None:
        if self._breaker.state == "open" and not self._closed:
            self._breaker.probe()
            self._start_connect()

    def _note_answer(self) -> None:
        away = monotonic() - self._breaker.opened_at
        if self._breaker.succeed():
            self._stop_timers("probe")
            logger.warning("%s: reachable again after %.1f s: %s", self.name, away, self.snapshot())

    def _admit(self, record: ConnectionPoolEntry) -> Slot:
        now = monotonic()
        lifetime = self.pool_recycle if self.pool_recycle > 0 else inf
        unwanted = self._disposed or self._closed or self._open >= self._limit
        slot = Slot(
            record=record,
            connection=cast("Any", record.dbapi_connection),
            is_closed=closed_check(cast("Dialect", self._dialect), record.driver_connection),
            expires=now if unwanted else now + lifetime * random.uniform(1 - LIFETIME_JITTER, 1),  # noqa: S311
            taken=now,
            contact=now,
            used=now,
        )
        self._slots[record] = slot
        return slot

    def _ping(self, slot: Slot) -> None:
        self._pinging.add(slot)
        self._spawn(self._ask(slot))

    async def _ask(self, slot: Slot) -> None:
        self._counters.pings += 1
        try:
            async with asyncio.timeout(self.ping_timeout):
                await ping(cast("Dialect", self._dialect), slot)
        except Exception as error:  # noqa: BLE001 - drivers raise what they like
            self._counters.ping_errors += 1
            self._counters.lost += 1
            self._breaker.doubt(error)
            self._drop(slot)
            self.suspect()
        except BaseException:
            self._drop(slot)
            raise
        else:
            self._pinging.discard(slot)
            self._note_answer()
            slot.taken = slot.contact = monotonic()
            self._offer(slot, slot.contact)
        finally:
            self._settle()

    def _lose(self, slot: Slot) -> None:
        """Give up a connection that is closed or invalidated; the caller may be in a greenlet."""
        self._closing.add(slot)
        self._counters.lost += 1
        if self._loop is not None:
            self._loop.call_soon(self._drop_and_settle, slot, context=Context())

    def _drop_and_settle(self, slot: Slot) -> None:
        self._drop(slot)
        self._settle()

    def _retire(self, slot: Slot) -> None:
        """Close a connection that is in good health, in the background."""
        self._closing.add(slot)
        self._counters.retired += 1
        self._spawn(self._close(slot))

    async def _close(self, slot: Slot) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await greenlet_spawn(self._hang_up, slot.record)
        finally:
            self._drop_and_settle(slot)

    def _drop(self, slot: Slot) -> None:
        """Forget a connection, and cut its socket if it still has one."""
        self._slots.pop(slot.record, None)
        self._pinging.discard(slot)
        self._closing.discard(slot)
        self._hang_up(slot.record)

    def _hang_up(self, record: ConnectionPoolEntry) -> None:
        """Close: in a greenlet by asking the server first, elsewhere by cutting the socket."""
        if (connection := record.dbapi_connection) is not None:
            record.dbapi_connection = None
            self.dispatch.close(connection, record)
            self._close_connection(connection, terminate=True)

    def _take_idle(self) -> list[Slot]:
        taken = list(self._idle)
        self._idle.clear()
        return taken

    def _expire_in_use(self, count: float = inf) -> None:
        """Have connections in use retired at their return."""
        elsewhere = {*self._idle, *self._pinging, *self._closing}
        for slot in self._slots.values():
            if count > 0 and slot not in elsewhere:
                slot.expires = -inf
                count -= 1

    def _tend_later(self, now: float) -> None:
        if self._idle and "tend" not in self._timers:
            due = min(self._next_due(slot) for slot in self._idle)
            self._later("tend", min(max(due - now, REFILL_DELAY), LONGEST_REST), self._tend)

    def _next_due(self, slot: Slot) -> float:
        keepalive = inf if self.keepalive is None else slot.contact + self.keepalive
        return min(slot.expires, slot.used + self.idle_timeout, keepalive)

    def _tend(self) -> None:
        """Look after the idle connections, the one unused for longest first."""
        now = monotonic()
        surplus = len(self._slots) - len(self._closing) - self.pool_size
        for slot in self._take_idle():
            if slot.is_closed():
                self._lose(slot)
            elif now >= slot.expires:
                self._retire(slot)
            elif surplus > 0 and now - slot.used >= self.idle_timeout:
                self._retire(slot)
                surplus -= 1
            elif self.keepalive is not None and now - slot.contact >= self.keepalive:
                self._ping(slot)
            else:
                self._idle.append(slot)
        self._tend_later(now)

    # The event loop

    def _attach(self) -> asyncio.AbstractEventLoop:
        """Return the running loop; what belonged to another one is left behind with it."""
        loop = get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                if self._loop.is_running():
                    message = f"{self.name}: the pool is in use in another event loop"
                    raise exc.InvalidRequestError(message)
                self._leave_loop()
            self._loop = loop
        return loop

    def _leave_loop(self) -> None:
        for slot in self._slots.values():
            if slot.record.dbapi_connection is not None:
                slot.record.dbapi_connection = None
                with suppress(Exception):  # Its loop is closed: the garbage collector will do it.
                    self._dialect.do_terminate(slot.connection)
        self._stop_timers(*self._timers)
        self._forget_everything()
        self._watchers.clear()
        self._queue = WaitQueue(self._queue.target, self._queue.interval)
        self._breaker.succeed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of the pool's own, in no caller's context."""
        task = self._attach().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _later(self, name: str, delay: float, method: Callable[[], None]) -> None:
        """Call a method once, unless a timer of that name runs; it keeps no pool alive."""
        if name not in self._timers and self._loop is not None:
            self._timers[name] = self._loop.call_later(
                delay, fire, weakref.WeakMethod(method), self._timers, name, context=Context()
            )

    def _stop_timers(self, *names: str) -> None:
        for name in names:
            if timer := self._timers.pop(name, None):
                timer.cancel()

    async def _until(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until a condition holds, for `timeout` seconds at the most."""
        if condition():
            return
        watcher = condition, self._attach().create_future()
        self._watchers.append(watcher)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await watcher[1]
        finally:
            self._watchers.remove(watcher)


def fire(
    method: "weakref.WeakMethod[Callable[[], None]]",
    timers: dict[str, asyncio.TimerHandle],
    name: str,
) -> None:
    """Call what a timer was set for, if its pool still lives."""
    timers.pop(name, None)
    if call := method():
        call()


def check_size(pool_size: int, max_overflow: int) -> None:
    """Refuse what other pools take for "unlimited"."""
    if pool_size < 1 or max_overflow < 0:
        message = (
            f"pool_size must be 1 or more (not {pool_size}) and max_overflow 0 or more"
            f" (not {max_overflow}): this pool is always limited"
        )
        raise exc.ArgumentError(message)
