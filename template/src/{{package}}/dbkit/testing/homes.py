"""Where the databases of a test run are: never where the service's own are.

In the folder of the run are one PostgreSQL, which the first worker starts and the others
attach to, and the files of SQLite. Each database is migrated once, into a template, or made what
the same migrations made in an earlier run; workers, and tests that commit, get copies.
"""

import contextlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from ..checks import address
from ..database import Database
from ..databases import Databases
from ..embedded import TEST_SETTINGS, EmbeddedPostgres
from ..errors import NotConfigured
from ..settings import environment
from ..urls import EXAMPLES, Dialect, parse_url
from .folder import run_folder
from .home import Home
from .on_mysql import MysqlHome
from .on_postgresql import PostgresHome
from .on_sqlite import SqliteHome

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
    # Replicas first: of one without a variable of its own, the primary's is named.
    for database in sorted(databases.values(), key=lambda each: each.replica_of is None):
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
