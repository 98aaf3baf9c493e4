"""Where the databases of a test run are: never where the service's own are.

In the folder of the run are one PostgreSQL, which the first worker starts and the others
attach to, and the files of SQLite. Each database is migrated once, into a template, or made what
the same migrations made in an earlier run; workers, and tests that commit, get copies.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import migrations
from ..checks import address
from ..database import Database
from ..databases import Databases
from ..embedded import TEST_SETTINGS, EmbeddedPostgres
from ..engine import create_engine
from ..errors import NotConfigured
from ..settings import DatabaseSettings, environment
from ..urls import EXAMPLES, Dialect, parse_url
from . import kept
from .folder import RUN, run_folder

# What a copy of tables would leave behind.
MORE_THAN_TABLES = """
SELECT 1 FROM information_schema.triggers WHERE trigger_schema = :name
UNION SELECT 1 FROM information_schema.routines WHERE routine_schema = :name
UNION SELECT 1 FROM information_schema.tables
WHERE table_schema = :name AND table_type <> 'BASE TABLE'
"""
MADE_BY = "dbkit_made_by"
"""The table of a template that names the run which made it."""
COLUMNS = f"""
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = :name AND table_name <> '{MADE_BY}'
AND coalesce(generation_expression, '') = ''
ORDER BY table_name, ordinal_position
"""  # noqa: S608 -- all ours

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
LOCK = 0x74657374  # "test": one worker makes a template, the others wait.


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

    names_like: str
    """Lists the databases whose name is like `:pattern`."""

    @abstractmethod
    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""


class PostgresHome(ServerHome):
    """Databases of PostgreSQL, which can copy one."""

    names_like = "SELECT datname FROM pg_database WHERE datname LIKE :pattern"

    async def connections(self, url: URL) -> int:
        """Count the connections to a copy."""
        count = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
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


class MysqlHome(ServerHome):
    """Databases of MariaDB or MySQL, which copies none; the one that is named need not be there."""

    names_like = (
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE :pattern"
    )

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
            await make_empty(connection, self.template)
            await self.migrate()
            await connection.exec_driver_sql(f"CREATE TABLE {name}.{MADE_BY} AS SELECT '{RUN}' run")

    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there.

        Table by table, for there is no command for it; where the template has more than tables
        (views, triggers, routines), the copy is migrated instead.
        """
        source, target = backticks(self.template.database), backticks(url.database)
        async with self.connect() as connection:
            await make_empty(connection, url)
            if await connection.scalar(text(MORE_THAN_TABLES), {"name": self.template.database}):
                await self.migrate_at(url)
                return
            tables: dict[str, list[str]] = {}
            listed = await connection.execute(text(COLUMNS), {"name": self.template.database})
            for table, column in listed:
                tables.setdefault(backticks(table), []).append(backticks(column))
            await connection.exec_driver_sql("SET foreign_key_checks = 0")
            for table, columns in tables.items():
                made = await connection.exec_driver_sql(f"SHOW CREATE TABLE {source}.{table}")
                definition = str(tuple(made.one())[1]).partition(table)[2]
                await connection.exec_driver_sql(f"CREATE TABLE {target}.{table}{definition}")
                names = ", ".join(columns)
                await connection.exec_driver_sql(
                    f"INSERT INTO {target}.{table} ({names}) SELECT {names} FROM {source}.{table}"  # noqa: S608 -- quoted
                )
            await connection.exec_driver_sql("SET foreign_key_checks = 1")

    async def delete(self, url: URL) -> None:
        """Delete a database, whoever is connected to it."""
        async with self.connect() as connection:
            await drop(connection, url)

    async def drop_template(self, connection: AsyncConnection) -> None:
        """Drop the template."""
        await drop(connection, self.template)


async def processes(connection: AsyncConnection, url: URL) -> list[int]:
    """List the connections to a database of MySQL."""
    listed = text("SELECT id FROM information_schema.processlist WHERE db = :name")
    return list(await connection.scalars(listed, {"name": url.database}))


async def make_empty(connection: AsyncConnection, url: URL) -> None:
    """Make a database of MySQL, in place of what is there."""
    await drop(connection, url)
    name = backticks(url.database)
    await connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")


async def drop(connection: AsyncConnection, url: URL) -> None:
    """Drop a database of MySQL, which would wait for whoever is connected to it."""
    for process in await processes(connection, url):
        with contextlib.suppress(DBAPIError):  # It has gone in the meantime.
            await connection.exec_driver_sql(f"KILL {process}")
    await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {backticks(url.database)}")


