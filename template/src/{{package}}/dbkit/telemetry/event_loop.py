"""A thread that reports what blocks the event loop, and with it every request."""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from types import FrameType
from typing import Any, cast

from starlette.types import Scope

from ..callsites import callers, lines_of
from ..clock import monotonic
from ..loggers import logger_named
from ..pool.usage import route_of

logger = logger_named("watchdog")

QUIET = 60.0
"""Seconds until the same line is named again."""
REMEMBERED = 5
"""Blocks that are shown."""


@dataclass(frozen=True, slots=True)
class Block:
    """A period in which the event loop was blocked."""

    until: float
    """When it went on, by the monotonic clock."""
    seconds: float
    by: str
    """The route that was served: `GET /report`; or `a task`; or `others`, whose code is not the
    service's, when the machine is not merely too busy to go on with the loop."""
    where: tuple[str, ...]
    """Lines of the service where it was, the innermost first."""

    def __str__(self) -> str:
        text = f"the event loop was blocked for {self.seconds:.1f} s by {self.by}"
        return f"{text}, at {' <- '.join(self.where)}" if self.where else text


class Watchdog:
    """Watches one event loop from outside: it must come round in every half of `after` seconds.

    `held` says which connections are in use meanwhile.
    """

    def __init__(self, held: Callable[[], str]) -> None:
        self.blocks = 0
        """How often the loop was blocked for longer than `after`."""
        self.blocked_seconds = 0.0
        """For how long, in all."""
        self.latest: deque[Block] = deque(maxlen=REMEMBERED)
        self._after = inf
        self._held = held
        self._beat = 0.0
        self._seen: tuple[float, str | None, tuple[str, ...]] = (0.0, None, ())
        """Who blocked the loop at the latest look, after which beat."""
        self._named: dict[tuple[str, ...], float] = {}
        self._told = False

    @contextmanager
    def watching(self, after: float) -> Generator[None]:
        """Watch the running loop until exit."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def tick() -> None:
            nonlocal timer
            self._come_round(monotonic())
            timer = loop.call_later(after / 2, tick)

        self._after, self._beat = after, monotonic()
        timer = loop.call_later(after / 2, tick)
        thread = threading.Thread(
            target=self._watch, args=[threading.get_ident(), stop], name="watchdog", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            timer.cancel()
            stop.set()
            thread.join()

    def blocked_since(self, moment: float) -> str:
        """Say what blocked the loop after a moment, if anything did. To be called in the loop."""
        now = monotonic()
        self._come_round(now)  # What ends with this turn of the loop is one, too.
        if not self.latest or self.latest[-1].until < moment:
            return ""
        return f"{self.latest[-1]}, until {now - self.latest[-1].until:.1f} s ago"

    def _come_round(self, now: float) -> None:
        late = now - self._beat - self._after / 2
        if late >= self._after:
            beat, route, where = self._seen
            if beat != self._beat:
                route, where = None, ()
            self.blocks += 1
            self.blocked_seconds += late
            by = route or ("a task" if where else "others")
            self.latest.append(Block(now, late, by, where))
        if self._told:
            self._told = False
            logger.warning("the event loop goes on, after %.1f s", late)
        self._beat = now

    def _watch(self, ident: int, stop: threading.Event) -> None:
        while not stop.wait(self._after / 2):
            beat = self._beat
            late = monotonic() - beat - self._after / 2
            if late >= self._after and self._seen[0] != beat:
                frame = sys._current_frames()[ident]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- documented
                self._seen = beat, served_route(frame), lines_of(callers(frame))
                if self._beat == beat:  # Else it is something else by now.
                    self._tell(late)

    def _tell(self, late: float) -> None:
        _, route, lines = self._seen
        now = monotonic()
        # Neither: the machine is busy, and the loop waits for its turn.
        if not (lines or route) or now < self._named.get(lines[:1], 0):
            return
        self._named[lines[:1]] = now + QUIET
        self._told = True
        logger.warning(
            "the event loop is blocked for %.1f s by %s, at %s; meanwhile no request goes on (in"
            " use: %s): await it, or run it in a thread by `asyncio.to_thread`",
            late,
            route or "a task",
            " <- ".join(lines) or "no line of the service",
            self._held(),
        )


def served_route(frame: FrameType) -> str | None:
    """Find the route that is being served where a frame is: what calls ASGI applications has it."""
    for each in callers(frame):
        if each.f_code.co_name == "__call__" and "scope" in each.f_code.co_varnames:
            scope: Any = each.f_locals.get("scope")
            if isinstance(scope, dict) and "path" in scope:
                return route_of(cast("Scope", scope))
    return None
