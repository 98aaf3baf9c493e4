"""The databases of a service: read, opened, watched and closed together."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from ..errors import NotConfigured
from ..loggers import logger_named
from ..settings.database import (
    DatabaseSettings,
    environment,
    misspelt,
    read_full_tracebacks,
    read_log_format,
)
from ..settings.misspelt import is_fault, meant_for
from ..settings.service import ServiceSettings, read_service_settings
from ..telemetry.event_loop import Watchdog
from ..telemetry.metrics import POOL, Source
from ..telemetry.opentelemetry import log_pools, observed
from .budget import Claim, excesses
from .database import Database
from .garbage_collector import spare_requests
from .signals import notice_sigterm

if TYPE_CHECKING:
    from ..pool import FairPool
    from ..pool.thread_pool import ThreadPool

logger = logger_named("databases")


class Databases(Mapping[str, Database]):
    """The databases of a service, by name, opened and closed together."""

    def __init__(self, *databases: Database) -> None:
        self._by_name = {database.name: database for database in databases}
        self.service = ServiceSettings()
        """Settings of the service; the defaults until it is opened."""
        self.watchdog = Watchdog(self._in_use)
        """Knows what has blocked the event loop."""
        self.stopping = False

    def __getitem__(self, name: str) -> Database:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def read_settings(self) -> dict[str, DatabaseSettings]:
        """Read the settings of all; `NotConfigured` holds the faults of all."""
        variables = environment()
        settings: dict[str, DatabaseSettings] = {}
        faults: list[str] = []
        for database in self.values():
            try:
                settings[database.name] = database.read_settings(variables)
            except NotConfigured as error:
                faults += [fault for fault in error.faults if fault not in faults]  # of a replica
        if faults:
            raise NotConfigured(faults)
        return settings

    def misspelt_variables(self) -> dict[str, str]:
        """Map variables that seem to be meant for a database to what they may mean.

        Those that can only be ours are faults of its settings, and not among these.
        """
        prefixes = [each.env_prefix for each in self.values()]
        names = {each.name: each.env_prefix for each in self.values()}
        variables = environment()
        found = {
            name: near
            for name, near in misspelt(variables, prefixes, names).items()
            if not is_fault(name, prefixes)
        }
        for each in self.values():
            if not each.has_url(variables):
                unread = meant_for(variables, each.name, each.env_prefix, each.dialect)
                found |= dict.fromkeys(unread, f"{each.env_prefix}URL")
        return found

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self]:
        """Open every database; on exit, close them. To be entered in the lifespan."""
        settings = self.read_settings()
        variables = environment()
        self.service = read_service_settings(variables)
        read_full_tracebacks(variables, read_log_format(variables))
        if opened := [each.name for each in self.values() if each.is_open]:
            raise RuntimeError(f"{opened[0]}: open already; a service opens its databases once")
        for name, nearest in self.misspelt_variables().items():
            logger.warning("%s is no setting; did you mean %s?", name, nearest)
        self.stopping = False
        try:
            await all_of(each.start(settings[each.name]) for each in self.values())
            self._compare_with_budget()
            spare_requests()
            with self._watched(), notice_sigterm(self._stop, self.service.shutdown_delay):
                yield self
        finally:
            # All at once: one that drains slowly takes nothing from the others' time.
            await all_of(database.stop() for database in self.values())

    @contextmanager
    def _watched(self) -> Generator[None]:
        """Tell what the pools do, and what blocks the event loop."""
        log = asyncio.create_task(log_pools(self.pools, self.service.pools_log_interval))
        after = self.service.blocked_loop_after
        watching = self.watchdog.watching(after) if after else nullcontext()
        for each in self.values():
            each.pool.usage.blocked_since = self.watchdog.blocked_since
        if self.service.metrics_token:
            import_module("prometheus_client")  # It takes a while: not while requests wait.
        try:
            with observed(self.sources), watching:
                yield
        finally:
            log.cancel()

    def pools(self) -> "list[FairPool | ThreadPool]":
        """Return the pools that are open, those of synchronous code included."""
        return [pool for each in self.values() if each.is_open for pool in each.pools]

    def sources(self) -> list[Source]:
        """Return what has metrics: the watchdog, and the pools that are open."""
        return [({}, self.watchdog), *(({POOL: each.name}, each) for each in self.pools())]

    def _in_use(self) -> str:
        return ", ".join(
            f"{each.pool.checkedout()} of {each.name}" for each in self.values() if each.is_open
        )

    def _compare_with_budget(self) -> None:
        """Warn of limits of the servers that all processes together can exceed."""
        claims = [
            Claim(each.name, each.settings, each.probe.limits, each.uses_sync)
            for each in self.values()
            if each.probe.limits and not each.settings.pgbouncer
        ]
        for excess in excesses(claims, self.service.processes):
            logger.warning(
                "%s: %s; see `manage.py check --deploy`", excess.claims[0].database, excess
            )

    def _stop(self) -> None:
        self.stopping = True


async def all_of(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Take steps at once, and all to their end; raise the first failure."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if outcome is not None:
            raise outcome
