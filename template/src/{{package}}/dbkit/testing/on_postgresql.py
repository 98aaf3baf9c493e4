"""Databases of tests on PostgreSQL, which can copy one."""

from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from . import kept
from .folder import RUN
from .home import ServerHome

LOCK = 0x74657374  # "test": one worker makes a template, the others wait.


class PostgresHome(ServerHome):
    """Databases of PostgreSQL, which can copy one."""

    names_like = "SELECT datname FROM pg_database WHERE datname LIKE :pattern"

    async def connections(self, url: URL) -> int:
        """Count the connections to a copy."""
        count = text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = :name AND backend_type = 'client backend'"  # No autovacuum.
        )
        async with self.connect() as connection:
            return (await connection.execute(count, {"name": url.database})).scalar_one()

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
                await connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
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
        name, template = quoted(url), quoted(self.template)
        async with self.connect() as connection:
            await connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
            await connection.execute(
                text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
            )

    async def delete(self, url: URL) -> None:
        """Delete a database, whoever is connected to it."""
        async with self.connect() as connection:
            await connection.execute(text(f"DROP DATABASE IF EXISTS {quoted(url)} WITH (FORCE)"))

    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
        await connection.execute(text(f"DROP DATABASE IF EXISTS {quoted(self.template)}"))


def quoted(url: URL) -> str:
    """Quote the name of a database for SQL, in which colons begin parameters."""
    return '"' + str(url.database).replace('"', '""').replace(":", "\\:") + '"'
