"""Health: `/livez`, `/readyz` and `/startupz`, named as Kubernetes names them."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy import Executable, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from .budget import Limits, read_limits
from .errors import DatabaseError
from .routing import KitRouter
from .timeouts import within

if TYPE_CHECKING:
    from .databases import Databases

logger = logging.getLogger(__name__)

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
                seconds = time.monotonic() - self._down_since
                logger.warning("%s: up again after %.1f s", self._name, seconds)
                self._down_since = None
            return
        self.is_up = False
        if self._down_since is None:
            self._down_since = time.monotonic()
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


_stopping: dict[Callable[[], None], float] = {}
"""What is called at SIGTERM, and the delay that each asks for: one for each running service."""
_previous: dict[int, Any] = {}
"""The server's own handlers."""


@contextmanager
def notice_sigterm(stop: Callable[[], None], delay: float) -> Generator[None]:
    """Call `stop` at SIGTERM, and let the server stop `delay` seconds later.

    In between, requests are served and `/readyz` answers 503, so that a load balancer
    looks away before the port closes. At Ctrl-C there is no delay. Services that share a process
    stop together, after the longest of their delays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set signal handlers.
        return
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in tuple(_stopping):
            each()
        signal.signal(number, _previous[number])  # A second one does not wait.
        if number == signal.SIGINT:
            signal.raise_signal(number)
        else:
            longest = max(_stopping.values(), default=0)
            loop.call_soon_threadsafe(loop.call_later, longest, signal.raise_signal, number)

    keeps = getattr(signal.getsignal(signal.SIGTERM), "__module__", "") or ""
    if delay and not _stopping and not keeps.startswith("uvicorn"):
        logger.warning(
            "SHUTDOWN_DELAY=%g is kept by uvicorn alone: this server stops as soon as it is told"
            " to; have the platform wait before that, as by preStop.sleep of Kubernetes",
            delay,
        )
    if not _stopping:
        _previous.update({int(n): signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)})
        for number in _previous:
            signal.signal(number, handle)
    _stopping[stop] = delay
    try:
        yield
    finally:
        del _stopping[stop]
        if not _stopping:
            for number, handler in _previous.items():
                signal.signal(number, handler)


class Life(BaseModel):
    """The process runs."""

    status: Literal["alive"] = "alive"


class DatabaseHealth(BaseModel):
    """Whether one database answers, and whether the service needs it."""

    status: Literal["up", "down", "lagging"]
    required: bool


class Readiness(BaseModel):
    """Whether the service should be sent requests, and what its databases are doing."""

    status: Literal["ready", "not ready", "stopping"]
    databases: Mapping[str, DatabaseHealth]


def health_router(databases: "Databases") -> KitRouter:
    """Serve the three health routes; none of them waits for a database."""
    router = KitRouter(tags=["health"])

    def report(status: Literal["ready", "not ready", "stopping"]) -> Readiness:
        return Readiness(
            status=status,
            databases={
                name: DatabaseHealth(status=database.status, required=database.settings.required)
                for name, database in databases.items()
            },
        )

    def needed() -> list[Probe]:
        return [each.probe for each in databases.values() if each.settings.required]

    @router.get("/livez")
    async def livez() -> Life:
        """Answer 200 while the process runs; never look at a database."""
        return Life()

    @router.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Answer 200 while every required database answers, and until SIGTERM."""
        ready = all(probe.is_up for probe in needed())
        response.status_code = 200 if ready and not databases.stopping else 503
        if databases.stopping:
            return report("stopping")
        return report("ready" if ready else "not ready")

    @router.get("/startupz", responses={503: {"model": Readiness}})
    async def startupz(response: Response) -> Readiness:
        """Answer 200 once every required database has answered; for good."""
        started = all(probe.has_been_up for probe in needed())
        response.status_code = 200 if started else 503
        return report("ready" if started else "not ready")

    return router
