"""Timeouts that do not count time during which the event loop was blocked."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

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
