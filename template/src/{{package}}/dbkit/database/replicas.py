"""Replicas: how far behind their primary they are, and whether a read may go to one.

Positions are those of PostgreSQL's write-ahead log (LSN), which a replica repeats: a replica
that has come to the position at which a commit ended has what was committed.
"""

import asyncio
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import MutableHeaders
from starlette.types import Message

from ..clock import monotonic
from ..context import RequestContext, current, inherited
from ..engines.sqlstates import is_retryable, sqlstate
from ..errors import DatabaseError
from ..loggers import logger_named
from .probe import Probe, Replicated
from .readers import Reader

logger = logger_named("replicas")

T = TypeVar("T")

POSITION = text(
    "SELECT CAST(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    " ELSE pg_current_wal_lsn() END - '0/0' AS bigint)"
)
END = text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS bigint)")

HISTORY = 1000
"""Changes of a primary's position that are remembered: half an hour and more."""
NOWHERE = 2**64 - 1
"""A position to which no replica comes."""

COOKIE = re.compile(r"(?:\A|;) *read_after_([a-z0-9_]{1,24})=([0-9A-F]{1,16}) *(?=;|\Z)")
ATTRIBUTES = "; Path=/; Max-Age=300; HttpOnly; SameSite=Lax"
"""The age is for clients that come back when no position of theirs is of use any more."""
SAFE_METHODS = {"GET", "HEAD", "OPTIONS", "TRACE"}


class History:
    """Where the log of a primary was, and since when, by our clock: a server's may be wrong."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._seen_at: list[float] = []

    def note(self, position: int) -> None:
        """Note where the log is now."""
        if self._positions and position < self._positions[-1]:  # Another primary: nothing compares.
            self._positions.clear()
            self._seen_at.clear()
        if not self._positions or position > self._positions[-1]:
            self._positions.append(position)
            self._seen_at.append(monotonic())
        del self._positions[:-HISTORY], self._seen_at[:-HISTORY]

    def seconds_behind(self, position: int) -> float:
        """Return for how long the primary has been beyond a position."""
        first = bisect_right(self._positions, position)
        return monotonic() - self._seen_at[first] if first < len(self._seen_at) else 0.0


class PrimaryProbe(Probe):
    """Asks a primary where its log is."""

    def __init__(self, name: str, engine: AsyncEngine, history: History) -> None:
        super().__init__(name, engine, question=POSITION)
        self.history = history

    async def ask(self) -> None:
        """Ask the server; remember where its log is."""
        await super().ask()
        self.position = self.answer
        if self.position is not None:
            self.history.note(self.position)


class ReplicaProbe(Probe):
    """Asks each host of a replica how far it has come: up while one is, as far as the last one."""

    def __init__(
        self, name: str, engines: Sequence[AsyncEngine], primary: History, max_lag: float
    ) -> None:
        super().__init__(name, engines[0])
        self._hosts = [Probe(name, engine, question=POSITION) for engine in engines]
        self._max_lag = max_lag
        self._primary = primary

    async def ask(self) -> None:
        """Ask the servers."""
        await asyncio.gather(*(host.ask() for host in self._hosts))
        up = [host for host in self._hosts if host.is_up]
        self.is_up = bool(up)
        self.has_been_up |= self.is_up
        positions = [host.answer for host in up]
        self.position = min(positions) if positions and None not in positions else None
        self.lag = 0.0 if self.position is None else self._primary.seconds_behind(self.position)
        is_behind = 0 < self._max_lag < self.lag
        if is_behind is not self.is_behind:
            self.is_behind = is_behind
            state = f"{self.lag:.1f} s behind" if is_behind else "near enough again to"
            logger.warning("%s: %s its primary", self._name, state)

    async def _hang_up(self) -> None:
        await asyncio.gather(*(host.stop() for host in self._hosts))


def read_positions(request: RequestContext) -> None:
    """Read from a client's cookies how far a replica must have come.

    A cookie is not signed: who forges one reads the primary in place of a replica.
    """
    scope = request.scope
    cookies = b";".join(value for name, value in scope["headers"] if name == b"cookie")
    for name, position in COOKIE.findall(cookies.decode("latin-1")):
        request.positions[name] = int(position, 16)
    if scope["method"] not in SAFE_METHODS:
        request.written = set()


def set_cookies(request: RequestContext, start: Message) -> None:
    """Add to the start of a response where the logs of the primaries are that it wrote to."""
    secure = "; Secure" if request.scope["scheme"] == "https" else ""
    headers = MutableHeaders(scope=start)
    for name in sorted(request.written or ()):
        cookie = f"read_after_{name}={request.positions[name]:X}{ATTRIBUTES}{secure}"
        headers.append("set-cookie", cookie)


async def note_commit(primary: Replicated) -> None:
    """Note, for the client of this request, where the log is after a commit; 1 round trip."""
    request = current()
    if request is None or request.written is None:
        return
    if not any(replica.is_open and is_apart(replica) for replica in primary.replicas):
        return
    position: int | None = None
    with suppress(DatabaseError, DBAPIError):  # What is committed is committed.
        position = await primary.reader.scalar(END)
    request.positions[primary.name] = NOWHERE if position is None else position
    request.written.add(primary.name)


def is_apart(replica: Replicated) -> bool:
    """Whether a replica is asked to show a client's own writes, and may not have them yet."""
    primary, settings = replica.replica_of, replica.settings
    return (
        settings.read_your_writes and primary is not None and settings.url != primary.settings.url
    )


def may_read(replica: Replicated) -> bool:
    """Whether a replica is up, near enough to its primary, and has what this client wrote."""
    settings, probe = replica.settings, replica.probe
    if settings.fallback and replica.status != "up":
        return False
    request = inherited()  # What it wrote, the tasks that it leaves behind read too.
    if request is None or replica.replica_of is None or not is_apart(replica):
        return True
    return request.positions.get(replica.replica_of.name, 0) <= (probe.position or 0)


def source(database: Replicated) -> Replicated:
    """Return where a read goes now: to the database or, for a replica, perhaps to its primary."""
    primary = database.replica_of
    if primary is None or may_read(database) or not primary.probe.is_up:
        return database
    return primary


class ReplicaReader(Reader):
    """Reads from a replica or, while that may not be read, from its primary."""

    def __init__(self, replica: Replicated, primary: Replicated, engine: AsyncEngine) -> None:
        super().__init__(replica.name, engine, writer=primary.name)
        self._replica = replica
        self._primary = primary

    def _source(self) -> AsyncEngine:
        return self._engine if source(self._replica) is self._replica else self._primary.engine

    async def _read(self, ask: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        engine = self._source()
        try:
            return await ask(engine.sync_engine, *arguments)
        except DBAPIError as error:
            # A read does no harm a second time.
            lost = error.connection_invalidated
            conflict = is_retryable(sqlstate(error))  # with what the replica has to repeat
            may_ask_again = self._replica.settings.fallback and engine is self._engine
            if not may_ask_again or not (lost or conflict):
                raise
        return await ask(self._primary.engine.sync_engine, *arguments)
