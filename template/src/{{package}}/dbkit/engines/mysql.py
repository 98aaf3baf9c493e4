"""MySQL and MariaDB: settings of a session, TLS, modes of commit, the end of statements."""

import asyncio
import logging
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from math import ceil
from typing import Any

from sqlalchemy import URL, Connection, event, text
from sqlalchemy import Engine as SyncEngine
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine

from ..settings import credentials
from ..settings.database import DatabaseSettings
from .base import LONGEST_WAIT, Connecting, Engine, Work, leave_to_begin
from .failures import parameters_of
from .session_state import FLAGS, START, Left, Verdicts
from .sqlstates import TRANSLATIONS
from .transactions import (
    BLANKS,
    CONTROL,
    REFUSED,
    Failure,
    aborted,
    name_of,
    refuse_after_failure,
)

KILL_TIMEOUT = 5.0
"""Seconds in which what a cancelled caller left is stopped, or else runs to its own timeout."""
SERVER_LOST = 2013
GIVEN_UP = "the server has not answered in time"
LOCK_WAIT_TIMEOUT = 1205
UNDOES = frozenset(
    {
        1020,  # the row has changed since it was read; MariaDB, innodb_snapshot_isolation
        1206,  # the lock table is full
        1213,  # deadlock
        LOCK_WAIT_TIMEOUT,  # with innodb_rollback_on_timeout, which is asked when it matters
    }
)
"""Errors with which the server may have rolled back the whole transaction."""
COMMITS = re.compile(
    BLANKS + r"((?:CREATE|ALTER|DROP|RENAME|TRUNCATE|LOCK|GRANT|REVOKE)(?!\s+TEMPORARY)\b)",
    re.IGNORECASE | re.DOTALL,
)
"""Statements before which the server commits what there is."""
OF_A_TRANSACTION = re.compile(BLANKS + r"SET\s+TRANSACTION\b", re.IGNORECASE | re.DOTALL)
LONGEST_READ = 5_000
"""Characters that are looked at of a statement with its values."""
VALUES = re.compile(r"['\"(\d]")
IMPLICIT_COMMIT = """\
{name}: {statement} would commit what this transaction has done so far, and is no part of it
  run it before the rest, or by itself: `await {name}.execute(...)`, a migration."""
SKIPPED = re.compile(
    r"""--\s[^\n]*|\#[^\n]*|/\*(?![!M]).*?\*/|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`[^`]*`""",
    re.DOTALL,
)
ALTERED = re.compile(
    START + r"(?:"
    r"set\s+(?!statement\b|password\b|global\s+(?![^;]*,)|persist)"
    r"|create\s+(?:or\s+replace\s+)?temporary\b|lock\s+tables?\b|use\b|prepare\b|handler\b|xa\b"
    r"|flush\s+tables?\b|backup\b|execute\s+immediate\b"
    r")"
    r"|\bget_lock\s*\(|\blast_insert_id\s*\(\s*[^\s)]|(?<![@\w])@[\w']+\s*:=|\binto\s+@"
    r"|\bcall\b[^;]*(?<!@)@[\w']|\bload\s+data\b[^;]*@",
    FLAGS,
)

