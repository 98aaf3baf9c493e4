"""aiosqlite's connection, which knows when SQLite has rolled a transaction back by itself."""

import asyncio
import sqlite3
from collections.abc import Callable
from importlib import import_module
from threading import Thread
from typing import Any

from .session_state import LEAVES, Left
from .transactions import Failure, aborted

CHUNK = 64
"""Rows that aiosqlite fetches at once, by default."""
ENDS = frozenset({"commit", "rollback", "close"})
"""Functions of a connection that may end its transaction."""

Driver: Any = object
"""Stands for aiosqlite's, which is not there where all databases are others."""


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
        if left := LEAVES["sqlite"][statement]:
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
