"""Databases of tests on PostgreSQL, which can copy one."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ..database.database import Database
from . import kept
from .cleaning import Cleaner
from .folder import RUN
from .home import ServerHome

LOCK = 0x74657374  # "test": one worker makes a template, the others wait.


class PostgresHome(ServerHome):
    """Databases of PostgreSQL, which can copy one."""

    names_like = "SELECT datname FROM pg_database WHERE datname LIKE :pattern"

    def __init__(self, database: Database, base: URL, cache: Path | None = None) -> None:
        super().__init__(database, base, cache)
        self._cleaners: dict[URL, Cleaner] = {}
        self._connections = AsyncExitStack()

    @asynccontextmanager
    async def stay_connected(self) -> AsyncGenerator[None]:
        """Keep the connections to copies until exit, too."""
        async with AsyncExitStack() as self._connections, super().stay_connected():
            yield

    async def connections(self, url: URL) -> int:
        """Count the connections of others to a copy."""
        return await self._cleaners[url].others()

    async def make_template(self) -> None:
        """Make the template, unless another worker of this run has."""
        name = quoted(self.template)
        async with self.connect() as connection:
            self.server = str(connection.dialect.server_version_info)
            await connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
            made_by = "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
            found = await connection.execute(
                text(f"{made_by} WHERE datname = :name"), {"name": self.template.database}
            )
            if found.scalar() != RUN:
                await self.drop_left(connection)
                await connection.execute(text(f"CREATE DATABASE {name}"))
                await self.migrate()
                await connection.execute(text(f"COMMENT ON DATABASE {name} IS '{RUN}'"))

    async def keep(self, file: Path) -> None:
        """Keep the template as SQL."""
        await kept.dump(self.template, file)

    async def load(self, file: Path) -> bool:
        """Run the SQL that was kept."""
        return await kept.load(self.template, file)

    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there."""
        if cleaner := self._cleaners.pop(url, None):
            await cleaner.connection.close()
        await self.delete(url)
        name, template = quoted(url), quoted(self.template)
        async with self.connect() as connection:
            await connection.execute(
                text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
            )
        if self._kept is not None:
            connected = await self._connections.enter_async_context(self.connect_to(url))
            self._cleaners[url] = Cleaner(connected)
            await self._cleaners[url].look()

    async def renew(self, url: URL) -> bool:
        """Delete what a test wrote to a copy; return whether that is all it did."""
        return await self._cleaners[url].clean()

    async def delete(self, url: URL) -> None:
        """Delete a database, even while clients are connected to it."""
        async with self.connect() as connection:
            await connection.execute(text(f"DROP DATABASE IF EXISTS {quoted(url)} WITH (FORCE)"))

    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
        await connection.execute(text(f"DROP DATABASE IF EXISTS {quoted(self.template)}"))


def quoted(url: URL) -> str:
    """Quote the name of a database for SQL, in which colons begin parameters."""
    return '"' + str(url.database).replace('"', '""').replace(":", "\\:") + '"'


HOME = PostgresHome
