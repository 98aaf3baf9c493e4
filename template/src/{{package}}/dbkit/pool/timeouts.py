"""Timeouts without the time in which the event loop was blocked, and timers that cost little."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from math import inf
from typing import Any

STEPS = 4
"""Looks at the clock within a timeout; the last decides."""


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Raise `TimeoutError` after `seconds`, as `asyncio.timeout` does, unless the loop was blocked.

    A response that arrived while the loop was blocked or the process stopped has not been read yet
    when `asyncio.timeout` expires, so a healthy server would seem to be down. Here a block counts
    as one of `STEPS` steps, and if the last step is late, one more follows.
    """
    loop = asyncio.get_running_loop()
    step = seconds / STEPS
    left = STEPS

    def look() -> None:
        nonlocal left, due, timer
        now = loop.time()
        left -= 1
        if left < 0 or (left == 0 and now - due < step / 2):
            limit.reschedule(now)
        else:
            due = now + step
            timer = loop.call_at(due, look)

    async with asyncio.timeout(None) as limit:
        due = loop.time() + step
        timer = loop.call_at(due, look)
        try:
            yield
        finally:
            timer.cancel()


GRAIN = 0.01
"""Seconds between two looks at shared timers at least: each look goes through all of them."""


class Timers:
    """Timers that share one of the event loop's; for calls that are nearly always cancelled.

    A call may come `GRAIN` seconds late.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._timers: dict[Timer, None] = {}
        self._due = inf

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> "Timer":
        """Call after so many seconds, in a context of its own."""
        due = self.loop.time() + delay
        timer = Timer(self._timers, due, call, args)
        self._timers[timer] = None
        if due < self._due:
            self._look_at(due)
        return timer

    def _look_at(self, due: float) -> None:
        self._due = due
        self.loop.call_at(due, self._look, due, context=Context())

    def _look(self, due: float) -> None:
        if due != self._due:
            return  # An earlier look came in between, and set another.
        self._due = inf
        now = self.loop.time()
        try:
            for timer in [each for each in self._timers if each.due <= now]:
                if timer in self._timers:  # Or a call before this one has cancelled it.
                    timer.cancel()
                    timer.call(*timer.args)
        finally:
            first = min((each.due for each in self._timers), default=inf)
            if first < self._due:
                self._look_at(max(first, now + GRAIN))


class Timer:
    """A call that can be cancelled."""

    __slots__ = ("_timers", "args", "call", "due")

    def __init__(
        self,
        timers: "dict[Timer, None]",
        due: float,
        call: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None:
        self._timers = timers
        self.due = due
        self.call = call
        self.args = args

    def cancel(self) -> None:
        """Do not call."""
        self._timers.pop(self, None)