# Where the SQLSTATE that the server sends says less: 23000 is every constraint, HY000 anything.
STATES = {
    1020: "40001",  # the row has changed since it was read; MariaDB, innodb_snapshot_isolation
    1022: "23505",  # a duplicate key
    1021: "53100",  # the disk is full
    1040: "53300",  # too many connections
    1044: "28000",  # no access to this database
    1045: "28P01",
    1048: "23502",
    1049: "3D000",
    1053: "57P01",  # the server is shutting down
    1062: "23505",
    1114: "53100",  # a table is full: its disk, mostly
    1169: "23505",
    1203: "53300",
    1118: "54000",  # a row is too large
    1153: "54000",  # a statement is larger than max_allowed_packet
    1205: "55P03",  # lock wait timeout
    1206: "53200",  # the lock table is full
    1213: "40P01",  # deadlock
    1216: "23503",
    1217: "23503",
    1226: "53300",  # the user has no connection left
    1264: "22003",
    1265: "22000",
    1290: "25006",  # --read-only
    1292: "22007",
    1300: "22021",  # no character of the set
    1317: "57014",  # interrupted: KILL QUERY
    1364: "23502",  # NULL by omission
    1365: "22012",
    1366: "22000",
    1406: "22001",
    1436: "54001",  # the stack is too small for the statement
    1451: "23503",
    1452: "23503",
    1557: "23505",
    1586: "23505",
    1690: "22003",
    1698: "28000",
    1836: "25006",
    1927: "57P01",  # killed; MariaDB
    1969: "57014",  # max_statement_time; MariaDB
    3024: "57014",  # max_execution_time; MySQL
    3140: "22000",  # malformed JSON
    3572: "55P03",  # NOWAIT; MySQL
    3819: "23514",  # CHECK; MySQL
    4025: "23514",  # CHECK; MariaDB
    4031: "57P01",  # idle for longer than wait_timeout; MySQL
}
CLIENT = range(2000, 3000)
"""Numbers that the driver gives, not the server: no answer came."""

Driver: Any = object
"""Stands for asyncmy's, which is not there where all databases are others."""
NO_SUCH_SAVEPOINT = 1305
"""Or procedure, or function."""
TOO_LARGE = 1153
ALWAYS_TAKEN = 1_000_000
"""Bytes of values that every server takes in a statement, unless it is told to take less."""
# MariaDB has no identifier that all its versions tell; `/*!50708 */` is a comment to it. What is
# reserved for administrators lies beyond `max_connections`, and no database has a limit.
LIMITS = text("""
    SELECT concat_ws(' ', @@hostname, @@port, @@server_id /*!50708 , @@server_uuid */),
        @@max_connections, 0,
        concat('user ', current_user()), coalesce(nullif(@@max_user_connections, 0), -1),
        database(), -1
""")


def session_settings(settings: DatabaseSettings) -> str:
    """Write the one statement that sets up a session, on either server.

    `/*M! */` is a comment to MySQL, and MariaDB skips `/*!50708 */`: versions from 50700 to
    50999 are MySQL's. MySQL's timeout is for SELECT alone, and it has none for idle transactions.
    """
    added = "".join(
        f", {name} = {literal(each)}" for name, each in settings.server_settings.items()
    )
    lock_wait = ceil(settings.lock_timeout) or LONGEST_WAIT  # whole seconds
    return (
        "SET time_zone = '+00:00',"
        # asyncmy escapes with backslashes, which a server's NO_BACKSLASH_ESCAPES would disable.
        " sql_mode = 'TRADITIONAL,ONLY_FULL_GROUP_BY',"
        f" innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}"
        f"{added}"
        f" /*M!100103 , max_statement_time = {settings.statement_timeout:.3f} */"
        f" /*M!100301 , idle_transaction_timeout = {ceil(settings.idle_in_transaction_timeout)} */"
        f" /*!50708 , max_execution_time = {settings.statement_timeout * 1000:.0f} */"
    )


def literal(value: str) -> str:
    """Write a value: a number as it is, and everything else as text."""
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def tls(url: URL) -> ssl.SSLContext | None:
    """Make what checks the server's certificate, or None for a connection without TLS."""
    context = credentials.tls(url)
    if context is None and url.query.get("ssl") == "require":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def find_left(statement: str) -> Left:
    """Say what a statement leaves on a connection to MySQL or MariaDB, which no reset undoes."""
    text = SKIPPED.sub("''", statement)
    return Left.ALTERED if ALTERED.search(text) else Left.NOTHING


