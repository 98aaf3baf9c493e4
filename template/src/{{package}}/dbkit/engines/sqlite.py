"""SQLite by aiosqlite: its connection knows when SQLite has rolled a transaction back by itself."""

import asyncio
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from threading import Thread
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from ..settings.database import DatabaseSettings
from .base import Connecting, Engine, leave_to_begin
from .session_state import FLAGS, START, Left, Verdicts
from .sqlstates import TRANSLATIONS, limit_of
from .transactions import Failure, aborted, refuse_after_failure

CHUNK = 64
"""Rows that aiosqlite fetches at once, by default."""
ENDS = frozenset({"commit", "rollback", "close"})
"""Functions of a connection that may end its transaction."""

STATES = {
    "SQLITE_BUSY": "55P03",
    "SQLITE_CANTOPEN": "08001",
    "SQLITE_CONSTRAINT_CHECK": "23514",
    "SQLITE_CONSTRAINT_DATATYPE": "22000",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "23503",
    "SQLITE_CONSTRAINT_NOTNULL": "23502",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "23505",
    "SQLITE_CONSTRAINT_ROWID": "23505",
    "SQLITE_CONSTRAINT_TRIGGER": "23001",  # also what ON DELETE RESTRICT reports
    "SQLITE_CONSTRAINT_UNIQUE": "23505",
    "SQLITE_FULL": "53100",
    "SQLITE_INTERRUPT": "57014",
    "SQLITE_LOCKED": "55P03",
    "SQLITE_READONLY": "25006",
    "SQLITE_TOOBIG": "54000",
}

SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
ALTERED = re.compile(
    START + r"(?:"
    r"attach\b|detach\b|create\s+temp(?:orary)?\b|create\b[^;(]*\btemp\s*\."
    r"|pragma\b[^;(]*="
    r"|pragma\s+(?:\w+\.)?(?!table_|index_|foreign_key_|integrity_check|quick_check|wal_checkpoint"
    r"|optimize|incremental_vacuum)[^.;(]+\("
    r")|\bload_extension\s*\(",
    FLAGS,
)

Driver: Any = object
"""Stands for aiosqlite's, which is not there where all databases are others."""


def find_left(statement: str) -> Left:
    """Say what a statement leaves on a connection to a file of SQLite, which no reset undoes."""
    text = SKIPPED.sub("''", statement)
    return Left.ALTERED if ALTERED.search(text) else Left.NOTHING


VERDICTS = Verdicts(find_left)


class CheckedConnection(Driver):
    """A connection whose transactions do not end undone in silence."""

    database_name: str
    failure: Failure | None = None
    """What has rolled the transaction back: `ON CONFLICT ROLLBACK`, a full disk, ..."""
    begun = False
    """Whether a transaction of SQLAlchemy's has begun, and has not been ended."""
    left = Left.NOTHING

    @property
    def is_undone(self) -> bool:
        """Whether the transaction has been rolled back."""
        return self.failure is not None

    def note_failure(self, original: BaseException, failure: Failure) -> None:
        """Note how SQLAlchemy raises an error: that one passes the service's own lines."""
        if self.failure and self.failure.error is original:
            self.failure = failure

    async def commit(self) -> None:
        """Commit, if there is still something to commit."""
        parent: Any = super()
        failure, begun = self.failure, self.begun
        self.failure, self.begun = None, False
        if failure or (begun and not self.in_transaction):
            raise aborted(self.database_name, failure)
        await parent.commit()

    async def rollback(self) -> None:
        """Roll back."""
        parent: Any = super()
        self.failure, self.begun = None, False
        if self._is_alive():  # Else the garbage collector had it closed: nobody could return it.
            await parent.rollback()

    async def _execute(self, function: Any, *args: Any, **options: Any) -> Any:
        parent: Any = super()
        if function.__name__ in ENDS or not self._is_alive():
            return await parent._execute(function, *args, **options)  # noqa: SLF001 -- ours
        before: bool = self.in_transaction
        statement = args[0] if args and isinstance(args[0], str) else ""
        if left := VERDICTS[statement]:
            self.left = max(self.left, left)
        try:
            result = await parent._execute(function, *args, **options)  # noqa: SLF001 -- ours
        except sqlite3.Error as error:
            if before and self._is_alive() and not self.in_transaction:
                self.failure = Failure(statement, error)
            raise
        if not before and statement[:5].upper() == "BEGIN":
            self.failure = None
        return result

    def _is_alive(self) -> bool:
        return self._running and self._connection is not None


