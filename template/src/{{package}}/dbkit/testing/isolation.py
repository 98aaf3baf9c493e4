"""One database during the tests: in the sandbox, or a copy of its own, with a check for leaks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

from sqlalchemy import URL

from ..database import Database, Opened
from ..pool.connections import CLOSE_TIMEOUT
from ..readers import Reader
from .home import Home
from .sandbox import Sandbox
from .watch import Watch, WatchedPool

GRACE = 0.25
"""Seconds that what is still under way at the end of a test has to return its connection."""

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
        self._engines: Opened | None = None
        self._copied = self._url
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
                with self.watch.by_fixture():
                    left = None if faults else await sandbox.end(opened.engine)
                if left:
                    faults.append(left)
                if faults:
                    await self.close()
                if left:
                    self._url = await self._home.another()

    @asynccontextmanager
    async def copy(self, *, here: bool = False) -> AsyncGenerator[list[str]]:
        """Use a copy of the migrated template, with the whole pool, dropped on exit.

        Either everywhere, or `here`: in the current task and those that it begins.
        """
        faults: list[str] = []
        url = self._copied = await self._home.take()
        settings = self.database.settings.model_copy(update={"url": url})
        engines = self._engines = self._engines or self._make_engines()
        opened = replace(engines, settings=settings, probe=self.database.probe)
        with self.database.replaced_here(opened) if here else self.database.replaced(opened):
            self._begin()
            try:
                yield faults
            finally:
                faults += await self._leaks()
                if not faults and await self._others(url):
                    faults.append(CONNECTED.format(name=self.database.name))
                await self.database.pool.drain(0)
                await engines.engine.dispose()  # It makes a new pool.
                self._home.drop_later(url)

    @asynccontextmanager
    async def copy_here(self) -> AsyncGenerator[list[str]]:
        """Use a copy in the current task; other tasks may do so at the same time."""
        isolation = self._idle.pop() if self._idle else Isolation(self.database, self._home)
        isolation.watch.records = self.watch.records
        async with isolation.copy(here=True) as faults:
            yield faults
        self._idle.append(isolation)

    async def close(self) -> None:
        """Close the sandbox; the next test makes another."""
        if self._sandboxed is not None:
            opened, _ = self._sandboxed
            self._sandboxed = None
            pool = opened.engine.pool
            assert isinstance(pool, WatchedPool)  # noqa: S101 -- made below
            await pool.drain(0)

    def _make_engines(self) -> Opened:
        # One for all copies: with each, the dialect would look at the server anew, and SQLAlchemy
        # compile each statement again (3 connects' worth of time).
        opened = self.database.make(self.database.settings, poolclass=WatchedPool)
        self.watch.attach(opened.engine)

        dialect: Any = opened.engine.sync_engine.dialect  # This engine's own.
        connect = dialect.connect

        def connect_to_copy(*_: object, **arguments: Any) -> Any:
            place, names = dialect.create_connect_args(self._copied)
            named = {key: names[key] for key in names if key in {"database", "db"}}
            return connect(*place, **arguments | named)

        dialect.connect = connect_to_copy
        return opened

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
        end = monotonic() + GRACE
        while (watch.held or self._unfinished()) and monotonic() < end:  # noqa: ASYNC110 -- no event
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
        return faults

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
        current = asyncio.current_task()
        return {
            task
            for task in self.watch.users
            if not task.done() and task is not current and task not in self._before
        }


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
