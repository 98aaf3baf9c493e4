"""A transaction ends as it was told, or raises `TransactionAborted`.

A server, a driver or a session may undo a whole transaction while the code, which caught the
error, goes on. COMMIT is then answered as if all were well: PostgreSQL says ROLLBACK in a place
where nobody looks, MariaDB and MySQL commit what came after a deadlock, SQLite has nothing left to
commit. The drivers' own connections know better without asking, so they refuse to commit:
`postgresql.py`, `mysql.py` and `sqlite.py` have them.
"""

import random
import re
from asyncio import CancelledError
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from sqlalchemy import TwoPhaseTransaction
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, InvalidRequestError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from ..callsites import raising_lines
from ..errors import DatabaseError, TransactionAborted
from ..loggers import logger_named
from .sqlstates import IN_ABORTED, INTERRUPTED, is_retryable, may_succeed_again, sqlstate

logger = logger_named("transactions")

BLANKS = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
"""What may come before a statement."""
CONTROL = re.compile(
    BLANKS
    + r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|ROLLBACK(?!.*\bTO\b)|PREPARE\s+TRANSACTION)\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements that begin or end a transaction."""

RETRY_DELAY = 0.02
"""Seconds, doubled at each attempt, within which a unit of work is begun again."""

SHOWN = 200
"""Characters that are shown of a statement."""

SYNC = ".sync"
"""The end of a database's name in what threads are told, whose advice has no `await`."""

REFUSED = """\
{name}: {statement} is not for SQL text: the session would not know how its transaction ended
  1. leave it to the session: `async with {name}.session()`, `session.begin_nested()`;
  2. to undo what was done so far, `await session.rollback()`."""

UNDONE = "the {what} was rolled back before its end: nothing that it wrote is stored"
ENDED = "the {what} was ended before its end by a statement in it, which committed or rolled back"
SAVEPOINT = """
  1. what may fail belongs in `async with session.begin_nested():`, and its `except` around that;
  2. or let the error pass, or end the transaction yourself: `await session.rollback()`."""
RETRY = """
  Another transaction was in the way, which a savepoint does not survive: let the error pass, and
  do the work again, as by `await {name}.run_transaction(work)`."""
LEFT = """\
{name}: a session was rolled back, because the generator around it was left at its `yield`
  at: {places}
  A `return` or `break` in `async for session in ...` does so: use `async with {name}.session()`."""
CANCELLED = """
  A statement that is cancelled takes its connection and its transaction with it:
  1. put a timeout of your own around the whole of `async with {name}.session():`;
  2. or have the server end the statement in time, which a savepoint survives: STATEMENT_TIMEOUT."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The statement that undid a transaction, or would have without a savepoint."""

    statement: str = ""
    error: BaseException | None = None
    """What it raised, if anything, which knows the place in the service's code."""


def aborted(name: str, failure: Failure | None, what: str = "transaction") -> TransactionAborted:
    """Make the error that says which statement undid a transaction of database `name`."""
    failure = failure or Failure()
    error = failure.error
    code = sqlstate(error)
    message = (ENDED if failure.statement and not error else UNDONE).format(what=what)
    statement = " ".join(failure.statement.split())
    if statement or error:
        shown = statement[:SHOWN] + ("..." if len(statement) > SHOWN else "")
        reason = f"SQLSTATE {code}" if code else type(error).__name__ if error else ""
        message += f"\n  by: {shown}" + (f" ({reason})" if reason else "")
        if error and (places := raising_lines(error)):
            message += f"\n  at: {' <- '.join(places)}"
    if isinstance(error, CancelledError | TimeoutError):
        advice = CANCELLED
    else:
        advice = RETRY if is_retryable(code) else SAVEPOINT
    message += in_words_of(name, advice)
    made = TransactionAborted(name.removesuffix(SYNC), message, code)
    made.__cause__ = error
    return made


def in_words_of(name: str, advice: str, **values: str) -> str:
    """Write advice as the code of a database has it: in threads without `await`."""
    said = advice.format(name=name, **values)
    return re.sub(r"\b(async|await) ", "", said) if name.endswith(SYNC) else said


def delay_of_retry(
    error: Exception, attempt: int, attempts: int, *, commit_sent: bool
) -> float | None:
    """Return the seconds to wait before a transaction is begun again; None if it is not."""
    unknown = commit_sent and not isinstance(error, TransactionAborted)
    if unknown or attempt == attempts or not may_succeed_again(error):
        return None
    # Both sides of a conflict try again, but not in the same moment.
    return random.uniform(0, RETRY_DELAY * 2**attempt)  # noqa: S311 -- no secret


