"""Whether the server of a database answers."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import Executable, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..clock import monotonic
from ..errors import DatabaseError
from ..loggers import logger_named
from ..pool.timeouts import within
from ..settings.database import DatabaseSettings
from .budget import Limits, read_limits
from .readers import Reader

logger = logger_named("health")

ALIVE = select(1)
INTERVAL = 2.0
"""Seconds between two questions."""
TIMEOUT = 2.0
"""Seconds that the server has to answer."""


class Probe:
    """Whether one server answers, asked in the background on a connection of its own.

    A pool with no free connection is busy, not down: the probe never waits for the pool,
    and a route that reads `is_up` never waits for the server. `question` is what it asks, for
    one value.
    """

    def __init__(self, name: str, engine: AsyncEngine, *, question: Executable = ALIVE) -> None:
        self.is_up = False
        self.has_been_up = False
        self.limits: Limits | None = None
        """How many connections the server accepts, as it said at the start."""
        self.position: int | None = None
        """How far a primary, or the last of a replica's hosts, has come; see `replicas`."""
        self.lag = 0.0
        """Seconds that a replica is behind its primary."""
        self.is_behind = False
        """Whether that is more than `max_lag`."""
        self.answer: Any = None
        """What the server answered last; None when it was an error."""
        self._question = question
        self._name = name
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: AsyncConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._down_since: float | None = None

    async def start(self, answered: Callable[[], None]) -> None:
        """Ask once, and from then on every `INTERVAL` seconds; tell who waits for an answer."""
        await self.ask()
        if self._connection is not None:
            try:
                async with within(TIMEOUT):
                    self.limits = await read_limits(self._connection)
            except Exception:  # noqa: BLE001 -- it is asked again for what matters.
                await self._hang_up()
        self._task = asyncio.create_task(self._keep_asking(answered), name=f"probe of {self._name}")

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._hang_up()

    async def ask(self) -> None:
        """Ask the server; log when it goes down and when it comes back."""
        error = await self._try()
        if isinstance(error, TimeoutError):
            # Perhaps the server was slow, perhaps our own event loop: the second try decides.
            error = await self._try()
        if error is None:
            self.is_up = self.has_been_up = True
            if self._down_since is not None:
                seconds = monotonic() - self._down_since
                logger.warning("%s: up again after %.1f s", self._name, seconds)
                self._down_since = None
            return
        self.is_up = False
        if self._down_since is None:
            self._down_since = monotonic()
            # The driver's message is without the statement.
            is_ours = isinstance(error, DatabaseError)
            said = error.detail if is_ours else getattr(error, "orig", None) or error
            why = str(said).partition("\n")[0]
            logger.error("%s: down: %s", self._name, why or f"no answer in {TIMEOUT:g} s")

    async def _try(self) -> Exception | None:
        """Ask once, and return what went wrong."""
        try:
            async with within(TIMEOUT):
                if self._connection is None:
                    self._connection = await self._engine.connect()
                self.answer = await self._connection.scalar(self._question)
        except DBAPIError as error:
            self.answer = None
            if error.connection_invalidated or self._connection is None:
                await self._hang_up()
                return error
        except Exception as error:  # noqa: BLE001 -- whatever went wrong, there was no answer.
            await self._hang_up()
            return error
        return None

    async def _keep_asking(self, answered: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.ask()
            if self.is_up:
                answered()

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                async with asyncio.timeout(TIMEOUT):
                    await connection.invalidate()
                    await connection.close()


class Replicated(Protocol):
    """A `Database` that is a replica, or has some."""

    @property
    def name(self) -> str: ...  # noqa: D102 -- as of `Database`, and so on
    @property
    def settings(self) -> DatabaseSettings: ...  # noqa: D102 -- as above
    @property
    def engine(self) -> AsyncEngine: ...  # noqa: D102 -- as above
    @property
    def probe(self) -> Probe: ...  # noqa: D102 -- as above
    @property
    def reader(self) -> Reader: ...  # noqa: D102 -- as above
    @property
    def status(self) -> str: ...  # noqa: D102 -- as above
    @property
    def is_open(self) -> bool: ...  # noqa: D102 -- as above
    @property
    def replica_of(self) -> "Replicated | None": ...  # noqa: D102 -- as above
    @property
    def replicas(self) -> "Sequence[Replicated]": ...  # noqa: D102 -- as above
