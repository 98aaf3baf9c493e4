"""Timeouts that count only the time in which the event loop ran."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

STEPS = 4
"""Looks at the clock within a timeout; the last decides."""


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Raise `TimeoutError` after `seconds`, as `asyncio.timeout` does, if the loop ran meanwhile.

    An answer that came while the loop was blocked, or the process stopped, is read after that;
    `asyncio.timeout` ends before, and a healthy server would seem to be down. Here, a time in which
    the loop stood counts as one step of `STEPS`; and if the last one is late, one more follows.
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
