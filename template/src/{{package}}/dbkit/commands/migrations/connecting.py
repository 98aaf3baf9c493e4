"""Connections for migrations: one process at a time, without a statement timeout."""

import asyncio
import logging
import re
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from alembic.util import CommandError
from sqlalchemy import event, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from ...database.database import Database
from ...engines.base import LONGEST_WAIT
from .failures import explained
from .postgresql import quoted
from .sqlite import keep_what_a_rebuild_loses

LOCK = 0x64626B6974  # "dbkit": the advisory lock that lets one process migrate at a time
LOCK_INTERVAL = 0.2
"""Seconds between two tries to get it."""

RETURNS_ROWS = re.compile(r"\s*(SELECT|VALUES|WITH|TABLE|SHOW|EXPLAIN)\b", re.IGNORECASE)


@asynccontextmanager
async def connect(
    database: Database, *, alone: bool = False, on_schema: Callable[[str], None] | None = None
) -> AsyncGenerator[AsyncConnection]:
    """Connect as a migration needs it: without a statement timeout, and `alone` if it writes.

    If the schema is not there in which tables are to be made, it is created, and `on_schema` told
    so; without `on_schema` that is a `CommandError`.
    """
    settings = database.read_settings().model_copy(
        update={"statement_timeout": 0, "idle_in_transaction_timeout": 0}
    )
    engine = database.connecting(settings)
    run_several_statements(engine)
    if database.dialect == "sqlite":
        # A migration rebuilds tables; with foreign keys on, dropping the old one deletes
        # the rows that refer to it.
        @event.listens_for(engine.sync_engine, "connect")
        def foreign_keys_off(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys = OFF")
            cursor.close()

        keep_what_a_rebuild_loses(engine.sync_engine)
    if database.dialect == "mysql":
        log = logging.getLogger("asyncmy")
        log.setLevel(logging.WARNING)  # A service's engines log no warnings of the server.
        log.addFilter(is_news)
    async with engine.connect() as connection:
        if schema := await missing_schema(connection):
            if on_schema is None:
                raise CommandError(
                    f"{database.name}: the schema {schema} of its search_path is not there;"
                    f" `manage.py migrate --database {database.name}` creates it"
                )
            with explained(database):
                await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"))
            await connection.commit()
            connection.dialect.default_schema_name = schema
            on_schema(f"created schema {schema}")
        if alone and database.dialect == "postgresql":
            # Of several that migrate at once, one does and the others wait, however long. In a
            # transaction apart: behind a pooler, a lock lasts no longer than that.
            async with engine.connect() as apart:
                while not await apart.scalar(select(func.pg_try_advisory_xact_lock(LOCK))):
                    await apart.rollback()
                    await asyncio.sleep(LOCK_INTERVAL)
                # Ends the SELECT, for whose snapshot CREATE INDEX CONCURRENTLY would wait.
                await apart.execute(text("SET LOCAL lock_timeout = 0"))
                yield connection
            return
        if alone and database.dialect == "mysql":
            # The server's locks have one space of names for all its databases.
            await connection.execute(
                text(f"SELECT GET_LOCK(SHA2(DATABASE(), 256), {LONGEST_WAIT})")
            )
            await connection.commit()
        yield connection


async def missing_schema(connection: AsyncConnection) -> str | None:
    """Name the schema in which tables are to be made, if it is not there.

    PostgreSQL would make them in the next one of the `search_path`, or have none to make them in.
    """
    if connection.dialect.name != "postgresql":
        return None
    path: str = await connection.scalar(text("SHOW search_path")) or ""
    first = path.partition(",")[0].strip(' "')
    is_there = text("SELECT to_regnamespace(quote_ident(:name)) IS NOT NULL")
    found = first in {"", "$user"} or await connection.scalar(is_there, {"name": first})
    await connection.rollback()  # Alembic commits no transaction that it finds begun.
    return None if found else first


def is_news(record: logging.LogRecord) -> bool:
    """Leave out that MariaDB ignores the name of a primary key: our convention gives each one."""
    return not re.fullmatch(r"Name '.*' ignored for PRIMARY key\.?", record.getMessage())


def run_several_statements(engine: AsyncEngine) -> None:
    """Let one `op.execute()` hold several statements, which asyncpg and SQLite's driver refuse.

    asyncmy sends them to the server, and would not look at what becomes of the second.
    """

    @event.listens_for(engine.sync_engine, "do_execute")
    def run(cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
        several = ";" in statement.rstrip().rstrip(";") and not RETURNS_ROWS.match(statement)
        if parameters or not several:
            return None
        if engine.dialect.name == "mysql":
            cursor.execute(statement)
            while await_only(cursor._cursor.nextset()):  # noqa: SLF001 -- else errors get lost
                pass
            return True
        if engine.dialect.name == "sqlite":
            for each in split(statement):
                cursor.execute(each)
            return True
        if engine.dialect.name == "postgresql":
            cursor.execute("SELECT 1")  # Begins the transaction, if there is to be one.
            connection = context.root_connection.connection
            try:
                # Without parameters asyncpg sends a text as it is, and the server splits it.
                await_only(connection.driver_connection.execute(statement))
            except Exception as error:  # noqa: BLE001 -- translated as any statement's, and raised
                connection.dbapi_connection._handle_exception(error)  # noqa: SLF001 -- as SQLAlchemy does
            return True
        return None


def split(script: str) -> Iterator[str]:
    """Split a script at the semicolons that end a statement of SQLite's, triggers included."""
    statement = ""
    for part in re.split(r"(?<=;)", script):
        statement += part
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
