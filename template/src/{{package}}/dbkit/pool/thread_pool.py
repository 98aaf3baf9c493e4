"""SQLAlchemy's pool for threads, with the errors, holders and numbers of the other pool."""

import sys
import threading
import time
from typing import Any

from sqlalchemy import exc
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ..callsites import callers, calling_place, lines_of
from ..clock import monotonic
from ..context import current
from ..engines.session_state import Left
from ..errors import DatabaseError, Holder, PoolClosed, PoolTimeout
from ..loggers import logger_named
from ..settings.database import DatabaseSettings
from .refusals import LOOK, advise, write_holders
from .status import Counters, PoolStatus
from .usage import SHOWN_HOLDERS, Usage, Use, holder_of, use_of

logger = logger_named("sync")

USED = "used"
"""Where the record of a connection has when it was last used."""


class ThreadPool(QueuePool):
    """SQLAlchemy's pool for threads, which knows who holds its connections, and says what to do."""

    _sqla_logger_namespace = "sqlalchemy.pool.ThreadPool"

    def __init__(
        self, creator: Any, settings: DatabaseSettings, env_prefix: str = "DATABASE_", **base: Any
    ) -> None:
        super().__init__(
            creator,
            pool_size=settings.sync_pool_size,
            max_overflow=0,
            timeout=settings.pool_timeout,
            recycle=int(settings.pool_recycle),
            use_lifo=True,
            **base,
        )
        size = {"pool_size": settings.sync_pool_size, "max_overflow": 0}
        self.settings = settings.model_copy(update=size)
        self.name: str = self.logging_name or ""
        self.usage = ThreadUsage(self.name)
        self.counters = Counters()
        self.min_ready = 0
        self._env_prefix = env_prefix
        self._waiters: list[float] = []
        self._holders: dict[ConnectionPoolEntry, None] = {}
        self.closed = threading.Event()
        self.is_watched = False
        """Whether somebody looks for leaks."""

    def recreate(self) -> "ThreadPool":
        """Return a new pool with the same settings."""
        return type(self)(
            self._creator,
            self.settings.model_copy(update={"sync_pool_size": self.settings.pool_size}),
            self._env_prefix,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )

    def _do_get(self) -> ConnectionPoolEntry:
        if self.closed.is_set():
            raise PoolClosed(
                self._database, f"the pool is closed, the service stops: {self.snapshot()}"
            )
        self.usage.ask_thread()
        began = monotonic()
        self._waiters.append(began)
        try:
            record = super()._do_get()
        except exc.TimeoutError as error:
            if isinstance(error, DatabaseError):  # It calls itself.
                raise
            self.counters.timeouts += 1
            raise self._timed_out() from None
        finally:
            self._waiters.remove(began)
        if use_of(record) is None:
            now = monotonic()
            self.usage.take(record, now, now - began)
            self._holders[record] = None
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self._holders.pop(record, None)
        self.usage.give(record, monotonic())
        info: Any = record.record_info
        info[USED] = monotonic()
        driver: Any = record.dbapi_connection
        if driver is not None and getattr(driver, "left", Left.NOTHING):
            record.invalidate()  # The next caller finds what a new connection has.
        if not self.closed.is_set():
            super()._do_return_conn(record)
            return
        try:
            record.close()
        finally:
            self._dec_overflow()

    def close(self, end: float) -> None:
        """Close what is idle now and the rest at its return, for which it waits until `end`."""
        while self.checkedout() and monotonic() < end:
            self.closed.wait(0.02)
        self.closed.set()
        if taken := self.holders():
            held = write_holders(taken[:SHOWN_HOLDERS])
            logger.warning("%s: still in use at the end: %d%s", self.name, len(taken), held)
        self.dispose()

    def retire(self) -> None:
        """Replace every connection at its next use."""
        self._invalidate_time = time.time()

    @property
    def _database(self) -> str:
        return self.name.partition(".")[0]

    def _timed_out(self) -> PoolTimeout:
        status = self.snapshot()
        text = advise(
            f"no connection for synchronous code within {self._timeout:g} s: {status}",
            LOOK,
            f"Raise {self._env_prefix}SYNC_POOL_SIZE ({status.pool_size}) if the server has"
            " connections to spare.",
        )
        holders = self.holders(SHOWN_HOLDERS)
        error = PoolTimeout(self._database, text + write_holders(holders))
        error.holders = holders
        logger.warning("%s", error)
        return error

    # What is said of it, as of a FairPool

    def waiting(self) -> int:
        """Return the number of callers that wait."""
        return len(self._waiters)

    def snapshot(self) -> PoolStatus:
        """Return the state in numbers."""
        waiters = self._waiters.copy()
        return PoolStatus(
            name=self.name,
            pool_size=self.settings.pool_size,
            max_overflow=0,
            in_use=self.checkedout(),
            idle=self.checkedin(),
            connecting=0,
            closing=0,
            waiting=len(waiters),
            oldest_wait=monotonic() - min(waiters, default=monotonic()),
            breaker="closed",
            suspended=False,
            closed=self.closed.is_set(),
            **vars(self.counters),
        )

    def uses(self) -> list[Use]:
        """Return the checkouts under way, the longest first."""
        found = (use_of(record) for record in tuple(self._holders))
        return sorted((use for use in found if use is not None), key=lambda use: use.since)

    def holders(self, count: int | None = None) -> list[Holder]:
        """Describe who holds connections, for the longest time first; `count` at the most."""
        now = monotonic()
        return [holder_of(self.name, use, now) for use in self.uses()[:count]]


class ThreadUse(Use):
    """A checkout by a thread."""

    __slots__ = ("thread",)

    def __init__(self, since: float, waited: float) -> None:
        super().__init__(None, current(), since, waited)
        self.thread = threading.current_thread()
        self.place = calling_place()

    @property
    def task_name(self) -> str:
        """The name of its thread."""
        return f"of thread {self.thread.name}"

    @property
    def ended(self) -> bool:
        """Whether nothing will return it: its thread has ended, or what it ran."""
        return not self.thread.is_alive() or (self.request is not None and self.request.ended)

    def waits_at(self) -> tuple[str, ...]:
        """Find the lines where it is, if the thread still runs what took the connection."""
        frame = sys._current_frames().get(self.thread.ident or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- documented
        frames = list(callers(frame))
        is_there = self.place and any(each.f_code is self.place[0] for each in frames)
        return lines_of(frames) if is_there else ()


class ThreadUsage(Usage):
    """What a pool notes of threads."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._turn = threading.Lock()
        self._by_thread: dict[int, int] = {}

    def take(self, record: ConnectionPoolEntry, now: float, waited: float = 0.0) -> None:
        """Note which thread is handed a connection."""
        info: Any = record.record_info
        info["use"] = use = ThreadUse(now, waited)
        ident = use.thread.ident or 0
        with self._turn:
            self._by_thread[ident] = self._by_thread.get(ident, 0) + 1

    def give(self, record: ConnectionPoolEntry, now: float) -> Use | None:
        """Note that a connection was returned."""
        with self._turn:
            use = super().give(record, now)
            if isinstance(use, ThreadUse):
                self._by_thread[use.thread.ident or 0] -= 1
        return use

    def ask_thread(self) -> None:
        """Warn, once for each route, of a thread that holds a connection and asks for another."""
        if self._by_thread.get(threading.get_ident(), 0) > 0:
            self.warn_of_nested()