class CheckedConnection(Driver):
    """asyncmy's connection, whose transactions do not end undone in silence."""

    database_name: str
    failure: Failure | None = None
    """What may have undone the transaction."""
    begun = False
    """Whether a transaction of SQLAlchemy's has begun, and has not been ended."""
    migrates = False
    patience: float | None = None
    """Seconds to wait for the server's next bytes."""
    left = Left.NOTHING
    noted = False
    """Whether SQLAlchemy has told of the next statement, before there were values in it."""
    _statement = ""

    @property
    def is_undone(self) -> bool:
        """Whether the transaction has surely been undone."""
        failure = self.failure
        return failure is not None and number(failure.error) != LOCK_WAIT_TIMEOUT

    def note_failure(self, original: BaseException, failure: Failure) -> None:
        """Note how SQLAlchemy raises an error: that one passes the service's own lines."""
        if self.failure and self.failure.error is original:
            self.failure = failure

    def note(self, statement: str, left: Left) -> None:
        """Note what a statement leaves on the connection."""
        # In AUTOCOMMIT, SET TRANSACTION is for the next transaction, whoever begins it.
        if not (self.begun and OF_A_TRANSACTION.match(statement)):
            self.left = max(self.left, left)

    async def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement."""
        parent: Any = super()
        if self.noted:
            self.noted = False
        else:
            self._look_at(sql[:LONGEST_READ])
        self._statement = sql
        before: bool = self.get_transaction_status()
        try:
            return await parent.query(sql, unbuffered)
        except Exception as error:
            if (before or self.begun) and not self.is_undone and undoes(number(error), sql):
                self.failure = Failure(outline(sql), error)
            raise

    def _look_at(self, sql: str) -> None:
        """Note, or refuse, what comes by a cursor of the driver's own."""
        if self.begun and (found := CONTROL.match(sql)):
            message = REFUSED.format(name=self.database_name, statement=found[1].upper())
            raise InvalidRequestError(message)
        if left := find_left(sql):
            self.note(sql, left)

    async def _read_query_result(self, unbuffered: bool = False) -> None:
        """Read a result, in which the server says whether there is a transaction after it."""
        parent: Any = super()
        before: bool = self.get_transaction_status()
        await parent._read_query_result(unbuffered)  # noqa: SLF001 -- ours
        if not unbuffered:  # asyncmy keeps the old one when there is neither that nor AUTOCOMMIT.
            self.server_status = self._result.server_status
        if not self.begun or self.is_undone or self.migrates:
            return
        if self.get_autocommit() or (before and not self.get_transaction_status()):
            self.failure = Failure(outline(self._statement))  # It has committed, or rolled back.

    async def begin(self) -> None:
        """Begin."""
        parent: Any = super()
        await parent.begin()
        self.failure = None

    async def commit(self) -> None:
        """Commit, if what was begun is still there."""
        parent: Any = super()
        failure = self.failure
        if failure and (self.is_undone or await self._rolls_back_on_timeout()):
            await self.rollback()  # What came after it.
            raise aborted(self.database_name, failure)
        await parent.commit()
        self.failure, self.begun = None, False

    async def rollback(self) -> None:
        """Roll back."""
        parent: Any = super()
        await parent.rollback()
        self.failure, self.begun = None, False

    async def _fill_buffer(self, need: int) -> None:
        """Wait for bytes.

        The driver would use `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that
        comes together with them: the caller would go on, its timeout spent.
        """
        parent: Any = super()
        try:
            async with asyncio.timeout(self.patience):
                await parent._fill_buffer(need)  # noqa: SLF001 -- ours
        except TimeoutError as error:
            operational_error = import_module("asyncmy.errors").OperationalError
            raise operational_error(SERVER_LOST, GIVEN_UP) from error

    async def _rolls_back_on_timeout(self) -> bool:
        async with self.cursor() as cursor:
            await cursor.execute("SELECT @@innodb_rollback_on_timeout")
            (on,) = await cursor.fetchone()
        return bool(on)


