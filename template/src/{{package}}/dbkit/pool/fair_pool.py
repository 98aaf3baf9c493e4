"""The pool: callers wait in one fair queue, and overload is refused quickly.

Callers never open, ping or close a connection. They take an idle one, or wait in the queue for
the next that becomes ready, whichever way: returned by somebody, opened, or proved alive by a
ping. Tasks of the pool's own open, ping and close; so a caller that is cancelled loses nothing,
and each failure is noticed in one place, which looks after the waiters.

This is the only module that touches the contract between `sqlalchemy.pool.Pool` and its
subclasses; `tests/dbkit/test_pool_contract.py` in the template holds SQLAlchemy to it.
"""

from asyncio import current_task, get_running_loop, wait
from collections.abc import Coroutine
from math import inf
from typing import Any, cast

from sqlalchemy import Dialect, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..callsites import calling_place
from ..clock import monotonic
from ..engines.drivers import ALTERED, BUSY, IN_TRANSACTION
from ..engines.session_state import Left
from ..errors import Holder
from ..settings.database import DatabaseSettings
from .background import Background
from .connections import CLOSE_TIMEOUT, HEDGE_DELAY, Connections, Hooks
from .refusals import Refusals
from .slots import Slot
from .status import PoolStatus
from .usage import Use, holder_of, use_of
from .waiters import Waiter, WaitQueue

MOST = 1000
"""Connections of each kind that a pool may be told to open, as `DatabaseSettings` has it."""
BEAT = 0.1
"""Seconds between two looks at a queue, at the most: one that is late shows that the loop stood."""
STANDS = 0.1
"""Seconds by which a look is late when the event loop stood, rather than was busy."""

HELD: Any = object
"""Stands, on a record, for SQLAlchemy's weak reference to who has it: called, it is never None."""


