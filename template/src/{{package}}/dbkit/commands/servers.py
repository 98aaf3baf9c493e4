"""Databases are made, dropped and emptied, on the server where their URL is."""

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing

from alembic.util import CommandError
from sqlalchemy import delete, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ..database.database import Database
from ..engines.failures import failure_of

OTHERS = {"postgresql": "postgres", "mysql": "information_schema"}
"""A database that each server has, to connect to while ours is not there."""
IS_THERE = {
    "postgresql": text("SELECT count(*) FROM pg_database WHERE datname = :name"),
    "mysql": text("SELECT count(*) FROM information_schema.schemata WHERE schema_name = :name"),
}
CHARACTERS = {"postgresql": "", "mysql": " CHARACTER SET utf8mb4"}


@asynccontextmanager
async def connected(
    database: Database, *, maintenance: bool = False
) -> AsyncGenerator[AsyncConnection]:
    """Connect with AUTOCOMMIT; raise `CommandError` if the server rejects something.

    With `maintenance`, connect to a database that each server has.
    """
    settings = database.read_settings()
    url = settings.url.set(database=OTHERS[database.dialect]) if maintenance else settings.url
    settings = settings.model_copy(update={"url": url, "statement_timeout": 0, "echo": False})
    engine = database.connecting(settings)
    try:
        async with engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as error:
        raise CommandError(
            f"{database.name}: {failure_of(error).reason}; if its user may not do that, give this"
            f" command another, by {database.env_prefix}URL"
        ) from error
    finally:
        await engine.dispose()


async def create(database: Database) -> str:
    """Create a database unless it is there; return what was done."""
    name = database.read_settings().url.database
    if database.dialect == "sqlite":
        return f"SQLite makes {name} by itself"
    async with connected(database, maintenance=True) as connection:
        if await connection.scalar(IS_THERE[database.dialect], {"name": name}):
            return f"{name} is there already"
        quoted = connection.dialect.identifier_preparer.quote_identifier(name or "")
        await connection.exec_driver_sql(f"CREATE DATABASE {quoted}{CHARACTERS[database.dialect]}")
    return f"created {name}"


async def recreate(database: Database, *, force: bool = False) -> str:
    """Drop a database, and create it; return what was done.

    Only with `force` also from under those who are connected to a PostgreSQL.
    """
    name = database.read_settings().url.database or ""
    if database.dialect == "sqlite":
        # Processes that have the file open would go on using a deleted one.
        with closing(sqlite3.connect(":memory:")) as none, closing(sqlite3.connect(name)) as file:
            none.backup(file)
        return f"emptied {name}"
    async with connected(database, maintenance=True) as connection:
        quoted = connection.dialect.identifier_preparer.quote_identifier(name)
        forced = " WITH (FORCE)" if force and database.dialect == "postgresql" else ""
        await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {quoted}{forced}")
    return f"dropped {name}, and {await create(database)}"


async def empty(database: Database) -> int:
    """Delete all rows of the models' tables; return how many tables that are."""
    assert database.base is not None  # noqa: S101 -- it is migrated
    tables = database.base.metadata.sorted_tables
    if database.dialect == "sqlite":
        name = database.read_settings().url.database or ""
        # Python's driver leaves foreign keys off.
        with closing(sqlite3.connect(name)) as connection, connection:
            for each in tables:
                connection.execute(str(delete(each)))
        return len(tables)
    async with connected(database) as connection:
        names = [connection.dialect.identifier_preparer.format_table(each) for each in tables]
        if database.dialect == "postgresql":
            statements = [f"TRUNCATE {', '.join(names)} RESTART IDENTITY"] if names else []
        else:
            statements = ["SET foreign_key_checks = 0", *(f"TRUNCATE {each}" for each in names)]
        for each in statements:
            await connection.exec_driver_sql(each)
    return len(tables)
