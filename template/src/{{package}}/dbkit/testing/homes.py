"""Where the databases of a test run are: never where the service's own are.

In the folder of the run are one PostgreSQL, one MariaDB, each of which the first worker starts
and the others attach to, and the files of SQLite. Each database is migrated once, into a template,
or made what the same migrations made in an earlier run; workers, and tests that commit, get copies.
"""

import contextlib
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import URL

from ..commands.embedded import (
    MARIADB_TEST_SETTINGS,
    TEST_SETTINGS,
    EmbeddedMariadb,
    EmbeddedPostgres,
    EmbeddedServer,
)
from ..database.database import Database
from ..database.databases import Databases
from ..errors import EmbeddedFailed, NotConfigured
from ..settings.database import environment
from ..settings.urls import EXAMPLES, Dialect, parse_url
from .folder import run_folder
from .home import Home

CONNECTIONS = "500"
"""Of all workers."""


@contextmanager
def find_homes(databases: Databases, cache: Path | None) -> Generator[dict[str, Home]]:
    """Find a home for each database; start the servers of the run's own that they need.

    In the folder `cache`, if there is one, is what other runs have kept.
    """
    with run_folder() as folder, contextlib.ExitStack() as stack:
        servers: dict[Dialect, EmbeddedServer] = {}
        homes: dict[str, Home] = {}
        for database in databases.values():
            if database.replica_of:
                continue
            dialect = database.dialect
            base = named_url(database)
            if base is None and dialect == "sqlite":
                base = URL.create("sqlite+aiosqlite", database=str(folder / "test"))
            elif base is None:
                if dialect not in servers:
                    servers[dialect] = stack.enter_context(start_server(database, folder))
                base = servers[dialect].url(servers[dialect].first_database)
            homes[database.name] = home_class(dialect)(database, base, cache)
        refuse_configured(databases, homes)
        yield homes


def home_class(dialect: Dialect) -> type[Home]:
    """Return what keeps test databases of a dialect."""
    return import_module(f".{dialect}", __package__).HOME


def start_server(database: Database, folder: Path) -> EmbeddedServer:
    """Start a server in the folder of the run, or attach to that of another worker."""
    try:
        if database.dialect == "mysql":
            settings = {**MARIADB_TEST_SETTINGS, "max-connections": CONNECTIONS}
            return EmbeddedMariadb(folder / EmbeddedMariadb.kind, settings=settings).start()
        settings = {**TEST_SETTINGS, "max_connections": CONNECTIONS}
        return EmbeddedPostgres(folder / EmbeddedPostgres.kind, settings=settings).start()
    except EmbeddedFailed as error:
        pytest.exit(
            f"{database.name}: {error}\nOr set {test_variable(database)} to a database on a server"
            f" for tests, as {EXAMPLES[database.dialect]}; others are made beside it.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


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
    # What else may be wrong is no reason to touch one.
    urls = {
        name: value for name, value in environment().items() if name.endswith(("URL", "URL_FILE"))
    }
    # Replicas last: of one without a variable of its own, the primary's is named.
    for database in sorted(databases.values(), key=lambda each: each.replica_of is not None):
        with contextlib.suppress(NotConfigured):  # Without a URL there is nothing to spare.
            url = database.read_settings(urls).url
            for home in homes.values():
                if home.would_use(url):
                    pytest.exit(
                        f"{home.database.name}: the tests would use {url.database}, which is what"
                        f" {database.env_prefix}URL names; nothing was touched. Set"
                        f" {test_variable(home.database)} to another database, or to none for one"
                        " that is made for the tests.",
                        returncode=pytest.ExitCode.USAGE_ERROR,
                    )