class FairPool(Pool):
    """A pool of `pool_size` connections, and up to `max_overflow` more under pressure.

    Connections are opened when they are needed; the one used last is used first. Callers are
    served strictly in the order in which they came. A pool serves one event loop at a time: its
    connections stay behind with a loop that has ended.
    """

    _is_asyncio = True  # pyright: ignore[reportAssignmentType] -- as SQLAlchemy's own pools do
    _sqla_logger_namespace = (
        "sqlalchemy.pool.FairPool"  # Or DEBUG of ours would be its `echo_pool`.
    )

    def __init__(
        self, creator: Any, settings: DatabaseSettings, env_prefix: str = "DATABASE_", **base: Any
    ) -> None:
        # SQLAlchemy's own recycling would connect on the path of a request: it stays off.
        super().__init__(creator, recycle=-1, **base)
        self.settings = settings
        self._env_prefix = env_prefix
        self._background = Background(self.name, self._leave_loop)
        self._queue = WaitQueue(settings.queue_target, settings.queue_interval)
        self._connections = Connections(
            settings,
            self._background,
            Hooks(
                dialect=lambda: cast("Dialect", self._dialect),
                create=self._create_connection,
                hang_up=self._hang_up,
                ready=self._ready,
                failed=self._failed,
                changed=self._settle,
            ),
        )
        # What each checkout and each return looks at.
        self._idle = self._connections.idle
        self._slots = self._connections.slots
        self._waiters = self._queue.waiters
        self.usage = self._connections.usage
        """What routes have used."""
        self.counters = self._connections.counters
        """What has happened to callers and connections."""
        self.in_sandbox = False
        """Whether its one connection holds all that a test has written; set by `Sandbox`."""
        self._ping_after = settings.ping_after
        self._suspended = False
        self._closed = False
        self._look_at = inf
        """When the queue is to be looked at next."""
        self._refusals = Refusals(self, env_prefix, self._connections.breaker, self._background)

    # The contract with sqlalchemy.pool.Pool

    def _do_get(self) -> ConnectionPoolEntry:
        record = (self._take_idle() or await_only(self._wait())).record
        use: Any = use_of(record)
        use.place = calling_place()  # Not in `take`: a single statement's task waits there.
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        slot = self._slots.get(record)
        if slot is None or record.dbapi_connection is not slot.connection:
            # The garbage collector comes here from any thread, and between any two steps of
            # this module: so nothing is done before the loop's next turn.
            self._background.soon(self._take_back_other, record)
            return
        connections = self._connections
        slot.used = slot.contact = now = monotonic()
        use = self.usage.give(record, now)
        if (
            connections.kept
            and not self._waiters
            and now < slot.expires
            and slot.taken > connections.suspected_at
            and not is_invalidated(record)
            and not slot.left(self.in_sandbox)
        ):
            self._idle.append(slot)
            if not connections.tended:
                connections.tend_later()
        else:
            self._take_back(slot, now, use)

    def _take_back(self, slot: Slot, now: float, use: Use | None) -> None:
        """Take back a connection that is waited for, or may have to go."""
        if self._background.loop is not get_running_loop():
            self._background.soon(self._take_back_other, slot.record)
        elif slot.is_closed() or is_invalidated(slot.record):
            self._connections.lose(slot)
        elif (left := slot.left(self.in_sandbox)) in {IN_TRANSACTION, BUSY}:
            self.usage.blame(use, left)
            self._connections.retire(slot, healthy=False)
        elif left == ALTERED or (left and not self._can_reset) or now >= slot.expires:
            self._connections.retire(slot)
        elif left or slot.taken <= self._connections.suspected_at:
            self._connections.ping(slot)  # Which resets it.
        else:
            self._offer(slot)

    @property
    def _can_reset(self) -> bool:
        """Whether a reset leaves a connection as it was opened.

        What a listener set then would go too; and of PgBouncer, it would reset somebody else's.
        """
        listeners: Any = self.dispatch.connect
        return not self.settings.pgbouncer and all(
            each.__module__.partition(".")[0] == "sqlalchemy" for each in listeners
        )

    def _take_back_other(self, record: ConnectionPoolEntry) -> None:
        """Take back a record whose connection is gone, replaced, or from another loop."""
        slot = self._slots.pop(record, None)
        self.usage.give(record, monotonic())
        if record.dbapi_connection is None:
            self.counters.lost += slot is not None
        elif slot is None:
            self._hang_up(record)
        else:  # A listener raised DisconnectionError at checkout, and SQLAlchemy reconnected.
            altered = getattr(record.driver_connection, "left", Left.NOTHING)
            slot = self._connections.admit(record)
            if altered or slot.left(self.in_sandbox):
                self._connections.retire(slot)
            else:
                self._offer(slot)
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

    def _hang_up(self, record: ConnectionPoolEntry) -> None:
        """Close a connection: gracefully inside a greenlet, otherwise by dropping its socket."""
        if (connection := record.dbapi_connection) is not None:
            record.dbapi_connection = None
            self.dispatch.close(connection, record)
            self._close_connection(connection, terminate=True)

    def recreate(self) -> "FairPool":
        """Return a new pool with the same settings, and the counters of this one."""
        pool = type(self)(
            self._creator,
            self.settings,
            self._env_prefix,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )
        connections = pool._connections  # noqa: SLF001 -- one of us
        connections.counters = pool.counters = self.counters
        connections.usage = pool.usage = self.usage
        connections.min_ready = self.min_ready
        pool.in_sandbox = self.in_sandbox
        return pool

    def dispose(self) -> None:
        """Close the idle connections now, and the others at their return.

        Callers that wait are still served, now if they wait for `resume`; new ones go to the pool
        that replaces this one.
        """
        self._connections.kept = False
        self._connections.retire_used()
        self._background.cancel("tend", "refill")
        if in_greenlet():
            await_only(self._close_idle())
        else:
            for slot in self._connections.take_idle():
                self._connections.drop(slot)

    async def _close_idle(self) -> None:
        self._background.attach()
        self._connections.retire_idle()
        self.resume()
        await self._background.until(lambda: not self._connections.closing)

    def status(self) -> str:
        """Describe the pool in a line."""
        return f"{self.name}: {self.snapshot()}"

    def size(self) -> int:
        """Return the number of connections that are kept."""
        return self.settings.pool_size

    def checkedin(self) -> int:
        """Return the number of connections that are open and not in use."""
        return self._connections.at_rest

    def checkedout(self) -> int:
        """Return the number of connections in use."""
        return self._connections.in_use

    def waiting(self) -> int:
        """Return the number of callers in the queue."""
        return len(self._queue)

    def overflow(self) -> int:
        """Return the number of connections open beyond `pool_size`."""
        return max(len(self._slots) - self.settings.pool_size, 0)

    def timeout(self) -> float:
        """Return the seconds that a caller waits at the most."""
        return self.settings.pool_timeout

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
            pool_size=self.settings.pool_size,
            max_overflow=self.settings.max_overflow,
            in_use=self._connections.in_use,
            idle=self._connections.at_rest,
            connecting=len(self._connections.connects),
            closing=len(self._connections.closing),
            waiting=self.waiting(),
            oldest_wait=monotonic() - oldest.since if oldest else 0.0,
            breaker=self._connections.breaker.state,
            suspended=self._suspended,
            closed=self._closed,
            **vars(self.counters),
        )

    def holders(self, count: int | None = None) -> list[Holder]:
        """Describe who holds connections, for the longest time first; `count` at the most."""
        now = monotonic()
        return [holder_of(self.name, use, now) for use in self.uses()[:count]]

    @property
    def min_ready(self) -> int:
        """Connections that are kept open, at the least."""
        return self._connections.min_ready

    def uses(self) -> list[Use]:
        """Return the checkouts under way, the longest first; their holders cost 30 us each."""
        uses = [use for record in tuple(self._slots) if (use := use_of(record)) is not None]
        return sorted(uses, key=lambda use: use.since)

    def note_opened(self, connection: DBAPIConnection) -> None:
        """Note what the driver has opened, to be closed if a `connect` listener fails."""
        self._connections.opened[current_task()] = connection

    def suspect(self) -> None:
        """Ping every connection before it is used again: one has just failed somebody.

        To be called for a failure that SQLAlchemy does not take for a disconnect. Idle
        connections are pinged now, in the background; the others at their return.
        """
        self._connections.suspect()

    def retry(self) -> None:
        """Connect now if the breaker is open: the server has just answered somebody else."""
        self._connections.retry()

    def retire(self, *, within: float = 0) -> None:
        """Replace every connection: idle ones now, the others at their return.

        For a server whose role has changed (SQLSTATE 25006) and for new credentials: such
        connections still answer a ping. With `within`, each at some moment of so many seconds.
        """
        if within:
            self._connections.age(within)
            return
        self._connections.retire_used()
        self._connections.retire_idle()

    def suspend(self) -> None:
        """Hand out nothing until `resume`; callers wait, for `timeout` at the most."""
        self._suspended = True

    def resume(self) -> None:
        """Hand out connections again."""
        self._suspended = False
        self._queue.excuse(monotonic())
        self._settle()

    def resize(self, pool_size: int, max_overflow: int) -> None:
        """Change the limit; connections beyond it are closed, now or at their return."""
        limits: dict[str, Any] = {"pool_size": pool_size, "max_overflow": max_overflow}
        for (name, value), least in zip(limits.items(), (1, 0), strict=True):
            # Exactly an integer: `True` is not meant, nor is 2.5.
            if type(value) is not int or not least <= value <= MOST:
                raise exc.ArgumentError(
                    f"{name} must be an integer from {least} to {MOST}, not {value!r}: this pool is"
                    " never unlimited"
                )
        self.settings = self.settings.model_copy(update=limits)
        self._connections.settings = self.settings
        self._connections.min_ready = min(self.min_ready, pool_size)
        self._connections.shrink()
        self._settle()

    async def warm(self, min_ready: int, deadline: float) -> int:
        """Open connections until `min_ready` are open, and keep so many from now on.

        What fails is tried again until `deadline` seconds have passed: then `Unreachable`, and
        the pool goes on trying in the background. Returns how many connections are open.
        """
        if self._closed:
            raise self._refusals.draining()
        self._background.attach()
        self._connections.min_ready = wanted = min(min_ready, self.settings.pool_size)
        connections = self._connections
        connections.bug = None  # One of an attempt before this says nothing of the next.
        connections.refill()
        await self._background.until(
            lambda: self._closed or len(self._slots) >= wanted or connections.bug is not None,
            deadline,
        )
        if self._closed:
            raise self._refusals.draining()
        if connections.bug is not None:
            raise connections.bug
        if len(self._slots) < wanted:
            raise self._refusals.unreachable(monotonic())
        return len(self._slots)

    async def drain(self, timeout: float) -> list[Holder]:
        """Hand out nothing more, give holders `timeout` seconds, and close every connection.

        Callers that wait are told at once (`PoolClosed`). What is not closed in time has its
        socket cut, so that a server which does not answer delays nothing. Returns the holders that
        connections were taken from.
        """
        self._background.attach()
        self._background.cancel()
        self._closed = True
        self._look_at = inf
        self._connections.kept = False
        self._background.look()  # `warm` waits for what will not come.
        while waiter := self._queue.serve(monotonic()):
            waiter.future.set_exception(self._refusals.draining())
        self._connections.cancel_connects()
        self.retire()
        await self._background.until(lambda: not self._connections.open, timeout)
        taken = self.holders()
        for slot in tuple(self._slots.values()):
            self._connections.drop(slot)
        if tasks := tuple(self._background.tasks):
            for task in tasks:
                task.cancel()
            await wait(tasks, timeout=CLOSE_TIMEOUT)
        return taken

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task in the background until it finishes or the pool is drained."""
        self._background.spawn(work)

    # The queue

    async def take(self) -> Slot:
        """Hand out a connection, without SQLAlchemy's objects around it; see `give_back`."""
        slot = self._take_idle() or await self._wait()
        record: Any = slot.record
        record.fairy_ref = HELD
        return slot

    def give_back(self, slot: Slot) -> None:
        """Take back what `take` handed out."""
        record: Any = slot.record
        record.fairy_ref = None
        self._do_return_conn(record)

    def _take_idle(self) -> Slot | None:
        """Hand out an idle connection, if nobody has to wait for one."""
        idle = self._idle
        if idle and not self._waiters and not self._suspended:
            slot = idle[-1]
            now = monotonic()
            if (
                now - slot.contact < self._ping_after
                and not slot.is_closed()
                and self._background.loop is get_running_loop()
            ):
                idle.pop()
                slot.taken = now
                self.usage.take(slot.record, now)
                return slot
        return None

    async def _wait(self) -> Slot:
        loop = self._background.attach()
        now = monotonic()
        if self._closed:
            raise self._refusals.draining()
        self.usage.ask(current_task())
        if self.dispatch.checkin:
            self._reclaim(now)
        if len(self._queue) >= self.settings.max_waiting:
            self.counters.shed += 1
            raise self._refusals.overloaded(now, waited=0.0)
        waiter = Waiter(loop.create_future(), now)
        self._queue.join(waiter)
        self._check_queue_later(now)
        self._settle()
        try:
            slot = await waiter.future
        except BaseException:
            self._leave(waiter)
            raise
        now = monotonic()
        waited = max(now - waiter.since, 0.0)
        self.counters.waits += 1
        self.counters.wait_seconds += waited
        self.usage.take(slot.record, now, waited)
        return slot

    def _reclaim(self, now: float) -> None:
        """Reclaim connections whose return failed because a `checkin` listener raised."""
        for record, slot in tuple(self._slots.items()):
            if not record.in_use and use_of(record) is not None:
                self.usage.give(record, now)
                self._connections.retire(slot, healthy=False)

    def _leave(self, waiter: Waiter) -> None:
        """Remove a cancelled waiter; a connection that it was already given goes to the next."""
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            self._offer(future.result())
        else:
            self._queue.leave(waiter)

    def _ready(self, slot: Slot) -> None:
        """Take a connection that has been opened, or proved alive."""
        if not self._is_crowded(self._connections.in_use - 1):
            self._queue.excuse(monotonic())
        self._offer(slot)

    def _failed(self, error: Exception) -> None:
        """Tell the oldest waiter what code of the service raised while it connected."""
        if waiter := self._queue.serve(monotonic()):
            waiter.future.set_exception(error)

    def _is_crowded(self, in_use: int) -> bool:
        """Whether callers wait for each other, rather than for the server."""
        return 2 * in_use >= self.settings.max_connections

    def _offer(self, slot: Slot) -> None:
        """Hand a connection to the oldest waiter, or keep it."""
        now = monotonic()
        self._excuse_stand(now)
        if not self._suspended:
            for waiter in self._queue.shed(now):
                self._turn_away(waiter, now)
            if waiter := self._queue.serve(now):
                slot.taken = now
                waiter.future.set_result(slot)
                return
        self._connections.keep(slot, now)

    def _settle(self) -> None:
        """Re-evaluate after a change: serve or refuse waiters, refill, wake `until`."""
        now = monotonic()
        if self._connections.hopeless:
            while waiter := self._queue.serve(now):
                self.counters.refused += 1
                waiter.future.set_exception(self._refusals.unreachable(now))
        elif not self._suspended and self._queue.oldest():
            self._connections.supply(len(self._queue))
            self._background.later("hedge", HEDGE_DELAY, self._hedge)
        self._connections.refill_later()
        self._background.look()

    def _hedge(self) -> None:
        if not self._suspended and self._queue.oldest():
            self._connections.hedge(len(self._queue))

    def _check_queue_later(self, now: float) -> None:
        oldest = self._queue.oldest()
        if oldest and not self._background.is_due("queue"):
            times_out = oldest.since + self.settings.pool_timeout - now
            delay = min(self._queue.due(now), times_out, BEAT)
            self._look_at = now + delay
            self._background.later("queue", delay, self._check_queue)

    def _excuse_stand(self, now: float) -> None:
        """Do not count time in which the event loop was blocked, or the process stopped.

        After it, connections are returned before the look is made that shows it, or after.
        """
        late = now - self._look_at
        if late >= STANDS:
            self._queue.stood(now, late)
            self._look_at = now

    def _check_queue(self) -> None:
        now = monotonic()
        self._excuse_stand(now)
        self._look_at = inf
        for waiter in self._queue.expire(now, self.settings.pool_timeout):
            self._turn_away(waiter, now, late=True)
        breaker = self._connections.breaker
        gone = breaker.failures > 0 and now - breaker.failed_at >= self.settings.queue_interval
        if not self._suspended and (gone or self._is_crowded(self._connections.in_use)):
            for waiter in self._queue.shed(now):
                self._turn_away(waiter, now)
        self._check_queue_later(now)

    def _turn_away(self, waiter: Waiter, now: float, *, late: bool = False) -> None:
        """Reject a waiter, with an error that says whether the pool or the server is why."""
        counters = self.counters
        if not self._suspended and not self._is_crowded(self._connections.in_use):
            counters.refused += 1
            error = self._refusals.unreachable(now)
        elif late:
            counters.timeouts += 1
            error = self._refusals.timed_out(now)
        else:
            counters.shed += 1
            error = self._refusals.overloaded(now, now - waiter.since)
        waiter.future.set_exception(error)

    def _leave_loop(self) -> None:
        self._look_at = inf
        self._connections.leave_loop()
        self._queue.clear()


def is_invalidated(record: Any) -> bool:
    """Whether SQLAlchemy would connect anew at the next checkout, on the path of a request."""
    return record._soft_invalidate_time > record.starttime  # noqa: SLF001 -- told nowhere else
