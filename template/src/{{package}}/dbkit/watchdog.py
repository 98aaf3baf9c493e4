"""A thread that says what blocks the event loop: then nobody's request goes on."""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from .disconnects import CancelOnDisconnect
from .lines import callers, lines_of
from .usage import route_of

logger = logging.getLogger(__name__)

QUIET = 60.0
"""Seconds until the same line is named again."""


class Watchdog:
    """Watches one event loop from outside: it must come round every `after` / 2 seconds.

    `held` says which connections are in use meanwhile.
    """

    def __init__(self, after: float, held: Callable[[], str]) -> None:
        self.blocks = 0
        """How often the loop was blocked for longer than `after`."""
        self.blocked_seconds = 0.0
        """For how long, in all."""
        self._after = after
        self._held = held
        self._beat = monotonic()
        self._named: dict[tuple[str, ...], float] = {}
        self._told = False
        self._stop = threading.Event()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watch the running loop until exit."""
        loop = asyncio.get_running_loop()
        ident = threading.get_ident()

        def tick() -> None:
            nonlocal timer
            self._come_round(monotonic())
            timer = loop.call_later(self._after / 2, tick)

        self._beat = monotonic()
        timer = loop.call_later(self._after / 2, tick)
        thread = threading.Thread(target=self._watch, args=[ident], name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            timer.cancel()
            self._stop.set()
            thread.join()

    def _come_round(self, now: float) -> None:
        late = now - self._beat - self._after / 2
        if late >= self._after:
            self.blocks += 1
            self.blocked_seconds += late
        if self._told:
            self._told = False
            logger.warning("the event loop goes on, after %.1f s", late)
        self._beat = now

    def _watch(self, ident: int) -> None:
        while not self._stop.wait(self._after / 2):
            late = monotonic() - self._beat - self._after / 2
            if late >= self._after and not self._told:
                frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- documented
                self._tell(frames[ident], late)

    def _tell(self, frame: FrameType, late: float) -> None:
        lines, route = lines_of(callers(frame)), served_route(frame)
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
    """Find the route that is being served where a frame is."""
    for each in callers(frame):
        if each.f_code is CancelOnDisconnect.__call__.__code__:
            return route_of(each.f_locals["scope"])
    return None
