"""asyncpg's connection, which does not take a ROLLBACK for a COMMIT."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sqlalchemy import Dialect, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidRequestError

from ..settings.credentials import tls
from ..settings.database import DatabaseSettings
from ..settings.urls import hosts
from .base import Connecting, Engine
from .pgbouncer import behind_pgbouncer
from .session_state import FLAGS, START, Left, Verdicts
from .sqlstates import IN_ABORTED, sqlstate
from .transactions import BLANKS, REFUSED, Failure, aborted

ROLLBACK = re.compile(r"\b(?:rollback|abort)\b", re.IGNORECASE)
END = r"(COMMIT|END|ABORT|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b(?!\s+PREPARED)"
ENDS = re.compile(BLANKS + END, re.IGNORECASE | re.DOTALL)
ENDS_WITHIN = re.compile(rf"(?:^|;)[\s']*{END}(?P<more>[^;]*;[\s']*[^\s'])?", re.IGNORECASE)
"""The same in several statements, where comments and texts have become ''."""
OWN = {"COMMIT;", "ROLLBACK;"}
"""How asyncpg itself ends its transactions, and SQLAlchemy by it."""
UNANSWERED = """\
{name}: this way to COMMIT does not say whether the transaction was committed or rolled back
  1. use asyncpg's own: `async with connection.transaction():`;
  2. or `await connection.execute("COMMIT")`, which raises if it was rolled back."""

SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'", re.DOTALL)
STATE = re.compile(
    START + r"(?:explain\b[^;]*?\b)?(?:"
    r"set\s+(?!local\b|transaction\b|constraints\b)"
    r"|reset\b|listen\b|do\b"
    r"|declare\b[^;]*\bwith\s+hold\b"
    r"|create\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b(?![^;]*\bon\s+commit\s+drop\b)"
    r"|create\b[^;(]*\bpg_temp\b"
    r")"
    r"|\bset_config\"?\s*\((?![^()]*,\s*true\s*\))"
    r"|\bpg_(?:try_)?advisory_lock(?:_shared)?\b"
    r"|\binto\s+(?:(?:global|local)\s+)?temp(?:orary)?\b"
    r"|\b(?:setseed|dblink_connect\w*)\s*\(",
    FLAGS,
)
ALTERED = re.compile(
    START + r"(?:prepare\s+(?!transaction\b)|deallocate\b|discard\b|load\b)", FLAGS
)

RESET = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; CLOSE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
"""What undoes `Left.STATE` on PostgreSQL, in one round trip; 0.2 ms where a connect takes 11.

`DISCARD ALL`, but for the prepared statements, which both asyncpg and SQLAlchemy go on using.
`RESET ALL` goes back to what the connection was opened with: timeouts, name, read-only.
"""

# A server is known by the moment at which it was started: its replica has the same identifier.
LIMITS = text("""
    SELECT concat(pg_postmaster_start_time(), ' ', current_setting('port')),
        current_setting('max_connections')::int,
        current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0),
        concat('role ', rolname), CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END,
        datname, CASE WHEN rolsuper THEN -1 ELSE datconnlimit END
    FROM pg_roles, pg_database
    WHERE rolname = session_user AND datname = current_database()
""")

GRACE = 5.0
"""Seconds behind `connect_timeout` after which the driver would give up by itself."""
Driver: Any = object
"""Stands for asyncpg's, which is not there where all databases are others."""


class CheckedConnection(Driver):
    """A connection whose transactions do not end undone in silence."""

    database_name: str
    _top_xact: Any
    """asyncpg's: the transaction that it has begun for somebody, who will end it."""
    failure: Failure | None = None
    """The latest statement of this transaction that failed, but for those refused because of
    another: so it is what aborted the transaction, if that is aborted."""
    is_undone = False
    """Only the server knows: it refuses all that comes after, and says so at the COMMIT."""

    def note_failure(self, original: BaseException, failure: Failure) -> None:
        """Note a statement that failed."""
        in_transaction = not self.is_closed() and self.is_in_transaction()
        if in_transaction and is_servers(original) and sqlstate(original) != IN_ABORTED:
            self.failure = failure

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run statements: with asyncpg and SQLAlchemy, each BEGIN, COMMIT and ROLLBACK."""
        parent: Any = super()
        if query not in OWN and not self.is_closed() and self.is_in_transaction():
            script = query if args else SKIPPED.sub("''", query)
            for found in ENDS_WITHIN.finditer(script):
                self._refuse_to_end(found, drops_answer=bool(found["more"]))
        if query == "COMMIT;" and not self.is_closed() and not self.is_in_transaction():
            raise aborted(self.database_name, self.failure)
        try:
            status: str = await parent.execute(query, *args, timeout=timeout)
        except Exception as error:
            if query.startswith("RELEASE ") and sqlstate(error) == IN_ABORTED:
                undone = aborted(self.database_name, self.failure, "savepoint")
                raise undone from undone.__cause__
            self.note_failure(error, Failure(query, error))
            raise
        # An aborted transaction answers so to COMMIT.
        if status == "ROLLBACK" and not ROLLBACK.search(query):
            raise aborted(self.database_name, self.failure)
        if not self.is_in_transaction():
            self.failure = None
        return status

    def _get_statement(self, query: str, *args: Any, **options: Any) -> Any:
        """Prepare a statement: `fetch`, `cursor`, all of SQLAlchemy's."""
        if (found := ENDS.match(query)) and self.is_in_transaction():
            self._refuse_to_end(found, drops_answer=True)
        parent: Any = super()
        return parent._get_statement(query, *args, **options)  # noqa: SLF001 -- ours

    def _refuse_to_end(self, found: re.Match[str], *, drops_answer: bool) -> None:
        """Refuse text that ends what asyncpg or SQLAlchemy has begun, or does not say how."""
        word = found[1].upper()
        if self._top_xact is not None:
            raise InvalidRequestError(REFUSED.format(name=self.database_name, statement=word))
        if drops_answer and word in {"COMMIT", "END"}:
            raise InvalidRequestError(UNANSWERED.format(name=self.database_name))

    async def _do_execute(self, query: str, *args: Any, **options: Any) -> Any:
        parent: Any = super()
        try:
            return await parent._do_execute(query, *args, **options)  # noqa: SLF001 -- ours
        except Exception as error:
            self.note_failure(error, Failure(query, error))
            raise


