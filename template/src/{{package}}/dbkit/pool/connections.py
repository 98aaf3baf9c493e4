"""The open connections of a pool, and the tasks that open, ping and close them.

A connection counts from the attempt to open it until its socket is closed, so that the server
never sees more of them than the limit.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, cast

from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from ..clock import monotonic
from ..engines.base import load
from ..engines.drivers import forget, left_check
from ..engines.sqlstates import is_bug, sqlstate
from ..errors import DatabaseError, Unreachable
from ..loggers import logger_named
from ..settings.database import DatabaseSettings
from .background import Background
from .breaker import Breaker
from .slots import Slot
from .status import Counters
from .timeouts import within
from .usage import Usage

logger = logger_named("pool.connections")

CLOSE_TIMEOUT = 1.0
"""Seconds that the server is given to close a connection before its socket is cut."""
HEDGE_DELAY = 0.05
"""Seconds after which a caller does not rely on a ping alone, where there is room to connect."""
LIFETIME_JITTER = 0.2
"""Part of `pool_recycle` by which lifetimes differ: what opened together expires at other times."""
LONGEST_REST = 30.0
"""Seconds between two looks at the idle connections, at the most."""
SHORTEST_REST = 0.1
"""Seconds between them at the least, and before a lost connection is replaced."""


@dataclass(frozen=True)
class Hooks:
    """What connections need from their pool."""

    dialect: Callable[[], Dialect]
    create: Callable[[], ConnectionPoolEntry]
    """Connect; called in a greenlet."""
    hang_up: Callable[[ConnectionPoolEntry], None]
    """Close: in a greenlet by asking the server first, elsewhere by cutting the socket."""
    ready: Callable[[Slot], None]
    """Take a connection that has been opened, or proved alive."""
    failed: Callable[[Exception], None]
    """Tell a waiter that connecting has failed by a mistake, which no server can mend."""
    changed: Callable[[], None]
    """Look after the waiters: a connection, or an attempt to get one, came or went."""


class Connections:
    """Every open connection is a slot: idle, being pinged, being closed, or else in use."""

    def __init__(self, settings: DatabaseSettings, background: Background, hooks: Hooks) -> None:
        self.settings = settings
        self.breaker = Breaker(settings.breaker_threshold)
        self.counters = Counters()
        self.usage = Usage(background.name)
        self.min_ready = 0
        self.kept = True
        """Whether connections are kept when they are returned; not once the pool is disposed."""
        self.tended = False
        """Whether the idle connections will be looked at."""
        self.suspected_at = -inf
        """When a connection last failed somebody: what was handed out before is suspect."""
        self.slots: dict[ConnectionPoolEntry, Slot] = {}
        self.idle: deque[Slot] = deque()
        """In the order of their last use."""
        self._pinging: set[Slot] = set()
        self.closing: set[Slot] = set()
        """They still count towards the limit."""
        self.bug: Exception | None = None
        """What code of the service raised at the last attempt to connect, if it did."""
        self.opened: dict[asyncio.Task[Any] | None, DBAPIConnection] = {}
        """What the driver has opened for attempts that are under way."""
        self.connects: set[asyncio.Task[None]] = set()
        """Attempts to connect that are under way."""
        self._background = background
        self._hooks = hooks

    @property
    def in_use(self) -> int:
        """Connections handed out."""
        return len(self.slots) - len(self.idle) - len(self._pinging) - len(self.closing)

    @property
    def at_rest(self) -> int:
        """Connections open and neither in use nor being closed."""
        return len(self.idle) + len(self._pinging)

    @property
    def open(self) -> int:
        """Connections that count towards the limit."""
        return len(self.slots) + len(self.connects)

    @property
    def hopeless(self) -> bool:
        """Whether callers would wait in vain.

        A server that answers, if only with "too many connections", will let holders finish and
        may have accepted another attempt; of one that is silent, nothing is to be expected.
        """
        if self.breaker.state == "closed" or self.idle:
            return False
        silent = sqlstate(self.breaker.error) is None
        return silent or not (self.in_use or self.connects)

    # Supply

    def supply(self, waiting: int) -> None:
        """Set to work, for each waiter, an idle connection or an attempt to connect."""
        wanted = waiting - len(self.connects)
        if not self.breaker.failures:  # Else pings are not to be relied on.
            wanted -= len(self._pinging)
        now = monotonic()
        while wanted > 0 and self.idle:
            slot = self.idle.pop()
            wanted -= 1
            if slot.is_closed():
                self.lose(slot)
            elif now - slot.contact < self.settings.ping_after:
                self._hooks.ready(slot)
            else:
                self.ping(slot)
        while wanted > 0 and self._may_connect():
            self._start_connect("waiter")
            wanted -= 1

    def hedge(self, waiting: int) -> None:
        """Connect for waiters whose pings take long, as far as there is room."""
        while waiting > len(self.connects) and self._may_connect():
            self._start_connect("slow ping")

    def refill(self) -> None:
        """Connect until `min_ready` connections are open."""
        while self.open - len(self.closing) < self.min_ready and self._may_connect():
            self._start_connect("min_ready")

    def refill_later(self) -> None:
        """Replace what was lost, when nobody waits for it."""
        if self.kept and len(self.slots) < self.min_ready:
            rest = SHORTEST_REST if self.bug is None else LONGEST_REST
            self._background.later("refill", rest, self.refill)

    # Opening

    def _may_connect(self) -> bool:
        return self.breaker.state == "closed" and self.open < self.settings.max_connections

    def _start_connect(self, reason: str) -> None:
        task = self._background.spawn(self._connect(reason))
        self.connects.add(task)
        task.add_done_callback(self.connects.discard)  # If it is cancelled before it begins.

    async def _connect(self, reason: str) -> None:
        began = monotonic()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        record: ConnectionPoolEntry | None = None
        try:
            async with within(self.settings.connect_timeout):
                record = await greenlet_spawn(self._hooks.create)
        except Exception as error:  # noqa: BLE001 -- drivers raise what they like
            self._note_failure(error)
        finally:
            self.connects.discard(task)
            opened = self.opened.pop(task, None)
            if record is None and opened is not None:  # A listener has failed.
                with suppress(Exception):
                    self._hooks.dialect().do_terminate(opened)
            if record:
                self.counters.connects += 1
                seconds = monotonic() - began
                self.counters.connect_seconds += seconds
                self.usage.opened(reason, seconds)
                self._note_answer()
                self._hooks.ready(self.admit(record))
            self._hooks.changed()

    def admit(self, record: ConnectionPoolEntry) -> Slot:
        """Count a new connection."""
        now = monotonic()
        lifetime = self.settings.pool_recycle * random.uniform(1 - LIFETIME_JITTER, 1)  # noqa: S311 -- no secret
        if self.open >= self.settings.max_connections:
            lifetime = 0.0  # The limit was lowered meanwhile.
        connection = cast("DBAPIConnection", record.dbapi_connection)
        engine, driver = load(self._hooks.dialect().name), record.driver_connection
        notes = forget(driver)  # What listeners did when it was opened is as the pool makes it.
        is_closed = engine.closed_check(driver)
        left = left_check(engine, connection, driver, notes)
        expires = now + lifetime
        slot = Slot(record, connection, driver, notes, is_closed, left, expires, now, now, now)
        self.slots[record] = slot
        return slot

    def _note_failure(self, error: Exception) -> None:
        now = monotonic()
        self.counters.connect_errors += 1
        if is_bug(error) and not isinstance(error, DatabaseError):
            if self.bug is None:
                name = self._background.name
                logger.error("%s: a new connection failed in the service", name, exc_info=error)
            self.bug = error
            self._hooks.failed(error)
            return
        error = explain(error, self.settings.connect_timeout)
        if self.breaker.fail(error, now):
            name, said = self._background.name, f"{type(error).__name__}: {error}"
            if isinstance(error, Unreachable):
                said = error.detail
            failures = self.breaker.failures
            logger.warning("%s: unreachable after %d failures in a row: %s", name, failures, said)
        if self.breaker.state == "open":
            self._background.later("probe", self.breaker.retry_at - now, self._probe)

    def _note_answer(self) -> None:
        away = monotonic() - self.breaker.opened_at
        self.bug = None
        if self.breaker.succeed():
            logger.warning("%s: reachable again, after %.1f s", self._background.name, away)

    def retry(self) -> None:
        """Try to connect now, ahead of the breaker: the server has just answered someone else.

        Also beside an attempt that is under way: its first packet may be lost, and TCP takes
        seconds to send another.
        """
        if (
            self.kept
            and self.breaker.state != "closed"
            and self.open < self.settings.max_connections
        ):
            self.breaker.probe()
            self._start_connect("outage")

    def _probe(self) -> None:
        if self.breaker.state != "open":
            return
        if not self.kept:
            self.breaker.succeed()  # Nobody is left to try for.
        elif self.open < self.settings.max_connections:
            self.breaker.probe()
            self._start_connect("outage")
        else:  # Every connection is in use: the next that is returned will be pinged.
            self._background.later("probe", SHORTEST_REST, self._probe)

    # Pings

    def suspect(self) -> None:
        """Ping every connection before its next use."""
        self.suspected_at = monotonic()
        for slot in self.take_idle():
            self.ping(slot)

    def ping(self, slot: Slot) -> None:
        """Check whether a connection still works; it is then ready, or lost."""
        self._pinging.add(slot)
        self._background.spawn(self._ping(slot))

    async def _ping(self, slot: Slot) -> None:
        self.counters.pings += 1
        answered = False
        try:
            async with within(self.settings.ping_timeout):
                dialect = self._hooks.dialect()
                await load(dialect.name).ping(dialect, slot.connection, slot.driver, slot.notes)
            answered = True
        except Exception as error:  # noqa: BLE001 -- drivers raise what they like
            self.counters.ping_errors += 1
            self.counters.lost += 1
            self.breaker.doubt(explain(error, self.settings.ping_timeout), monotonic())
            self.suspect()
        finally:
            self._pinging.discard(slot)
            if answered:
                self._note_answer()
                slot.taken = slot.contact = monotonic()
                self._hooks.ready(slot)
            else:
                self.drop(slot)
            self._hooks.changed()

    # Closing

    def lose(self, slot: Slot) -> None:
        """Give up a connection that is closed or invalidated."""
        self.closing.add(slot)
        self.counters.lost += 1
        self._background.soon(self._drop_closed, slot)  # The caller may be in a greenlet.

    def retire(self, slot: Slot, *, healthy: bool = True) -> None:
        """Close a connection, by asking the server first."""
        self.closing.add(slot)
        if healthy:
            self.counters.retired += 1
        else:
            self.counters.lost += 1
        self._background.spawn(self._close(slot))

    async def _close(self, slot: Slot) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await greenlet_spawn(self._hooks.hang_up, slot.record)
        finally:
            self._drop_closed(slot)

    def _drop_closed(self, slot: Slot) -> None:
        self.drop(slot)
        self._hooks.changed()

    def drop(self, slot: Slot) -> None:
        """Forget a connection, and cut its socket if it still has one; not in a greenlet."""
        self.slots.pop(slot.record, None)
        self._pinging.discard(slot)
        self.closing.discard(slot)
        self._hooks.hang_up(slot.record)

    def retire_idle(self) -> None:
        """Close the connections that nobody uses."""
        for slot in self.take_idle():
            self.retire(slot)

    def retire_used(self, count: float = inf) -> None:
        """Have `count` of the connections in use closed at their return."""
        others = {*self.idle, *self._pinging, *self.closing}
        for slot in self.slots.values():
            if count > 0 and slot not in others:
                slot.expires = -inf
                count -= 1

    def age(self, within: float) -> None:
        """Let every connection expire within the next `within` seconds, spread at random."""
        now = monotonic()
        for slot in self.slots.values():
            slot.expires = min(slot.expires, now + random.uniform(0, within))  # noqa: S311 -- no secret

    def shrink(self) -> None:
        """Close what is beyond the limit: idle connections first, those unused for longest."""
        surplus = self.open - len(self.closing) - self.settings.max_connections
        while surplus > 0 and self.idle:
            self.retire(self.idle.popleft())
            surplus -= 1
        self.retire_used(surplus)

    def cancel_connects(self) -> None:
        """Give up the attempts to connect."""
        for task in self.connects:
            task.cancel()

    def leave_loop(self) -> None:
        """Leave everything behind with a loop that ended."""
        for slot in self.slots.values():
            if slot.record.dbapi_connection is not None:
                slot.record.dbapi_connection = None
                with suppress(Exception):  # The garbage collector will close the socket.
                    self._hooks.dialect().do_terminate(slot.connection)
        self.slots.clear()
        self.usage.leave_loop()
        self.idle.clear()
        self._pinging.clear()
        self.closing.clear()
        self.connects.clear()
        self.tended = False
        self.breaker.succeed()

    # At rest

    def keep(self, slot: Slot, now: float) -> None:
        """Keep a connection until it is needed."""
        if now >= slot.expires or not self.kept:
            self.retire(slot)
            return
        if self.idle and slot.used < self.idle[-1].used:
            self.idle.appendleft(slot)  # It was pinged while unused: it stays behind the others.
        else:
            self.idle.append(slot)
        self.tend_later()

    def take_idle(self) -> list[Slot]:
        """Take the idle connections out, the one unused for longest first."""
        taken = list(self.idle)
        self.idle.clear()
        return taken

    def tend_later(self) -> None:
        """Look after the idle connections when the first of them is due."""
        if self.idle and not self.tended:
            rest = min(self._due(slot) for slot in self.idle) - monotonic()
            rest = min(max(rest, SHORTEST_REST), LONGEST_REST)
            self._background.later("tend", rest, self._tend)
            self.tended = True

    def _due(self, slot: Slot) -> float:
        unused_since = slot.used if self._surplus > 0 else inf
        return min(
            slot.expires,
            slot.contact + (self.settings.keepalive or inf),
            unused_since + self.settings.idle_timeout,
        )

    @property
    def _surplus(self) -> int:
        return len(self.slots) - len(self.closing) - self.settings.pool_size

    def _tend(self) -> None:
        self.tended = False
        now = monotonic()
        for slot in self.take_idle():
            if slot.is_closed():
                self.lose(slot)
            elif now >= slot.expires or (
                self._surplus > 0 and now - slot.used >= self.settings.idle_timeout
            ):
                self.retire(slot)
            elif now - slot.contact >= (self.settings.keepalive or inf):
                self.ping(slot)
            else:
                self.idle.append(slot)
        self.tend_later()


def explain(error: Exception, timeout: float) -> Exception:
    """Give a timeout without a message one."""
    if isinstance(error, TimeoutError) and not str(error):
        return TimeoutError(f"no answer within {timeout:g} s")
    return error
