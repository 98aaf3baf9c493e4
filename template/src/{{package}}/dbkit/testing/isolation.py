"""One database during the tests: in the sandbox, or a copy of its own, with a check for leaks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import URL

from ..clock import monotonic
from ..database.database import Database, Opened
from ..database.readers import Reader
from ..engines.session_state import Left
from ..pool.connections import CLOSE_TIMEOUT
from .home import Home
from .sandbox import Sandbox
from .watch import Watch, WatchedPool

GRACE = 0.25
"""Seconds to wait for a connection that no task seems to hold at the end of a test."""
PATIENCE = 2.0
"""Seconds that tasks have to end, or to return their connection; less would not do under load."""

LEAK = "{name}: a connection was not returned; it was taken at\n  {checkout}"
UNFINISHED = (
    "{name}: the task {task} used this database, and still ran when the test ended; it is\n"
    "  {coroutine}: await it, or cancel it, in the test"
)
CONNECTED = "{name}: an engine of the test's own was still connected to its database"


class Isolation:
    """Isolates the tests of one worker in one database."""

    def __init__(self, database: Database, home: Home) -> None:
        self.database = database
        self.watch = Watch(database.name)
        self._home = home
        self._url = home.own
        self._before: set[asyncio.Task[Any]] = set()
        self._sandboxed: tuple[Opened, Sandbox] | None = None
        self._copied: Opened | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._idle: list[Isolation] = []
        """Isolations of tasks that have ended, to be used again."""

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[list[str]]:
        """Roll everything back on exit; yields a list that then says what the test left behind."""
        faults: list[str] = []
        opened, sandbox = self._sandboxed = self._sandboxed or self._make_sandbox()
        with self.database.replaced(replace(opened, probe=self.database.probe)):
            self._begin()
            try:
                yield faults
            finally:
                faults += await self._leaks()
                altered = sandbox.is_altered
                with self.watch.by_fixture():
                    left = None if faults else await sandbox.end(opened.engine)
                if left:
                    faults.append(left)
                if faults or altered:
                    await self._close_sandbox()
                if left:
                    self._url = await self._home.another()

    @asynccontextmanager
    async def copy(self, *, here: bool = False) -> AsyncGenerator[list[str]]:
        """Use a copy of the migrated template, with the whole pool.

        Either everywhere, or `here`: in the current task and those that it begins.
        """
        faults: list[str] = []
        copied = await self._take_copy()
        opened = replace(copied, probe=self.database.probe)
        with self.database.replaced_here(opened) if here else self.database.replaced(opened):
            self._begin()
            try:
                yield faults
            finally:
                faults += await self._leaks()
                if not faults and await self._others(copied.settings.url):
                    faults.append(CONNECTED.format(name=self.database.name))
                self._renewal = asyncio.create_task(self._renew(copied, anew=bool(faults)))
                self._copied = copied

    async def _take_copy(self) -> Opened:
        """Check out an engine on a pristine copy of the template; the caller returns it."""
        copied, self._copied = self._copied, None
        if self._renewal is not None:
            renewal, self._renewal = self._renewal, None
            await renewal
        if copied is None:
            url = await self._home.another()
            settings = self.database.settings.model_copy(update={"url": url})
            # One for all tests: with each, the dialect would look at the server anew, and
            # SQLAlchemy compile each statement again (3 connects' worth of time).
            copied = self.database.make(settings, poolclass=WatchedPool)
            self.watch.attach(copied.engine)
        return copied

    async def _renew(self, copied: Opened, *, anew: bool) -> None:
        """Restore a copy and its pool to what they were before the first test."""
        url, pool = copied.settings.url, copied.engine.pool
        assert isinstance(pool, WatchedPool)  # noqa: S101 -- made above
        pool.settings = copied.settings  # Not what a test made of them.
        renewed = not anew and await self._home.renew(url)
        if not (renewed and await self._keep_one(copied, pool)):
            await pool.drain(0)
            await copied.engine.dispose()  # It makes a new pool.
        if not renewed:
            await self._home.copy(url)

    async def _keep_one(self, copied: Opened, pool: WatchedPool) -> bool:
        """Keep one connection, as new, which is quicker than to open it; return whether it is."""
        if self.database.dialect != "postgresql":
            return False
        pool.resume()
        pool.resize(1, 0)
        try:
            with self.watch.by_fixture():
                async with copied.engine.connect() as connection:
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    driver.left = max(driver.left, Left.STATE)  # Then the pool resets it.
        except Exception:  # noqa: BLE001 -- whatever a test did to it
            return False
        pool.resize(copied.settings.pool_size, copied.settings.max_overflow)
        return True

    @asynccontextmanager
    async def copy_here(self) -> AsyncGenerator[list[str]]:
        """Use a copy in the current task; other tasks may do so at the same time."""
        isolation = self._idle.pop() if self._idle else Isolation(self.database, self._home)
        isolation.watch.records = self.watch.records
        async with isolation.copy(here=True) as faults:
            yield faults
        self._idle.append(isolation)

    async def close(self) -> None:
        """Close what is open."""
        for isolation in self._idle:
            await isolation.close()
        if self._copied is not None:
            await (await self._take_copy()).engine.dispose()
        await self._close_sandbox()

    async def _close_sandbox(self) -> None:
        """Close the sandbox; the next test makes another."""
        if self._sandboxed is not None:
            opened, _ = self._sandboxed
            self._sandboxed = None
            pool = opened.engine.pool
            assert isinstance(pool, WatchedPool)  # noqa: S101 -- made below
            await pool.drain(0)

    def _make_sandbox(self) -> tuple[Opened, Sandbox]:
        # One connection, which lives for the whole run, and is taken in turns.
        settings = self.database.settings.model_copy(
            update={
                "url": self._url,
                "pool_size": 1,
                "max_overflow": 0,
                "queue_target": 0,
                "pool_recycle": 86400,
                "keepalive": 0,
                "idle_in_transaction_timeout": 0,
            }
        )
        opened = self.database.make(settings, poolclass=WatchedPool)
        self.watch.attach(opened.engine, one_connection=True)
        return opened, Sandbox(self.database.name, opened.engine)

    def _begin(self) -> None:
        self._before = asyncio.all_tasks()
        self.watch.users.clear()

    async def _leaks(self) -> list[str]:
        """Say what the test left behind, and end it."""
        watch, name = self.watch, self.database.name
        began = monotonic()
        while watch.held or self._unfinished():
            if monotonic() - began > (PATIENCE if self._running() else GRACE):
                break
            await asyncio.sleep(0.005)
        faults = [LEAK.format(name=name, checkout=each) for each in watch.held.values()]
        if unfinished := self._unfinished():
            faults += [
                UNFINISHED.format(name=name, task=task.get_name(), coroutine=where(task))
                for task in unfinished
            ]
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=GRACE)
        watch.held.clear()
        return faults + await self._leaks_of_threads()

    async def _leaks_of_threads(self) -> list[str]:
        """Say what synchronous code left behind, and close what it used."""
        pools = self.database.pools[1:]
        began = monotonic()
        while any(pool.checkedout() for pool in pools) and monotonic() - began < PATIENCE:  # noqa: ASYNC110 -- threads return them
            await asyncio.sleep(0.005)
        holders = [str(holder) for pool in pools for holder in pool.holders()]
        if pools:
            await asyncio.to_thread(self.database.close_sync)
        return [LEAK.format(name=self.database.name, checkout=holder) for holder in holders]

    async def _others(self, url: URL) -> bool:
        """Say whether more than the pool is connected to a copy, when what is on its way has come.

        The server still lists a connection that was just closed, and already one being made.
        """
        end = monotonic() + CLOSE_TIMEOUT
        while True:
            listed = await self._home.connections(url)
            pool = self.database.pool.snapshot()
            if listed <= pool.in_use + pool.idle:
                return False
            if monotonic() > end:
                return True
            await asyncio.sleep(0.005)

    def _unfinished(self) -> set[asyncio.Task[Any]]:
        return self._running() - self._before

    def _running(self) -> set[asyncio.Task[Any]]:
        current = asyncio.current_task()
        return {task for task in self.watch.users if not task.done() and task is not current}


def follow_primary(replica: Database, *, here: bool = False) -> AbstractContextManager[None]:
    """Have a replica read what is in its primary until exit: nobody else sees into a sandbox.

    Either everywhere, or `here`: in the current task and those that it begins.
    """
    primary = replica.replica_of
    assert primary is not None  # noqa: S101 -- a replica is of something
    opened = replace(
        primary._open,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] -- one of us
        settings=replica.settings.model_copy(update={"url": primary.settings.url}),
        reader=Reader(replica.name, primary.engine, writer=primary.name),
        probe=replica.probe,
    )
    return replica.replaced_here(opened) if here else replica.replaced(opened)


def where(task: asyncio.Task[Any]) -> str:
    """Say what a task runs, and where it waits."""
    frames = task.get_stack(limit=1)
    at = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    return f"{getattr(task.get_coro(), '__qualname__', task.get_coro())}{at}"
