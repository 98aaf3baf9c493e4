"""Errors for callers that get no connection, and their lines in the log."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Protocol, TypeVar

from ..clock import monotonic
from ..errors import (
    DatabaseError,
    Holder,
    PoolClosed,
    PoolOverloaded,
    PoolTimeout,
    Unreachable,
    Unwritten,
)
from ..loggers import logger_named
from .background import Background
from .breaker import Breaker
from .status import PoolStatus
from .usage import SHOWN_HOLDERS, Usage

logger = logger_named("pool.refusals")

BLAME_FOR = 1.0
"""Seconds for which errors name the same holders: there may be thousands a second."""
QUIET = 5.0
"""Seconds without anybody turned away after which an overload is over."""
LOOK = (
    "Look for what holds connections: a handler that waits for something else meanwhile, a session"
    " that is never closed, a slow statement."
)

UNBLOCK = (
    "Await what blocks the event loop, or run it in a thread by `asyncio.to_thread`: nobody is"
    " served meanwhile, by however many connections."
)

Refused = TypeVar("Refused", PoolTimeout, PoolOverloaded)


class Pool(Protocol):
    """What a pool says of itself."""

    usage: Usage

    def snapshot(self) -> PoolStatus:
        """Return its numbers."""
        ...

    def status(self) -> str:
        """Return them as a sentence."""
        ...

    def timeout(self) -> float:
        """Return the seconds for which callers wait."""
        ...

    def holders(self, count: int | None = None) -> list[Holder]:
        """Return who holds its connections, the longest first."""
        ...


class Refusals:
    """Makes the errors of one pool; logs the first caller that is turned away, and the end."""

    def __init__(
        self, pool: Pool, env_prefix: str, breaker: Breaker, background: Background
    ) -> None:
        self._pool = pool
        self._env = env_prefix
        self._breaker = breaker
        self._background = background
        self._blamed: tuple[Holder, ...] = ()
        self._blamed_at = -inf
        self._began = 0.0
        self._last = 0.0
        self._turned_away = 0

    def timed_out(self, now: float) -> PoolTimeout:
        """Say that no connection became free within `pool_timeout` seconds."""
        status, timeout = self._pool.snapshot(), self._pool.timeout()
        return self._with_causes(
            PoolTimeout,
            status.name,
            now - timeout,
            lambda: (
                f"no connection within {timeout:g} s: {status}",
                LOOK,
                (
                    f"Raise {self._env}POOL_SIZE ({status.pool_size}) or {self._env}MAX_OVERFLOW"
                    f" ({status.max_overflow}) if the server has connections to spare."
                ),
            ),
        )

    def overloaded(self, now: float, waited: float) -> PoolOverloaded:
        """Say that a caller was turned away after `waited` seconds, before the timeout."""
        status = self._pool.snapshot()
        return self._with_causes(
            PoolOverloaded,
            status.name,
            now - waited,
            lambda: (
                f"overloaded, turned away after {waited:.2f} s: {status}",
                LOOK,
                (
                    "If nobody holds one for long, more is asked than this pool serves: raise"
                    f" {self._env}POOL_SIZE ({status.pool_size}) if the server has capacity to"
                    " spare, or start more processes."
                ),
                (
                    f"Raise {self._env}QUEUE_TARGET or {self._env}MAX_WAITING if callers should"
                    " rather wait."
                ),
            ),
        )

    def unreachable(self, now: float) -> Unreachable:
        """Say that the server gives no connection, why, and when it is asked again."""
        status, breaker = self._pool.snapshot(), self._breaker
        if isinstance(breaker.error, DatabaseError):
            reason = breaker.error.detail  # The engine's own sentence names the server.
        elif breaker.error is None:
            reason = "no answer yet to an attempt to connect"
        else:
            name, text = type(breaker.error).__name__, str(breaker.error).partition("\n")[0]
            reason = f"cannot connect: {name}{text and ': '}{text}"
        again = f", asked again in {max(breaker.retry_at - now, 0):.2f} s"
        text = advise(
            f"{reason} (failures in a row: {breaker.failures}"
            f"{again if breaker.state == 'open' else ''}; {status})",
            f"See that the server runs, and that {self._env}URL names it.",
        )
        again_in = breaker.retry_after(now)
        return Unreachable(status.name, text, cause=breaker.error, retry_after=again_in)

    def draining(self) -> PoolClosed:
        """Say that nothing is handed out any more."""
        status = self._pool.snapshot()
        return PoolClosed(status.name, f"the pool is closed, the service stops: {status}")

    def _with_causes(
        self, kind: type[Refused], name: str, since: float, say: Callable[[], tuple[str, ...]]
    ) -> Refused:
        """Make an error that knows who held the connections, as it was a second ago at most.

        What blocked the event loop since the caller came, or shortly before, is the cause where
        there is such: then a larger pool is no advice.
        """
        now = monotonic()
        if now - self._blamed_at >= BLAME_FOR:
            self._blamed_at = now
            self._blamed = tuple(self._pool.holders(SHOWN_HOLDERS))
        blocked = self._pool.usage.blocked_since(since - BLAME_FOR)
        holders = self._blamed

        def write() -> str:
            sentence, *steps = say()
            text = advise(sentence, *([UNBLOCK] if blocked else steps)) + write_holders(holders)
            return f"{text}\n  {blocked}" if blocked else text

        error = kind(name, Unwritten(write))
        error.holders, error.blocked = holders, blocked
        self._note(now, error)
        return error

    def _note(self, now: float, error: DatabaseError) -> None:
        if not self._turned_away:
            self._began = now
            logger.warning("%s", error)
        self._last = now
        self._turned_away += 1
        self._background.later("quiet", QUIET, self._look_whether_over)

    def _look_whether_over(self) -> None:
        rest = self._last + QUIET - monotonic()
        if rest > 0:
            self._background.later("quiet", rest, self._look_whether_over)
            return
        logger.warning(
            "%s; no longer overloaded; callers turned away: %d, in %.1f s",
            self._pool.status(),
            self._turned_away,
            self._last - self._began,
        )
        self._turned_away = 0


def write_holders(holders: Iterable[Holder]) -> str:
    """Write who holds connections, each in a line."""
    return "".join(f"\n  held by {each}" for each in holders)


def advise(sentence: str, *steps: str) -> str:
    """Write what happened, and below it what to do, in order."""
    return "\n".join([sentence, *(f"  {n}. {step}" for n, step in enumerate(steps, 1))])
