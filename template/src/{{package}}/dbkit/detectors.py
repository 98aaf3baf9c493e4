"""What is said of connections that are held for too long, and for nothing."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from .pool import FairPool
from .usage import NO_ROUTE, Use, holder_of

logger = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at who holds connections."""
IDLE_HOLD = 1.0
"""Seconds for which a connection may be held for something else than SQL."""
QUIET = 60.0
"""Seconds until the same route is named again."""


class Detectors:
    """Look after the holders of one database: they name leaks, and holds for nothing.

    `pool` gives the live pool, which another replaces on `dispose()`. `leak_after` is seconds,
    and 0 is never.
    """

    def __init__(self, pool: Callable[[], FairPool], leak_after: float, env_prefix: str) -> None:
        self._pool = pool
        self._leak_after = leak_after
        self._env_prefix = env_prefix
        self._leaks: set[Use] = set()
        self._named: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self.look(monotonic())

    def look(self, now: float) -> None:
        """Look once."""
        pool = self._pool()
        for use in [leak for leak in self._leaks if leak.returned is not None]:
            self._leaks.remove(use)
            held = (use.returned or now) - use.since
            logger.warning(
                "%s: %s returned its connection after %.1f s",
                pool.name,
                use.route or NO_ROUTE,
                held,
            )
        for use in pool.uses():
            held = now - use.since
            if held < min(IDLE_HOLD, self._leak_after or IDLE_HOLD):
                break  # The others took theirs later.
            if 0 < self._leak_after <= held and use not in self._leaks:
                self._leaks.add(use)
                pool.usage.leaks += 1
                logger.warning(
                    "%s: a connection is held for longer than %sLEAK_AFTER, %g s: %s",
                    pool.name,
                    self._env_prefix,
                    self._leak_after,
                    holder_of(pool.name, use, now),
                )
            elif not (use.sql_since or use.streams) and held - use.in_sql >= IDLE_HOLD:
                self._name_idle(pool, use, now)

    def _name_idle(self, pool: FairPool, use: Use, now: float) -> None:
        route = use.route or NO_ROUTE
        if use in self._leaks or use.ended or now < self._named.get(route, 0):
            return
        self._named = {name: until for name, until in self._named.items() if now < until}
        self._named[route] = now + QUIET
        logger.warning(
            "%s: a connection is held while the database has nothing to do: %s;"
            " end the session before what is slow, or begin it after",
            pool.name,
            holder_of(pool.name, use, now),
        )