class SqliteHome(Home):
    """Files beside the one that is named; each worker migrates a template of its own."""

    server = sqlite3.sqlite_version

    def __init__(self, database: Database, base: URL, cache: Path | None = None) -> None:
        super().__init__(database, base, cache)
        self.template = self.at(f"{WORKER}_template")

    async def keep(self, file: Path) -> None:
        """Keep the file."""
        made = file.with_suffix(f".{WORKER}")
        shutil.copyfile(str(self.template.database), made)
        kept.replace_kept(made, file)

    async def load(self, file: Path) -> bool:
        """Copy the file that was kept."""
        with contextlib.suppress(FileNotFoundError):  # Another worker has just replaced it.
            shutil.copyfile(file, str(self.template.database))
            return True
        return False

    async def make_template(self) -> None:
        """Migrate an empty file."""
        delete_file(self.template)
        await self.migrate()

    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there."""
        delete_file(url)
        shutil.copyfile(str(self.template.database), str(url.database))

    async def delete(self, url: URL) -> None:
        """Delete a file; who is still connected to it keeps what has no name any more."""
        delete_file(url)

    async def clear(self) -> None:
        """Delete this worker's files."""
        await super().clear()
        delete_file(self.template)


def delete_file(url: URL) -> None:
    """Delete a database of SQLite, and its journal."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{url.database}{suffix}").unlink(missing_ok=True)


HOMES: dict[Dialect, type[Home]] = {
    "postgresql": PostgresHome,
    "mysql": MysqlHome,
    "sqlite": SqliteHome,
}


@contextmanager
def find_homes(databases: Databases, cache: Path | None) -> Generator[dict[str, Home]]:
    """Find a home for each database; start the embedded PostgreSQL if one needs it.

    In the folder `cache`, if there is one, is what other runs have kept.
    """
    with run_folder() as folder, contextlib.ExitStack() as stack:
        server: EmbeddedPostgres | None = None
        homes: dict[str, Home] = {}
        for database in databases.values():
            if database.replica_of:
                continue
            home = HOMES[database.dialect]
            base = named_url(database)
            if base is None and database.dialect == "mysql":
                pytest.exit(
                    f"{database.name}: set {test_variable(database)} to a database on a MariaDB or"
                    f" MySQL server for tests, as {EXAMPLES['mysql']}; others are made beside it",
                    returncode=pytest.ExitCode.USAGE_ERROR,
                )
            if base is None and database.dialect == "sqlite":
                base = URL.create("sqlite+aiosqlite", database=str(folder / "test"))
            elif base is None:
                if server is None:
                    settings = {**TEST_SETTINGS, "max_connections": "500"}  # of all workers
                    server = EmbeddedPostgres(folder / "postgres", settings=settings)
                    stack.enter_context(server)
                base = server.url("postgres")
            homes[database.name] = home(database, base, cache)
        refuse_configured(databases, homes)
        yield homes


def named_url(database: Database) -> URL | None:
    """Return what `TEST_DATABASE_URL` says, `ANALYTICS_TEST_DATABASE_URL` for `analytics`."""
    variable = test_variable(database)
    value = environment().get(variable)
    try:
        return parse_url(value, database.dialect) if value else None
    except ValueError as error:
        pytest.exit(f"{variable}: {error}", returncode=pytest.ExitCode.USAGE_ERROR)


def test_variable(database: Database) -> str:
    """Name the variable of a test database."""
    return database.env_prefix.removesuffix("DATABASE_") + "TEST_DATABASE_URL"


test_variable.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] -- for pytest


def refuse_configured(databases: Databases, homes: dict[str, Home]) -> None:
    """End the run before it touches a database that the service is configured to use."""
    configured: dict[object, Database] = {}
    for database in databases.values():
        with contextlib.suppress(NotConfigured):  # Without a URL there is nothing to spare.
            configured[address(database.read_settings().url)] = database
    for home in homes.values():
        for url in (home.base, home.template, home.own):
            if database := configured.get(address(url)):
                pytest.exit(
                    f"{home.database.name}: the tests would use {url.database}, which is what"
                    f" {database.env_prefix}URL names; nothing was touched. Set"
                    f" {test_variable(home.database)} to another database, or to none for one"
                    " that is made for the tests.",
                    returncode=pytest.ExitCode.USAGE_ERROR,
                )


def quoted(url: URL) -> str:
    """Quote the name of a database for SQL, in which colons begin parameters."""
    return '"' + str(url.database).replace('"', '""').replace(":", "\\:") + '"'


def backticks(name: str | None) -> str:
    """Quote a name for MySQL."""
    return "`" + str(name).replace("`", "``") + "`"
