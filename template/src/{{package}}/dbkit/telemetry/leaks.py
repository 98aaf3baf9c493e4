"""Connections that are held for too long, or for nothing: named, and taken back if lost."""

import asyncio
import gc
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from ..clock import monotonic
from ..loggers import logger_named
from ..pool import FairPool
from ..pool.usage import NO_ROUTE, WEBSOCKET, Use, holder_of

if TYPE_CHECKING:
    from ..pool.thread_pool import ThreadPool

logger = logger_named("detectors")

LOOK = 0.5
"""Seconds between two looks at who holds connections."""
IDLE_HOLD = 1.0
"""Seconds for which a connection may be held for something else than SQL."""
ENDED = 0.5
"""Seconds after which a connection whose task has ended is looked for in what is garbage."""
FOUND_WITHIN = 0.05
"""Seconds in which what the garbage collector finds is closed."""
SHARE = 50
"""A full garbage collection is followed by none of ours for so many times as long as it took."""
QUIET = 60.0
"""Seconds until the same route is named again."""

ADVICE = "end the session before what is slow, or begin it after"
IN_WEBSOCKET = "a WebSocket takes `async with {}.session()` for each message"


class Detectors:
    """Look after the holders of one database: name leaks and holds for nothing, end lost ones.

    A task that has ended returns nothing, but others may: a fixture, a dependency, whoever else
    refers to the connection. Only the garbage collector knows that nobody does. It comes late, for
    a session is part of cycles; so it is sent for, and SQLAlchemy closes what it finds.

    `pool` gives the live pool, which another replaces on `dispose()`.
    """

    def __init__(self, pool: "Callable[[], FairPool | ThreadPool]", env_prefix: str) -> None:
        self._pool = pool
        self._env_prefix = env_prefix
        self._leaks: set[Use] = set()
        self._stood: deque[tuple[float, float]] = deque(maxlen=100)
        """When the event loop went on after it stood, and for how many seconds it had."""
        self._lost: dict[Use, float] = {}
        """Leaks, and holders whose task has ended; and when the collector is next sent for them."""
        self._sought: list[Use] = []
        """Those for which it was sent a moment ago."""
        self._collect_after = -inf
        self._named: dict[str, float] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            due = monotonic() + LOOK
            await asyncio.sleep(LOOK)
            now = monotonic()
            if now - due >= LOOK / 2:
                self._stood.append((now, now - due))
            self.look(now)
            if self._sought:
                await asyncio.sleep(FOUND_WITHIN)
                self.say_what_was_found()

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
        uses, leak_after = pool.uses(), pool.settings.leak_after
        self._look_for_lost(uses, now)
        for use in uses:
            held = now - use.since
            if self._stood:  # No holder could go on.
                held -= sum(seconds for at, seconds in self._stood if at > use.since)
            if held < min(IDLE_HOLD, leak_after or IDLE_HOLD):
                break  # The others took theirs later.
            if 0 < leak_after <= held and use not in self._leaks:
                self._leaks.add(use)
                self._lost.setdefault(use, now)
                pool.usage.leaks += 1
                logger.warning(
                    "%s: a connection is held for longer than %sLEAK_AFTER, %g s: %s",
                    pool.name,
                    self._env_prefix,
                    leak_after,
                    holder_of(pool.name, use, now),
                )
            elif not (use.sql_since or use.streams) and held - use.in_sql >= IDLE_HOLD:
                self._name_idle(pool, use, now)

    def _look_for_lost(self, uses: list[Use], now: float) -> None:
        """Have the garbage collector find connections that nobody can return any more."""
        self._lost = {use: due for use, due in self._lost.items() if use.returned is None}
        for use in uses:
            if use.ended and use not in self._lost:
                self._lost[use] = now + ENDED
                self._pool().usage.let_go(use)
        self._sought = [use for use, due in self._lost.items() if due <= now]
        for use in self._sought:  # What is not found is referred to: each time later.
            self._lost[use] = now + 2 * (now - use.since)
        began = monotonic()
        if self._sought and began >= self._collect_after:
            gc.collect()
            self._collect_after = monotonic() + SHARE * (monotonic() - began)
        elif self._sought:
            gc.collect(1)  # The younger objects, in a millisecond.

    def say_what_was_found(self) -> None:
        """Name the connections that the garbage collector has just found."""
        pool = self._pool()
        for use in self._sought:
            if use.returned is not None:
                pool.counters.reclaimed += 1
                logger.warning(
                    "%s: a connection was never returned, and was taken back: %s; use"
                    " `async with`, and one session for each task",
                    pool.name,
                    holder_of(pool.name, use, use.returned),
                )
        self._sought = []

    def _name_idle(self, pool: "FairPool | ThreadPool", use: Use, now: float) -> None:
        route = use.route or NO_ROUTE
        if use in self._leaks or use.ended or now < self._named.get(route, 0):
            return
        self._named = {name: until for name, until in self._named.items() if now < until}
        self._named[route] = now + QUIET
        logger.warning(
            "%s: a connection is held while the database has nothing to do: %s; %s",
            pool.name,
            holder_of(pool.name, use, now),
            IN_WEBSOCKET.format(pool.name) if route.startswith(WEBSOCKET) else ADVICE,
        )