def connection_class(name: str) -> type[CheckedConnection]:
    """Make the class of connections to database `name`."""
    asyncpg = import_module("asyncpg")
    members = {"database_name": name}
    return type("CheckedConnection", (CheckedConnection, asyncpg.Connection), members)


def is_servers(error: BaseException | None) -> bool:
    """Whether the server has sent an error: what asyncpg refuses to send aborts nothing."""
    while error is not None and getattr(error, "severity_en", None) is None:
        error = error.__cause__
    return error is not None


def find_left(statement: str) -> Left:
    """Say what a statement leaves on a connection to PostgreSQL."""
    text = SKIPPED.sub("''", statement)
    if ALTERED.search(text):
        return Left.ALTERED
    return Left.STATE if STATE.search(text) else Left.NOTHING


VERDICTS = Verdicts(find_left)

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
    verdicts = VERDICTS
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


def milliseconds(seconds: float) -> str:
    """Write seconds as the server's settings take them."""
    return f"{seconds * 1000:.0f}"


def parameters(settings: DatabaseSettings, *, read_only: bool) -> dict[str, str]:
    """Return what is set for each connection."""
    return {
        **settings.server_settings,
        "statement_timeout": milliseconds(settings.statement_timeout),
        "lock_timeout": milliseconds(settings.lock_timeout),
        "idle_in_transaction_session_timeout": milliseconds(settings.idle_in_transaction_timeout),
        "client_connection_check_interval": milliseconds(settings.client_check_interval),
        **({"default_transaction_read_only": "on"} if read_only else {}),
    }


class Postgresql(Engine):
    """PostgreSQL by asyncpg."""

    knows_when_busy = True
    limits_query = LIMITS
    verdicts = VERDICTS

    def connect_args(self, wanted: Connecting) -> dict[str, Any]:
        """Translate the settings to the driver's arguments."""
        settings, read_only = wanted.settings, wanted.read_only
        arguments: dict[str, Any] = {
            "timeout": settings.connect_timeout + GRACE,
            "command_timeout": wanted.fence,
            "connection_class": watched(connection_class(wanted.name)),
            "server_settings": {
                "application_name": wanted.label,
                **parameters(settings, read_only=read_only),
            },
        }
        if len(hosts(settings.url)) > 1 and "target_session_attrs" not in settings.url.query:
            arguments["target_session_attrs"] = "prefer-standby" if read_only else "read-write"
        if context := tls(settings.url):
            arguments["ssl"] = context
        if settings.pgbouncer:
            return behind_pgbouncer(wanted.name, arguments, pooled=wanted.pooled)
        return arguments

    def note(self, cursor: Any, statement: str) -> None:
        """Note what a statement leaves on its connection."""
        if left := self.verdicts[statement]:
            driver = cursor._adapt_connection._connection  # noqa: SLF001 -- told nowhere else
            if hasattr(driver, "note"):
                driver.note(statement)
            else:
                driver.left = max(getattr(driver, "left", left), left)

    def closed_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check for a closed connection."""
        return driver.is_closed

    def transaction_check(self, driver: Any) -> Callable[[], bool]:
        """Return the check of the driver's protocol: the one in public fails when closed."""
        return driver._protocol.is_in_transaction  # noqa: SLF001 -- see above

    def busy_check(self, driver: Any) -> Callable[[], bool]:
        """Return what says whether asyncpg waits for an answer."""
        return busy_check(driver)

    async def ping(
        self, dialect: Dialect, connection: DBAPIConnection, driver: Any, notes: Any
    ) -> None:
        """Ask by one round trip, in the simple protocol, which is right behind PgBouncer too.

        SQLAlchemy's own ping takes three. (Not an empty query: asyncpg 0.32 chokes on it.)
        """
        await driver.execute(RESET if notes.left else "SELECT 1")
        notes.left = Left.NOTHING


ENGINE = Postgresql()
