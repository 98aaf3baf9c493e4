"""Waiting for what sets no event: sockets, servers, other processes."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that must come to pass, half a minute at the most."""
    async with asyncio.timeout(30):
        while True:
            outcome = condition()
            if outcome if isinstance(outcome, bool) else await outcome:
                return
            await asyncio.sleep(0.01)
