"""What a driver knows of its connection without asking the server: whether it may be handed on.

The driver is known by its name and never imported: a service has only its own.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from sqlalchemy import Dialect

from .session_state import LEAVES, Left

IN_TRANSACTION = "in a transaction"
BUSY = "while a statement still ran on it"
STATE = "with settings of its own"
ALTERED = "altered"

RESET = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
"""What undoes `Left.STATE` on PostgreSQL, in one round trip; 0.2 ms where a connect takes 11.

`DISCARD ALL`, but for the prepared statements, which both asyncpg and SQLAlchemy go on using.
`RESET ALL` goes back to what the connection was opened with: timeouts, name, read-only.
"""


ALTERING = (
    "add_listener",
    "add_log_listener",
    "add_query_logger",
    "add_termination_listener",
    "reset_type_codec",
    "set_builtin_type_codec",
    "set_type_codec",
)
"""Methods of asyncpg that change the connection itself, of which the server knows nothing."""


def watched(connection: Any) -> Any:
    """Make a class of asyncpg's connections that note what is left on them.

    Each statement, of SQLAlchemy's or of a caller's own, is seen when it is prepared or sent; and
    each change to the connection itself.
    """
    verdicts = LEAVES["postgresql"]
    noting = noting_statement()  # SQLAlchemy keeps statements, and runs them for other callers.

    class WatchedConnection(connection):
        left = Left.NOTHING
        handed_out = False
        """Whether somebody has had the driver's connection itself."""
        looks_up = False
        """Whether asyncpg looks up a type, for which it sets `jit`, and sets it back."""

        def note(self, statement: str) -> None:
            if not self.looks_up and (left := verdicts[statement]):
                self.leave(statement, left)

        def leave(self, _statement: str, left: Left) -> None:
            self.left = max(self.left, left)

        # Not coroutine functions themselves: each would cost a frame more at every step.
        def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
            self.note(query)
            return connection.execute(self, query, *args, timeout=timeout)

        def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
            self.note(query)
            return connection._get_statement(self, query, *args, **options)  # noqa: SLF001 -- ours

        async def _prepare(self, query: str, **options: Any) -> Any:
            statement = await connection._prepare(self, query, **options)  # noqa: SLF001 -- ours
            return noting(statement) if verdicts[query] else statement

        async def _introspect_types(self, *args: Any, **options: Any) -> Any:
            self.looks_up = True
            try:
                return await connection._introspect_types(self, *args, **options)  # noqa: SLF001 -- ours
            finally:
                self.looks_up = False

        def _cancel_current_command(self, *waiters: Any) -> None:
            # Cut short by a cancellation or the driver's timeout: in COPY, in a fetch, anywhere.
            self.left = Left.ALTERED
            connection._cancel_current_command(self, *waiters)  # noqa: SLF001 -- ours

    for name in ALTERING:
        setattr(WatchedConnection, name, altering(getattr(connection, name)))
    return WatchedConnection


def noting_statement() -> Callable[[Any], Any]:
    """Return what has one of asyncpg's prepared statements note each time what it leaves."""
    statement: Any = import_module("asyncpg.prepared_stmt").PreparedStatement
    execute = "_PreparedStatement__do_execute"

    class NotingStatement(statement):
        __slots__ = ()

    def noted(self: Any, executor: Any) -> Any:
        self._connection.note(self._query)
        return getattr(statement, execute)(self, executor)

    setattr(NotingStatement, execute, noted)

    def change(prepared: Any) -> Any:
        prepared.__class__ = NotingStatement
        return prepared

    return change


