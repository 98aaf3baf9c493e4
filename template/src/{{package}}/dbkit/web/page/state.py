"""What the page shows: the pools at one moment, what was before, and what to do.

Only names, numbers and lines: no statement, no parameter, no secret.
"""

import asyncio
import os
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...clock import monotonic
from ...database.database import Database
from ...database.databases import Databases
from ...database.engine import SERVICE
from ...errors import Holder
from ...settings.database import DatabaseSettings
from ...settings.urls import shown as shown_url
from ...telemetry.event_loop import Watchdog
from ..workers import Workers
from .advice import WINDOW, advise, advise_size, measure
from .combine import MOST, add_samples, combine

if TYPE_CHECKING:
    from ...pool import FairPool
    from ...pool.thread_pool import ThreadPool

SECONDS = 300
"""What is remembered, while somebody looks."""
FRESH = 0.9
"""Seconds for which a state is shown to others too."""


class State:
    """The state of a service, taken when it is asked for and not more than once a second."""

    def __init__(self, databases: Databases, workers: Workers) -> None:
        self._databases = databases
        self._workers = workers
        workers.answers["state"] = lambda _: self._own()
        self._own_samples: deque[dict[str, Any]] = deque(maxlen=int(WINDOW / FRESH) + 1)
        self._samples: deque[dict[str, Any]] = deque(maxlen=SECONDS)
        self._taken = 0.0
        self._current: dict[str, Any] = {}
        self._asking = asyncio.Lock()

    async def current(self, *, history: bool = False) -> dict[str, Any]:
        """Return the state as JSON takes it, with the newest sample, or with all there are."""
        async with self._asking:  # Whoever comes meanwhile is shown the same.
            now = monotonic()
            if now - self._taken >= FRESH:
                states = [*(await self._workers.ask("state")).values()]
                self._taken = now
                self._samples.append({"at": round(now, 2), "databases": add_samples(states)})
                self._current = combine(states) | {"silent": self._workers.silent}
        samples = list(self._samples) if history else [self._samples[-1]]
        return self._current | {"samples": samples}

    def _own(self) -> dict[str, Any]:
        """Return the state of this worker alone."""
        pools = {pool.name: sample(pool) for pool in self._databases.pools()}
        self._own_samples.append({"at": monotonic(), "databases": pools})
        return {
            "service": SERVICE,
            "process": os.getpid(),
            "processes": self._databases.service.web_concurrency,
            "time": round(time.time(), 3),
            "event_loop": describe_loop(self._databases.watchdog),
            "sample": pools,
            "databases": {
                pool.name: self._describe_pool(each, pool)
                for each in self._databases.values()
                if each.is_open
                for pool in each.pools
            },
        }

    def _describe_pool(self, database: Database, pool: "FairPool | ThreadPool") -> dict[str, Any]:
        holders, routes = pool.holders(MOST), pool.usage.routes
        samples = [
            {"at": each["at"], **each["databases"][pool.name]}
            for each in self._own_samples
            if pool.name in each["databases"]
        ]
        load = measure(samples, routes.values())
        return {
            "up": database.probe.is_up,
            "pool": asdict(pool.snapshot()),
            "holders": [describe_holder(each) for each in holders],
            "routes": [{"route": name, **asdict(use)} for name, use in routes.items()],
            "settings": settings_of(database),
            "load": load and asdict(load),
            "advice": advise(database, pool, holders),
            "sizing": advise_size(database, pool, load, routes) if load else [],
        }


def sample(pool: "FairPool | ThreadPool") -> dict[str, Any]:
    """Return the numbers of one pool whose course is drawn, or summed."""
    status = pool.snapshot()
    return {
        "in_use": status.in_use,
        "idle": status.idle,
        "connecting": status.connecting,
        "limit": status.limit,
        "waiting": status.waiting,
        "turned_away": status.shed + status.timeouts + status.refused,
        "checkouts": sum(each.checkouts for each in pool.usage.routes.values()),
        "held": sum(each.held for each in pool.usage.routes.values()),
    }


def describe_loop(watchdog: Watchdog) -> dict[str, Any]:
    """Return how often the event loop was blocked, for how long, and by whom, the latest first."""
    now = monotonic()
    return {
        "blocks": watchdog.blocks,
        "blocked_seconds": watchdog.blocked_seconds,
        "latest": [
            {"ago": now - each.until, "seconds": each.seconds, "by": each.by, "where": each.where}
            for each in reversed(watchdog.latest)
        ],
    }


def describe_holder(holder: Holder) -> dict[str, Any]:
    """Return what is shown of a holder."""
    return {name: value for name, value in vars(holder).items() if name != "use"}


def settings_of(database: Database) -> list[dict[str, str]]:
    """List the settings in force, and where each comes from."""
    shown: list[dict[str, str]] = []
    for field in DatabaseSettings.model_fields:
        value: Any = getattr(database.pool.settings, field)
        changed = value != getattr(database.settings, field)
        if "password" in field and value:
            value = "***"
        if field == "url":
            value = shown_url(value)
        shown.append(
            {
                "name": f"{database.env_prefix}{field.upper()}",
                "value": str(value).lower() if isinstance(value, bool) else str(value),
                "origin": "resize()" if changed else database.origins.get(field, "default"),
            }
        )
    return shown
