"""Databases of tests on MariaDB or MySQL, which copies none."""

import contextlib
from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..database.database import Database
from .folder import RUN
from .home import ServerHome

MADE_BY = "dbkit_made_by"
"""The table of a template that names the run which made it."""
# What a copy of tables would leave behind.
MORE_THAN_TABLES = """
SELECT 1 FROM information_schema.triggers WHERE trigger_schema = :name
UNION SELECT 1 FROM information_schema.routines WHERE routine_schema = :name
UNION SELECT 1 FROM information_schema.events WHERE event_schema = :name
UNION SELECT 1 FROM information_schema.tables
WHERE table_schema = :name AND table_type <> 'BASE TABLE'
"""
TABLES = f"""
SELECT table_name FROM information_schema.tables
WHERE table_schema = :name AND table_name <> '{MADE_BY}' ORDER BY table_name
"""  # noqa: S608 -- ours
COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = :name AND table_name = :table AND coalesce(generation_expression, '') = ''
"""


class MysqlHome(ServerHome):
    """Databases of MariaDB or MySQL, which copies none; the one that is named need not be there."""

    names_like = (
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE :pattern"
    )

    def __init__(self, database: Database, base: URL, cache: Path | None = None) -> None:
        super().__init__(database, base, cache)
        self._tables: dict[str, tuple[str, object]] = {}
        """What the template has."""

    async def connections(self, url: URL) -> int:
        """Count the connections to a copy."""
        async with self.connect() as connection:
            return len(await processes(connection, url))

    async def make_template(self) -> None:
        """Make the template, unless another worker of this run has."""
        name = backticks(self.template.database)
        async with self.connect() as connection:
            lock = text("SELECT GET_LOCK(:name, 3600)")
            await connection.execute(lock, {"name": self.template.database})
            with contextlib.suppress(DBAPIError):  # There is none.
                made_by = await connection.exec_driver_sql(f"SELECT run FROM {name}.{MADE_BY}")  # noqa: S608 -- ours
                if made_by.scalar() == RUN:
                    return
            await self.drop_left(connection)
            await make_empty(connection, self.template)
            await self.migrate()
            await connection.exec_driver_sql(f"CREATE TABLE {name}.{MADE_BY} AS SELECT '{RUN}' run")

    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there.

        Table by table, for there is no command for it; where the template has more than tables
        (views, triggers, routines), the copy is migrated instead.
        """
        async with self.connect() as connection:
            await make_empty(connection, url)
            if await has_more_than_tables(connection, self.template):
                await self.migrate_at(url)
            else:
                await self.copy_what_differs(connection, url)

    async def renew(self, url: URL) -> bool:
        """Copy the tables anew that a test has changed; return whether there is no more."""
        async with self.connect() as connection:
            if await has_more_than_tables(connection, self.template, url):
                return False
            await self.copy_what_differs(connection, url)
            return True

    async def copy_what_differs(self, connection: AsyncConnection, url: URL) -> None:
        """Make the tables of a copy what they are in the template."""
        source, target = backticks(self.template.database), backticks(url.database)
        self._tables = self._tables or await read_tables(connection, self.template)
        found = await read_tables(connection, url)
        await connection.exec_driver_sql("SET foreign_key_checks = 0")
        for name in found.keys() | self._tables.keys():
            if found.get(name) == self._tables.get(name):
                continue
            table = backticks(name)
            await connection.exec_driver_sql(f"DROP TABLE IF EXISTS {target}.{table}")
            if name not in self._tables:
                continue
            definition, _ = self._tables[name]
            await connection.exec_driver_sql(f"CREATE TABLE {target}.{table}{definition}")
            of = {"name": self.template.database, "table": name}
            columns = (await connection.execute(text(COLUMNS), of)).scalars()
            names = ", ".join(map(backticks, columns))
            await connection.exec_driver_sql(
                f"INSERT INTO {target}.{table} ({names}) SELECT {names} FROM {source}.{table}"  # noqa: S608 -- quoted
            )
        await connection.exec_driver_sql("SET foreign_key_checks = 1")

    async def delete(self, url: URL) -> None:
        """Delete a database, even while clients are connected to it."""
        async with self.connect() as connection:
            await drop(connection, url)

    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
        await drop(connection, self.template)


async def has_more_than_tables(connection: AsyncConnection, *urls: URL) -> bool:
    """Say whether databases have what a copy of their tables would not have."""
    found = [
        await connection.scalar(text(MORE_THAN_TABLES), {"name": url.database}) for url in urls
    ]
    return any(found)


async def read_tables(connection: AsyncConnection, url: URL) -> dict[str, tuple[str, object]]:
    """Read the definition of each table, without its name, and the checksum of its rows."""
    listed = await connection.execute(text(TABLES), {"name": url.database})
    names = {name: f"{backticks(url.database)}.{backticks(name)}" for name in listed.scalars()}
    if not names:
        return {}
    checked = await connection.exec_driver_sql(f"CHECKSUM TABLE {', '.join(names.values())}")
    checksums = {str(each.Table): each.Checksum for each in checked}
    tables: dict[str, tuple[str, object]] = {}
    for name, table in names.items():
        made = await connection.exec_driver_sql(f"SHOW CREATE TABLE {table}")
        definition = str(tuple(made.one())[1]).partition(backticks(name))[2]
        tables[name] = definition, checksums[f"{url.database}.{name}"]
    return tables


async def processes(connection: AsyncConnection, url: URL) -> list[int]:
    """List the connections to a database of MySQL."""
    listed = await connection.exec_driver_sql("SHOW PROCESSLIST")
    return [each.Id for each in listed if each.db == url.database]


async def make_empty(connection: AsyncConnection, url: URL) -> None:
    """Make a database of MySQL, in place of what is there."""
    await drop(connection, url)
    name = backticks(url.database)
    await connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")


async def drop(connection: AsyncConnection, url: URL) -> None:
    """Drop a database of MySQL, which would wait for its clients to disconnect."""
    for process in await processes(connection, url):
        with contextlib.suppress(DBAPIError):  # It has gone in the meantime.
            await connection.exec_driver_sql(f"KILL {process}")
    await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {backticks(url.database)}")


def backticks(name: str | None) -> str:
    """Quote a name for MySQL."""
    return "`" + str(name).replace("`", "``") + "`"


HOME = MysqlHome