def opener(name: str) -> Callable[..., Any]:
    """Make the function that opens the file of database `name`."""
    members = {"database_name": name}
    bases = (CheckedConnection, import_module("aiosqlite").Connection)
    made = type("CheckedConnection", bases, members)

    async def open_file(file: str, **options: Any) -> Any:
        """Open a file; if that fails, wait for the thread of the driver: it needs the loop."""
        connection: Any = made(lambda: sqlite3.connect(file, **options), CHUNK)
        thread: Thread = connection._thread  # noqa: SLF001 -- as SQLAlchemy itself has it
        thread.daemon = True
        try:
            return await connection
        except sqlite3.Error:
            # Not in a thread of the loop's, which may all be taken; it ends now.
            while thread.is_alive():  # noqa: ASYNC110 -- a thread has no event to wait for
                await asyncio.sleep(0.001)
            raise

    return open_file


def set_pragma(cursor: Any, name: str, value: str) -> None:
    """Set a PRAGMA; one that does not exist is an error, where SQLite itself ignores it."""
    cursor.execute("SELECT 1 FROM pragma_pragma_list WHERE name = ?", (name,))
    if cursor.fetchone() is None:
        raise sqlite3.OperationalError(f"there is no PRAGMA {name}")
    quoted = value.replace("'", "''")
    cursor.execute(f"PRAGMA {name} = '{quoted}'")


def end(connection: Any, _record: object, _error: object) -> None:
    """Roll back what was cancelled: closed, SQLite keeps its lock while a cursor is in memory."""
    with suppress(Exception):
        connection.rollback()


def state_of(error: Any) -> str | None:
    """Return the SQLSTATE of an error; extended names, as SQLITE_BUSY_SNAPSHOT, add to one."""
    name: str = getattr(error, "sqlite_errorname", None) or ""
    return next((STATES[key] for key in STATES if name.startswith(key)), None) or limit_of(error)


class Sqlite(Engine):
    """A file of SQLite, by aiosqlite."""

    is_file = True
    begin_sandbox = "BEGIN IMMEDIATE"
    verdicts = VERDICTS

    def connect_args(self, wanted: Connecting) -> dict[str, Any]:
        """Translate the settings to the driver's arguments."""
        return {
            "timeout": wanted.settings.lock_timeout,
            "async_creator_fn": opener(wanted.name),
        }

    def set_up(self, connection: Any, settings: DatabaseSettings) -> None:
        """Set what SQLite leaves off: foreign keys, a journal that lets readers read."""
        try:
            connection.isolation_level = None  # The driver begins no transaction; `begin` does.
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = NORMAL")
            for name, value in settings.server_settings.items():
                set_pragma(cursor, name, value)
            cursor.close()
        except BaseException:
            connection.close()
            raise

    def prepare(self, engine: AsyncEngine, another: object, run: object) -> None:
        """Begin in a way in which a caller that is cancelled does not lose the connection."""
        dialect: Any = engine.dialect  # As it types its methods, they could not be replaced.
        dialect.set_isolation_level = dialect.reset_isolation_level = leave_to_begin
        event.listen(engine.sync_engine, "begin", self.begin)
        event.listen(engine.sync_engine, "invalidate", end)
        event.listen(engine.sync_engine, "do_execute", refuse_after_failure)

    def begin(self, connection: Connection) -> None:
        """Begin for real: a transaction that reads before it writes would fail beside a writer.

        This one waits for its turn, `lock_timeout` at the most.
        """
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            driver: Any = connection.connection.driver_connection
            driver.failure, driver.begun = None, True

    def transaction_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check, but for a connection that is closed."""
        return lambda: driver._connection is not None and driver.in_transaction  # noqa: SLF001 -- it raises


ENGINE = Sqlite()
TRANSLATIONS["sqlite3"] = state_of