def altering(method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method note that it alters its connection."""

    def alter(self: Any, *args: Any, **options: Any) -> Any:
        self.left = Left.ALTERED
        return method(self, *args, **options)

    return alter


def statement_note(dialect: str) -> Callable[[Any, str], None]:
    """Return what notes, by its cursor, what a statement of SQLAlchemy's leaves."""
    verdicts = LEAVES[dialect]

    def note(cursor: Any, statement: str) -> None:
        left = verdicts[statement]
        driver = cursor._adapt_connection._connection  # noqa: SLF001 -- told nowhere else
        if dialect == "mysql":
            driver.noted = True
            if left:
                driver.note(statement, left)
        elif left:
            if hasattr(driver, "note"):
                driver.note(statement)
            else:
                driver.left = max(getattr(driver, "left", left), left)

    return note


class Unwatched:
    """The notes on a connection of a class that has no room for them."""

    left = Left.NOTHING
    handed_out = False


def forget(driver: Any) -> Any:
    """Take a connection for what its next caller may find; return what has the notes on it."""
    try:
        driver.left, driver.handed_out = Left.NOTHING, False
    except AttributeError:  # asyncpg's own class, on an engine that is not of our making
        return Unwatched()
    return driver


def closed_check(dialect: Dialect, driver: Any) -> Callable[[], bool]:
    """Return the driver's own check for a closed connection, without a round trip."""
    if dialect.driver == "asyncpg":
        return driver.is_closed
    if dialect.driver == "asyncmy":
        return lambda: driver._stream_broken  # noqa: SLF001 -- it says less in public
    return never


def never() -> bool:
    """Answer for a driver that cannot tell: a ping will."""
    return False


def left_check(dialect: Dialect, connection: Any, driver: Any, notes: Any) -> Callable[[bool], str]:
    """Return what says, in a word or two, why a connection may not be handed on; "" if it may.

    It is told whether the connection is a sandbox's. That one is in a transaction all the time, and
    what only another connection would be free of stays until the test ends: with the connection,
    what the test wrote would go.
    """
    is_in_transaction = transaction_check(dialect, driver)
    is_asyncpg = dialect.driver == "asyncpg"
    check = cache(lambda: busy_check(driver) if is_asyncpg else never)
    mutex = getattr(connection, "_execute_mutex", None)  # Locked while SQLAlchemy runs a statement.
    is_locked = mutex.locked if mutex else never

    def left(in_sandbox: bool) -> str:
        if is_in_transaction() and not in_sandbox:
            return IN_TRANSACTION
        if is_locked():
            return BUSY
        if notes.left or notes.handed_out:
            if notes.handed_out and check()():
                return BUSY
            if notes.left == Left.ALTERED or (notes.handed_out and not is_asyncpg):
                return "" if in_sandbox else ALTERED
            if notes.left:
                return STATE
            notes.handed_out = False
        return ""

    return left


def transaction_check(dialect: Dialect, driver: Any) -> Callable[[], bool]:
    """Return the driver's own check for a transaction, without a round trip."""
    if dialect.driver == "asyncpg":
        return driver._protocol.is_in_transaction  # noqa: SLF001 -- the driver's own fails when closed
    if dialect.driver == "asyncmy":
        return driver.get_transaction_status
    if dialect.driver == "aiosqlite":
        return lambda: driver._connection is not None and driver.in_transaction  # noqa: SLF001 -- as above
    return never


def busy_check(driver: Any) -> Callable[[], bool]:
    """Return what says whether asyncpg waits for an answer.

    It tells nobody, but refuses to begin something else meanwhile: here, to close a statement that
    it would refuse to close anyway, as it is attached.
    """
    protocol: Any = driver._protocol  # noqa: SLF001 -- told nowhere else
    errors = import_module("asyncpg.exceptions")
    state = import_module("asyncpg.protocol.protocol").PreparedStatementState
    attached = state("", "", protocol, protocol.get_record_class(), False)
    attached.attach()

    def is_busy() -> bool:
        if driver.is_closed() or protocol._is_cancelling():  # noqa: SLF001 -- as above
            return True
        try:
            protocol.close_statement(attached, None).send(None)
        except errors.InternalClientError:
            return False
        except errors.InterfaceError:
            return True
        return True

    return is_busy
