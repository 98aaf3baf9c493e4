"""What a pool says of itself: a snapshot in numbers, the sentences of its errors, and its log."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from ..errors import DatabaseError
from .background import Background
from .breaker import Breaker, BreakerState

logger = logging.getLogger(__name__)

QUIET = 5.0
"""Seconds without anybody turned away after which an overload is over."""


@dataclass
class Counters:
    """What has happened since the engine was created; they only grow."""

    connects: int = 0
    connect_seconds: float = 0.0
    connect_errors: int = 0
    pings: int = 0
    ping_errors: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    timeouts: int = 0
    shed: int = 0
    refused: int = 0
    retired: int = 0
    lost: int = 0


class PoolStatus(NamedTuple):
    """A pool at one moment. Times are seconds; the counters only grow.

    (Each error has one, and under overload there are many: a tuple takes half the time
    of a frozen dataclass.)
    """

    name: str
    pool_size: int
    """Connections that are kept."""
    max_overflow: int
    """Connections that may be opened beyond them, under pressure."""
    in_use: int
    idle: int
    """Open and not in use, including those that are being pinged."""
    connecting: int
    closing: int
    """Being closed; they count towards the limit until they are."""
    waiting: int
    """Callers in the queue."""
    oldest_wait: float
    breaker: BreakerState
    suspended: bool
    closed: bool
    connects: int
    """Connections that were opened."""
    connect_seconds: float
    """What opening them took, in all."""
    connect_errors: int
    """Attempts to open one that failed."""
    pings: int
    ping_errors: int
    waits: int
    """Checkouts that had to wait, and were served."""
    wait_seconds: float
    """What they waited, in all."""
    timeouts: int
    """Callers that waited for `pool_timeout` in vain."""
    shed: int
    """Callers turned away because the queue stood, or was full."""
    refused: int
    """Callers told that the server cannot be reached."""
    retired: int
    """Connections closed in good health: too old, idle for too long, or too many."""
    lost: int
    """Connections found dead, invalidated, or taken out of the pool."""

    @property
    def limit(self) -> int:
        """Connections that may be open at once."""
        return self.pool_size + self.max_overflow

    def __str__(self) -> str:
        text = (
            f"{self.in_use} of {self.limit} in use, {self.idle} idle,"
            f" {self.connecting} connecting, {self.waiting} waiting"
        )
        if self.waiting:
            text += f", the oldest for {self.oldest_wait:.2f} s"
        return f"{text}, suspended" if self.suspended else text


def advise(sentence: str, *steps: str) -> str:
    """Write what happened, and below it what to do, in order."""
    return "\n".join([sentence, *(f"  {n}. {step}" for n, step in enumerate(steps, 1))])


def timed_out(status: PoolStatus, timeout: float, env: str) -> str:
    """Say that no connection became free within `timeout` seconds."""
    return advise(
        f"{status.name}: no connection within {timeout:g} s: {status}",
        "Look for what holds connections: a handler that waits for something else meanwhile,"
        " a session that is never closed, a slow statement.",
        f"Raise {env}POOL_SIZE ({status.pool_size}) or {env}MAX_OVERFLOW"
        f" ({status.max_overflow}) if the server has connections to spare.",
    )


def overloaded(status: PoolStatus, waited: float, env: str) -> str:
    """Say that a caller was turned away after `waited` seconds, before the timeout."""
    return advise(
        f"{status.name}: overloaded, turned away after {waited:.2f} s: {status}",
        "Try again later: more is asked than this pool serves.",
        f"Raise {env}POOL_SIZE ({status.pool_size}) if the server has capacity to spare,"
        " or start more processes.",
        f"Raise {env}QUEUE_TARGET or {env}MAX_WAITING if callers should rather wait.",
    )


def unreachable(status: PoolStatus, breaker: Breaker, now: float, env: str) -> str:
    """Say that the server gives no connection, why, and when it is asked again."""
    error = breaker.error
    if isinstance(error, DatabaseError):
        reason = str(error)  # The engine's own sentence names the server.
    elif error is None:
        reason = f"{status.name}: no answer yet to an attempt to connect"
    else:
        text = str(error).partition("\n")[0]
        reason = f"{status.name}: cannot connect: {type(error).__name__}{text and ': '}{text}"
    again = f", asked again in {max(breaker.retry_at - now, 0):.2f} s"
    return advise(
        f"{reason} ({breaker.failures} failures in a row"
        f"{again if breaker.state == 'open' else ''}; {status})",
        f"See that the server runs, and that {env}URL names it.",
    )


class OverloadLog:
    """Logs the first caller that is turned away, and the end; nothing in between."""

    def __init__(self, background: Background, describe: Callable[[], str]) -> None:
        self._background = background
        self._describe = describe
        self._began = 0.0
        self._last = 0.0
        self._turned_away = 0

    def note(self, now: float, text: str) -> None:
        """Note that a caller is told `text`."""
        if not self._turned_away:
            self._began = now
            logger.warning("%s", text)
        self._last = now
        self._turned_away += 1
        self._background.later("quiet", QUIET, self._check)

    def _check(self) -> None:
        rest = self._last + QUIET - monotonic()
        if rest > 0:
            self._background.later("quiet", rest, self._check)
            return
        logger.warning(
            "%s; no longer overloaded: %d callers were turned away in %.1f s",
            self._describe(),
            self._turned_away,
            self._last - self._began,
        )
        self._turned_away = 0