def note_failure(name: str, context: ExceptionContext) -> TransactionAborted | None:
    """Note a statement that failed on its connection; return what to raise in its place, if so."""
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return None
    driver: Any = connection.connection.driver_connection
    if driver is None:  # The garbage collector had it closed: nobody could return it.
        return None
    if sqlstate(context.original_exception) == IN_ABORTED:
        return aborted(name, driver.failure)
    error = context.sqlalchemy_exception or context.original_exception
    failure = Failure(context.statement or "", error)
    driver.note_failure(context.original_exception, failure)
    if context.is_disconnect:  # The driver's connection goes; SQLAlchemy's is there to the end.
        vars(connection)["failure"] = failure
    return None


def refuse_control(_cursor: object, statement: str, _parameters: object, context: Any) -> None:
    """Refuse text that would begin or end a transaction unknown to who holds it."""
    if not context.is_text or (found := CONTROL.match(statement)) is None:
        return
    transaction = context.root_connection.get_transaction()
    # SQLAlchemy itself begins, where there is none yet, and makes its two phases of text.
    if transaction is not None and not isinstance(transaction, TwoPhaseTransaction):
        refused = in_words_of(name_of(context), REFUSED, statement=found[1].upper())
        raise InvalidRequestError(refused)


def refuse_after_failure(
    _cursor: object, statement: str, _parameters: object, context: Any
) -> bool | None:
    """Refuse what comes after a transaction was undone, as PostgreSQL itself does.

    SQLite would commit it at once. There is no savepoint to go back to: that is skipped (True).
    """
    driver = context.root_connection.connection.driver_connection
    if driver.failure is None or not driver.begun or not driver.is_undone:
        return None
    if statement.startswith("ROLLBACK TO "):
        return True
    raise aborted(name_of(context), driver.failure)


def name_of(context: Any) -> str:
    """Return the name of the database that a statement is for."""
    name: str = context.engine.pool.logging_name
    return name


class CheckedTransaction(SessionTransaction):
    """A transaction or a savepoint that does not end undone in silence."""

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it. An error of the body is not hidden by one of the ROLLBACK after it."""
        if isinstance(value, GeneratorExit) and self._has_work:
            places = " <- ".join(raising_lines(value))
            logger.warning(in_words_of(self._database, LEFT, places=places))
        undone = self._undone() if value is None else None
        try:
            super().__exit__(type_, value, traceback)
        except PendingRollbackError:
            if value is None:  # The connection is gone.
                undone = aborted(self._database, self._failure(), self._what)
                raise undone from undone.__cause__
        except (DBAPIError, DatabaseError) as error:
            if value is None or sqlstate(value) == INTERRUPTED:  # The server ends the connection.
                raise
            logger.warning("%s: ROLLBACK failed after another error: %s", self._database, error)
        if undone is not None:
            raise undone

    @property
    def _database(self) -> str:
        return self.session.info["database"]

    @property
    def _has_work(self) -> bool:
        session = self.session
        return not self.nested and any(
            (self.connections, session.new, session.dirty, session.deleted)
        )

    @property
    def _what(self) -> str:
        return "savepoint" if self.nested else "transaction"

    def _undone(self) -> TransactionAborted | None:
        """Say what undid it: SQLAlchemy ends one whose flush has failed without a word."""
        if self.is_active:
            return None
        if self in {self.session.get_transaction(), self.session.get_nested_transaction()}:
            error: BaseException | None = getattr(self, "_rollback_exception", None)
            failure = Failure(getattr(error, "statement", None) or "", error)
            return aborted(self._database, failure, self._what)
        return None  # Its owner has ended it.

    def _failure(self) -> Failure | None:
        """Find what failed on a connection that is gone."""
        for connection in self.connections:
            if found := vars(connection).get("failure"):
                return found
        return None


class SyncCheckedSession(Session):
    """The session within a `CheckedSession`, which `run_sync()` hands out."""

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin a transaction, or a savepoint."""
        transaction = super().begin(nested)
        transaction.__class__ = CheckedTransaction  # SQLAlchemy makes it by its own name.
        return transaction


class CheckedSession(AsyncSession):
    """SQLAlchemy's session, whose transactions and savepoints do not end undone in silence."""

    sync_session_class = SyncCheckedSession


def checked(session_class: type[AsyncSession]) -> type[CheckedSession]:
    """Return a class of the service's own that is checked as `CheckedSession` is."""
    if session_class is AsyncSession:
        return CheckedSession
    bases = (SyncCheckedSession, session_class.sync_session_class)
    sync = {"sync_session_class": type("SyncSession", bases, {})}
    return type("Session", (CheckedSession, session_class), sync)
