"""A steady load of small writes on an engine, and what became of it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import uuid4

from dbkit import Database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

WRITE = text("INSERT INTO marks VALUES (DEFAULT)")
FOR_PGBOUNCER = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
}
RATE = 100
"""Requests begun in a second."""
PATIENCE = 1.0
"""Seconds after which a client leaves."""
CALM = 0.3
"""Seconds of load before a fault, and of none failing after it."""
LONGEST = 15.0
"""Seconds after a fault within which requests must succeed again, or the engine is wedged."""


class Contender(ABC):
    """An engine under load."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine."""

    @abstractmethod
    def in_use(self) -> int:
        """Count the connections that are checked out."""

    @abstractmethod
    def open(self) -> int:
        """Count the connections that the engine knows of."""

    async def write(self) -> None:
        """Write a row."""
        async with self.engine.begin() as connection:
            await connection.execute(WRITE)

    async def serve(self) -> None:
        """Write for a client; once that has left, the kit cancels the request."""
        await self.write()


class Ours(Contender):
    """The kit's database, with its defaults."""

    def __init__(self, database: Database) -> None:
        super().__init__("this kit")
        self.database = database

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, with our pool."""
        return self.database.engine

    def in_use(self) -> int:
        """Count the connections that are checked out."""
        return self.database.pool.snapshot().in_use

    def open(self) -> int:
        """Count the connections that the pool knows of, and the probe's."""
        snapshot = self.database.pool.snapshot()
        return snapshot.in_use + snapshot.idle + 1


class Stock(Contender):
    """`create_async_engine(url)`, with its defaults."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__("stock engine")
        self._engine = engine
        self._requests: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Write for a client; FastAPI goes on when that has left."""
        request = asyncio.create_task(self.write())
        self._requests.add(request)
        request.add_done_callback(self._forget)
        await asyncio.shield(request)

    def _forget(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()

    async def abandon(self) -> None:
        """End what nobody waits for any more."""
        for request in tuple(self._requests):
            request.cancel()
        await asyncio.sleep(0)

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, with its pool."""
        return self._engine

    def in_use(self) -> int:
        """Count the connections that are checked out."""
        pool: Any = self._engine.pool
        return pool.checkedout()

    def open(self) -> int:
        """Count the connections that the pool knows of."""
        pool: Any = self._engine.pool
        return pool.checkedout() + pool.checkedin()


@asynccontextmanager
async def ours(url: str, name: str = "primary", **declared: Any) -> AsyncGenerator[Contender]:
    """Open the kit's database."""
    dialect = "mysql" if url.startswith("mysql") else "postgresql"
    async with Database(name, dialect, url=url, **declared).open() as database:
        yield Ours(database)


@asynccontextmanager
async def stock(url: str, *, pgbouncer: bool = False) -> AsyncGenerator[Contender]:
    """Make an engine as the documentation has it, also for PgBouncer."""
    engine = create_async_engine(url, connect_args=FOR_PGBOUNCER if pgbouncer else {})
    contender = Stock(engine)
    yield contender
    await contender.abandon()
    try:  # It waits for a server that does not answer.
        async with asyncio.timeout(PATIENCE):
            await engine.dispose()
    except TimeoutError:
        engine.sync_engine.dispose(close=False)


@dataclass
class Outcome:
    """What became of the requests, each begun before, during or after the fault."""

    asked: int = 0
    failed: dict[str, int] = field(default_factory=lambda: {"before": 0, "during": 0, "after": 0})
    in_flight: int = 0
    """Requests under way when the fault began."""
    recovery: float = 0.0
    """Seconds from the end of the fault to the end of the last request that failed."""
    is_wedged: bool = False
    """Whether requests still failed long after the fault."""
    leaked: int = 0
    """Connections that nobody holds and that are checked out all the same."""
    errors: set[str] = field(default_factory=set[str])


class Load:
    """Requests at a steady rate, whatever becomes of them: an open loop."""

    def __init__(self, contender: Contender, *, patience: float = PATIENCE) -> None:
        self.contender = contender
        self.patience = patience
        self.outcome = Outcome()
        self._phase = "before"
        self._ended_at = 0.0
        self._failed_at = 0.0
        self._served = 0
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self, fault: Callable[[], Awaitable[None]]) -> Outcome:
        """Put the engine under load, and the load through a fault."""
        await self._warm()
        generator = asyncio.create_task(self._generate())
        await asyncio.sleep(CALM)
        self.outcome.in_flight = len(self._requests)
        self._phase = "during"
        await fault()
        self._phase, self._ended_at = "after", monotonic()
        await self._recover()
        generator.cancel()
        await asyncio.wait({generator, *self._requests})
        self.outcome.recovery = max(self._failed_at - self._ended_at, 0.0)
        await self._settle()
        return self.outcome

    async def _warm(self) -> None:
        await asyncio.gather(*(self.contender.write() for _ in range(5)))

    async def _generate(self) -> None:
        begin = monotonic()
        while True:
            self.outcome.asked += 1
            task = asyncio.create_task(self._request(self._phase))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            await asyncio.sleep(max(begin + self.outcome.asked / RATE - monotonic(), 0))

    async def _request(self, phase: str) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await self.contender.serve()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client got no answer
            self.outcome.failed[phase] += 1
            self.outcome.errors.add(type(error).__name__)
            self._failed_at = monotonic()
            self._served = 0
        else:
            self._served += 1

    async def _recover(self) -> None:
        """Wait until nothing has failed for a while."""
        self._served = 0
        while self._served < RATE * CALM:
            if monotonic() > self._ended_at + LONGEST:
                self.outcome.is_wedged = True
                return
            await asyncio.sleep(0.01)

    async def _settle(self) -> None:
        """Count what is checked out although nobody holds it."""
        end = monotonic() + 2
        while self.contender.in_use() and monotonic() < end:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        self.outcome.leaked = self.contender.in_use()
