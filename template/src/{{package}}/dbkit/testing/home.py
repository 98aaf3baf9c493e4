"""Where one database of the service is during the tests, whatever its server."""

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import migrations
from ..database import Database
from ..engine import create_engine
from ..settings import DatabaseSettings
from . import kept

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")


class Home(ABC):
    """Where one database of the service is during the tests."""

    server = ""
    """Version of the server, once it is known."""

    def __init__(self, database: Database, base: URL, cache: Path | None = None) -> None:
        self.database = database
        self.base = base
        self.cache = cache
        self.template = self.at("template")
        self.own = self.at(WORKER)
        self.copies: list[URL] = []
        """What this worker has made and not dropped."""
        self._count = 0
        self._ahead: asyncio.Task[URL] | None = None
        self._drops: set[asyncio.Task[None]] = set()

    async def take(self) -> URL:
        """Return a copy for one test; the next one is made while that test runs."""
        ahead, self._ahead = self._ahead, None
        url = await (ahead or self.another())
        self._ahead = self._ahead or asyncio.create_task(self.another())
        return url

    def drop_later(self, url: URL) -> None:
        """Drop a copy while the next tests run."""
        task = asyncio.create_task(self.drop(url))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)

    async def another(self, url: URL | None = None) -> URL:
        """Make one more copy of the template, at `url` if given."""
        self._count += 1
        url = url or self.at(f"{WORKER}_{self._count}")
        self.copies.append(url)
        await self.copy(url)
        return url

    async def drop(self, url: URL) -> None:
        """Drop a copy, whoever is connected to it."""
        self.copies.remove(url)
        await self.delete(url)

    def at(self, suffix: str) -> URL:
        """Return the URL of one of our databases."""
        return self.base.set(database=f"{self.base.database}_{self.database.name}_{suffix}")

    async def prepare(self) -> None:
        """Make the template, unless another worker has, and this worker's copy."""
        await self.make_template()
        await self.another(self.own)

    async def migrate(self) -> None:
        """Migrate the template, unless what the same migrations made was kept."""
        if self.database.base is None:
            return
        file = self.cache and kept.kept_file(self.cache, self.database, self.server)
        if file and file.exists() and await self.load(file):
            return
        await self.migrate_at(self.template)
        if file:
            await self.keep(file)

    async def migrate_at(self, url: URL) -> None:
        """Migrate the database at `url`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(
                f"{self.database.env_prefix}URL", url.render_as_string(hide_password=False)
            )
            await migrations.migrate(self.database)

    async def keep(self, file: Path) -> None:  # noqa: B027 -- not every server can
        """Keep the migrated template for other runs, where that is quicker than to migrate."""

    async def load(self, file: Path) -> bool:
        """Make the empty template what was kept; return whether it is."""
        return False

    @abstractmethod
    async def make_template(self) -> None:
        """Make the template, migrated."""

    @abstractmethod
    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there."""

    @abstractmethod
    async def delete(self, url: URL) -> None:
        """Delete a database, whoever is connected to it."""

    @asynccontextmanager
    async def stay_connected(self) -> AsyncGenerator[None]:
        """Keep what is needed to make copies until exit, in this event loop."""
        yield
        await asyncio.gather(*self._drops, *([self._ahead] if self._ahead else []))
        self._ahead = None

    async def connections(self, url: URL) -> int:
        """Count the connections to a copy; 0 where nobody knows."""
        return 0

    async def clear(self) -> None:
        """Drop what would stay behind."""
        while self.copies:
            await self.drop(self.copies[-1])


class ServerHome(Home):
    """Databases on a server, beside the one that is named."""

    names_like: str
    """Lists the databases whose name is like `:pattern`."""
    _kept: AsyncConnection | None = None
    _turn: asyncio.Lock

    @asynccontextmanager
    async def stay_connected(self) -> AsyncGenerator[None]:
        """Keep a connection until exit: to open one takes as long as to make a copy."""
        self._turn = asyncio.Lock()
        async with self.connect() as self._kept, super().stay_connected():
            yield
        self._kept = None

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[AsyncConnection]:
        """Connect to the server, to make databases."""
        if self._kept is not None:
            async with self._turn:
                yield self._kept
            return
        url = self.base.set(database=None) if self.database.dialect == "mysql" else self.base
        settings = DatabaseSettings(
            url=url, statement_timeout=0, lock_timeout=0, idle_in_transaction_timeout=0
        )
        prefix = self.database.env_prefix
        engine = create_engine(self.database.name, prefix, settings, pooled=False)
        options = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with options.connect() as connection:
            yield connection

    async def clear(self) -> None:
        """Drop this worker's copies and, after the last worker, the template."""
        self._kept = None  # After Ctrl-C it is one of an event loop that has ended.
        await super().clear()
        async with self.connect() as connection:
            pattern = str(self.at("gw").database).replace("_", r"\_") + "%"
            others = await connection.execute(text(self.names_like), {"pattern": pattern})
            if not others.first():
                with contextlib.suppress(DBAPIError):  # Another worker copies it at this moment.
                    await self.drop_template(connection)

    @abstractmethod
    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
