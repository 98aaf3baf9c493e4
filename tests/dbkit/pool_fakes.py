"""A server without a network, and an event loop in which time passes only when all wait.

What the pool promises about order and limits is shown on these: exactly, and in no time.
`test_pool_postgres.py` shows it on a real server.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec

import pytest
from dbkit import DatabaseSettings
from dbkit.engines.postgresql import RESET
from dbkit.engines.session_state import Left
from dbkit.pool import FairPool
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

P = ParamSpec("P")

taken: list[PoolProxiedConnection] = []
"""What a test took; what it did not give back is given back for it."""


class Stuck(Exception):
    """Everybody waits, and nothing is due: in real time, this would hang for ever."""


class VirtualSelector(selectors.SelectSelector):
    """Where a loop would sleep, the clock jumps instead."""

    now = 1_000_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Return what is ready; else let the time pass."""
        if ready := super().select(0):
            return ready
        if timeout is None:
            raise Stuck
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.selector = VirtualSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        """Return the virtual time."""
        return self.selector.now


@contextmanager
def virtual_time() -> Generator[asyncio.Runner]:
    """Run in a virtual loop, by whose clock the pool goes."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.MonkeyPatch.context() as patch:
        taken.clear()
        clock = runner.get_loop().time
        for module in ("fair_pool", "connections", "refusals"):
            patch.setattr(f"dbkit.pool.{module}.monotonic", clock)
        yield runner


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time."""

    async def tidy(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            while taken:
                if (connection := taken.pop()).is_valid:
                    await give(connection)
            await settle()

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with virtual_time() as runner:
            runner.run(tidy(*args, **kwargs))

    return run


class FakeConnection:
    """A connection of the driver, and of the adapter, in one."""

    def __init__(self, server: "FakeServer", number: int) -> None:
        self.server = server
        self.number = number
        self.closed = False
        self.dead = False
        """Whether the peer is gone without a word: only a ping that is bounded finds out."""
        self.in_transaction = False
        self.left = Left.NOTHING
        self.handed_out = False
        self._protocol = self

    def __repr__(self) -> str:
        return f"<connection {self.number}>"

    def is_closed(self) -> bool:
        """Answer from memory, as asyncpg does."""
        return self.closed

    def is_in_transaction(self) -> bool:
        """Answer from memory, too."""
        return self.in_transaction

    async def execute(self, statement: str) -> None:
        """Answer a ping, or a reset."""
        self.server.pings += 1
        self.server.resets += statement == RESET
        await self.server.answer(self)

    async def close(self) -> None:
        """Say goodbye, and close; as asyncpg's adapter, wait for no more than two seconds."""
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(2):
                await self.server.answer(self)
                self.server.goodbyes += 1
        self.cut()

    def cut(self) -> None:
        """Close without a word."""
        self.closed = True
        self.server.open.discard(self)


class FakeServer:
    """Accepts connections, and counts."""

    def __init__(self) -> None:
        self.open: set[FakeConnection] = set()
        self.most_open = 0
        self.asked = 0
        self.accepted = 0
        self.pings = 0
        self.resets = 0
        self.goodbyes = 0
        self.refusal: Exception | None = None
        self.latency = 0.0
        """Seconds until it answers an attempt to connect."""
        self._thaw: asyncio.Event | None = None

    def freeze(self) -> None:
        """Answer nothing any more: neither attempts to connect, nor pings, nor goodbyes."""
        self._thaw = self._thaw or asyncio.Event()

    def thaw(self) -> None:
        """Answer again, also what was asked meanwhile."""
        if self._thaw:
            self._thaw.set()
            self._thaw = None

    def forget(self) -> None:
        """Answer again, but for what was asked meanwhile: those packets are lost."""
        self._thaw = None

    async def answer(self, connection: FakeConnection | None = None) -> None:
        """Answer, if there is somebody to."""
        if connection and connection.dead:
            await asyncio.Event().wait()
        if self._thaw:
            await self._thaw.wait()
        await asyncio.sleep(0)

    async def connect(self) -> FakeConnection:
        """Accept a connection, or refuse it."""
        self.asked += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        await self.answer()
        if self.refusal:
            raise self.refusal
        self.accepted += 1
        connection = FakeConnection(self, self.accepted)
        self.open.add(connection)
        self.most_open = max(self.most_open, len(self.open))
        return connection

    def kill_all(self) -> None:
        """Close every connection, as `pg_terminate_backend` does: the driver knows at once."""
        for connection in tuple(self.open):
            connection.cut()

    def pool(self, *, env_prefix: str = "DATABASE_", **settings: Any) -> FairPool:
        """Make a pool on this server; without keepalive, unless asked for."""
        return FairPool(
            lambda: await_only(self.connect()),
            settings_of({"keepalive": 0} | settings),
            env_prefix,
            logging_name="primary",
            dialect=FakeDialect(),
        )


def settings_of(settings: dict[str, Any]) -> DatabaseSettings:
    """Make settings of a pool, which may be beyond the bounds of those that a service has."""
    assert settings.keys() <= DatabaseSettings.model_fields.keys()
    patient: dict[str, Any] = {"max_waiting": 100_000}
    return DatabaseSettings.model_construct(**patient | settings)


class FakeDialect(DefaultDialect):
    """What the pool asks of a dialect; it passes for asyncpg's."""

    name = "postgresql"

    driver = "asyncpg"
    is_async = True
    has_terminate = True

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Do nothing: there are no transactions."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close as asyncpg's adapter does: with a word where that is possible."""
        if in_greenlet():
            await_only(dbapi_connection.close())
        else:
            dbapi_connection.cut()

    def get_driver_connection(self, connection: Any) -> Any:
        """Return the one there is."""
        return connection


async def take(pool: FairPool) -> PoolProxiedConnection:
    """Take a connection, as `AsyncEngine.connect()` does."""
    connection = await greenlet_spawn(pool.connect)
    taken.append(connection)
    return connection


async def give(connection: PoolProxiedConnection) -> None:
    """Give it back."""
    await greenlet_spawn(connection.close)


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


Caller = asyncio.Task[PoolProxiedConnection]


async def queue(pool: FairPool, count: int) -> list[Caller]:
    """Have callers come one after another."""
    callers: list[Caller] = []
    for _ in range(count):
        caller = asyncio.create_task(take(pool))
        caller.add_done_callback(outcome)  # Asyncio complains of errors that nobody looks at.
        callers.append(caller)
        await settle()
    return callers


def outcome(caller: Caller) -> str:
    """Name what became of a caller: `waiting`, `served`, `cancelled`, or the error."""
    if not caller.done():
        return "waiting"
    if caller.cancelled():
        return "cancelled"
    error = caller.exception()
    return type(error).__name__ if error else "served"


def outcomes(callers: Iterable[Caller]) -> list[str]:
    """Name what became of each caller."""
    return [outcome(caller) for caller in callers]
