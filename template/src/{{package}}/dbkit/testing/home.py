"""Where one database of the service is during the tests, whatever its server."""

import asyncio
import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..commands import migrations
from ..commands.checks import address
from ..database.database import Database
from ..database.engine import create_engine
from ..settings.database import DatabaseSettings
from . import kept

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
OURS = r"(template|(main|gw\d+)(_\d+|_template)?)"
MIGRATING = asyncio.Lock()
"""Alembic's state is global."""


def lead_to(patch: pytest.MonkeyPatch, database: Database, url: URL) -> None:
    """Have the variables of a database lead to `url`, wherever they led."""
    prefix = database.env_prefix
    patch.setenv(f"{prefix}URL", url.render_as_string(hide_password=False))
    patch.setenv(f"{prefix}PASSWORD", url.password or "")
    for name in ("URL_FILE", "PASSWORD_FILE"):
        patch.delenv(f"{prefix}{name}", raising=False)


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

    async def another(self, url: URL | None = None) -> URL:
        """Make one more copy of the template, at `url` if given."""
        self._count += 1
        url = url or self.at(f"{WORKER}_{self._count}")
        self.copies.append(url)
        await self.copy(url)
        return url

    async def renew(self, url: URL) -> bool:
        """Make a copy what the template is, if that is quicker than to copy; return whether it is.

        It was a test's; only connections that hold nothing are open.
        """
        return False

    def at(self, suffix: str) -> URL:
        """Return the URL of one of our databases."""
        return self.base.set(database=f"{self.base.database}_{self.database.name}_{suffix}")

    def would_use(self, url: URL) -> bool:
        """Say whether that is the database named, or called as those that are dropped.

        The latter on any server: one server has many names.
        """
        if url.get_backend_name() != self.database.dialect:
            return False
        return self.drops(url) or address(url) == address(self.base)

    def drops(self, url: URL) -> bool:
        """Return whether a name is that of a test database, of this run or another."""
        name, start = url.database or "", self.at("").database or ""
        if self.database.dialect == "sqlite":
            name, start = str(Path(name).resolve()), f"{Path(start).resolve()}"
        return bool(re.fullmatch(re.escape(start) + OURS, name, re.IGNORECASE))

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
        async with MIGRATING:
            with pytest.MonkeyPatch.context() as patch:
                lead_to(patch, self.database, url)
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
        """Delete a database, even while clients are connected to it."""

    @asynccontextmanager
    async def stay_connected(self) -> AsyncGenerator[None]:
        """Keep what is needed to make copies until exit, in this event loop."""
        yield

    async def connections(self, url: URL) -> int:
        """Count the connections of others to a copy; 0 where nobody knows."""
        return 0

    async def clear(self) -> None:
        """Drop what would stay behind."""
        while self.copies:
            await self.delete(self.copies.pop())


class ServerHome(Home):
    """Databases on a server, next to the one that is named."""

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
        url = self.base._replace(database=None) if self.database.dialect == "mysql" else self.base
        async with self.connect_to(url) as connection:
            yield connection

    @asynccontextmanager
    async def connect_to(self, url: URL) -> AsyncGenerator[AsyncConnection]:
        """Connect to a database, each statement a transaction."""
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

    async def drop_left(self, connection: AsyncConnection) -> None:
        """Drop what runs that were killed have left; no other run uses this URL now."""
        pattern = str(self.at("").database).replace("_", r"\_") + "%"
        listed = await connection.execute(text(self.names_like), {"pattern": pattern})
        for name in listed.scalars().all():
            if self.drops(url := self.base.set(database=name)):
                await self.delete(url)

    @abstractmethod
    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