def opener(name: str, *, migrates: bool = False) -> Callable[..., Any]:
    """Make the function that connects to database `name`.

    Only what `migrates` may send several statements in one text, for it looks what becomes of the
    second: SQLAlchemy does not. And only there a statement may commit what came before it.
    """
    flag: int = import_module("asyncmy.constants.CLIENT").MULTI_STATEMENTS
    bases = (CheckedConnection, import_module("asyncmy.connection").Connection)
    made: Any = type("CheckedConnection", bases, {"database_name": name, "migrates": migrates})

    async def connect(*, read_timeout: float | None, loop: Any, **arguments: Any) -> Any:
        connection = made(**arguments)
        connection._loop = loop  # noqa: SLF001 -- no argument of it is for that
        connection.patience = read_timeout
        if not migrates:
            connection._client_flag &= ~flag  # noqa: SLF001 -- no argument of it takes one off
        await connection.connect()
        return connection

    return connect


def undoes(number: int | None, sql: str) -> bool:
    """Whether an error of a statement may mean that the whole transaction is gone."""
    is_savepoint = sql.startswith(("RELEASE ", "ROLLBACK "))
    return number in UNDOES or (number == NO_SUCH_SAVEPOINT and is_savepoint)


def outline(sql: str) -> str:
    """Return what comes before the first value: asyncmy writes them into the statement."""
    return VALUES.split(sql, maxsplit=1)[0]


def number(error: BaseException | None) -> int | None:
    """Return the number of a server's error, also of one that SQLAlchemy has wrapped."""
    original = getattr(error, "orig", error)
    return original.args[0] if original is not None and original.args else None


def save_round_trips(engine: SyncEngine) -> None:
    """Switch to AUTOCOMMIT and back when the other is needed, and roll back what there is.

    In SQLAlchemy's own way, a read of one round trip takes six or seven.
    """
    dialect: Any = engine.dialect  # As it types its methods, they could not be replaced.
    roll_back = dialect.do_rollback

    def do_rollback(connection: Any) -> None:
        driver = connection.driver_connection
        if driver is None:  # The garbage collector had it closed: nobody could return it.
            return
        if driver.get_transaction_status() or not driver.get_autocommit():
            roll_back(connection)

    dialect.do_rollback = do_rollback
    dialect.set_isolation_level = dialect.reset_isolation_level = leave_to_begin
    event.listen(engine, "begin", ENGINE.begin)


def refuse_large_statements(engine: SyncEngine) -> None:
    """Refuse a statement beyond `max_allowed_packet` before it is sent: the server would hang up.

    Only what has more than a megabyte of values asks for the limit, which takes one round trip.
    """
    dialect: Any = engine.dialect  # As it types its methods, they could not be replaced.
    execute = dialect.do_execute

    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        values = (each for each in parameters_of(parameters) if isinstance(each, str | bytes))
        if sum(map(len, values)) > ALWAYS_TAKEN:
            cursor.execute("SELECT @@max_allowed_packet")
            (limit,) = cursor.fetchone()
            sent = cursor._cursor.mogrify(statement, parameters)  # noqa: SLF001 -- the driver's
            if len(sent.encode("utf-8", "surrogatepass")) >= limit:
                raise dialect.dbapi.DataError(
                    TOO_LARGE, f"the statement is larger than max_allowed_packet ({limit} bytes)"
                )
        execute(cursor, statement, parameters, context)

    dialect.do_execute = do_execute


def stop_what_is_left(
    engine: AsyncEngine, aside: AsyncEngine, run: Callable[[Work], object]
) -> None:
    """Kill statements whose caller has gone, to release their locks; give up after 5 s.

    On a connection of its own: in the pool's queue it would wait behind those that need the locks.
    """
    in_turn = asyncio.Lock()

    async def kill(thread: int) -> None:
        with suppress(Exception):  # The statement has ended, or the server is gone.
            async with asyncio.timeout(KILL_TIMEOUT), in_turn, aside.connect() as connection:
                await connection.exec_driver_sql(f"KILL {thread}")

    @event.listens_for(engine.sync_engine, "handle_error")
    def look(context: ExceptionContext) -> None:
        connection = context.connection
        if connection and not connection.invalidated and is_left(context.original_exception):
            driver: Any = connection.connection.driver_connection
            run(kill(driver.thread_id()))


def is_left(error: BaseException) -> bool:
    """Whether the server still runs a statement whose caller has gone."""
    if isinstance(error, asyncio.CancelledError):
        return True
    return error.args == (SERVER_LOST, GIVEN_UP)


def state_of(error: Any) -> str | None:
    """Translate an error's number; else return the SQLSTATE that came with it."""
    number: int | str = error.args[0]
    if isinstance(number, str):  # The driver's own, which is of a value: NaN, infinity.
        return "22003" if number.endswith("can not be used with MySQL") else None
    return None if number in CLIENT else STATES.get(number, getattr(error, "sqlstate", None))


class Mysql(Engine):
    """MySQL or MariaDB, by asyncmy."""

    commits = COMMITS
    limits_query = LIMITS
    verdicts = Verdicts(find_left)

    def connect_args(self, wanted: Connecting) -> dict[str, Any]:
        """Translate the settings to the driver's arguments."""
        settings = wanted.settings
        return {
            "async_creator_fn": opener(wanted.name, migrates=not wanted.pooled),
            "connect_timeout": settings.connect_timeout,
            "read_timeout": wanted.fence,
            "program_name": wanted.label,  # in performance_schema.session_connect_attrs
            "init_command": session_settings(settings),
            "ssl": tls(settings.url),
        }

    def encode_password(self, password: object) -> bytes:
        """Encode it as UTF-8: asyncmy would send a str as Latin-1."""
        return str(password or "").encode()

    def prepare(
        self,
        engine: AsyncEngine,
        another: Callable[[], AsyncEngine],
        run: Callable[[Work], object] | None,
    ) -> None:
        """Save round trips, and refuse what would commit or hang up."""
        log = logging.getLogger("asyncmy")
        if log.level == logging.NOTSET:
            log.setLevel(logging.ERROR)  # It logs the server's warnings, which quote values.
        save_round_trips(engine.sync_engine)
        event.listen(engine.sync_engine, "do_execute", refuse_after_failure)
        refuse_large_statements(engine.sync_engine)
        if run is not None:  # The statements of migrations commit anyway.
            event.listen(engine.sync_engine, "do_execute", self.refuse_implicit_commit)
            stop_what_is_left(engine, another(), run)

    def begin(self, connection: Connection) -> None:
        """Begin with the isolation level of the connection's execution options."""
        level = connection.get_execution_options().get("isolation_level")
        connection.connection.autocommit(level == "AUTOCOMMIT")  # Nothing is sent if it is so.
        driver: Any = connection.connection.driver_connection
        driver.failure, driver.begun = None, level != "AUTOCOMMIT"
        if level not in {None, "AUTOCOMMIT"}:
            connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")

    def refuse_implicit_commit(
        self, _cursor: object, statement: str, _parameters: object, context: Any
    ) -> None:
        """Refuse what commits on these servers what the transaction has done so far."""
        if not (context.is_text or context.isddl) or (found := COMMITS.match(statement)) is None:
            return
        if context.root_connection.connection.driver_connection.get_transaction_status():
            name, word = name_of(context), found[1].upper()
            raise InvalidRequestError(IMPLICIT_COMMIT.format(name=name, statement=word))

    def note(self, cursor: Any, statement: str) -> None:
        """Note what a statement leaves, before its values are in it."""
        driver = cursor._adapt_connection._connection  # noqa: SLF001 -- told nowhere else
        driver.noted = True
        if left := self.verdicts[statement]:
            driver.note(statement, left)

    def closed_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check for a closed connection."""
        return lambda: driver._stream_broken  # noqa: SLF001 -- it says less in public

    def transaction_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check for a transaction."""
        return driver.get_transaction_status


ENGINE = Mysql()
TRANSLATIONS["asyncmy"] = TRANSLATIONS["pymysql"] = state_of
