"""The synchronous side of a database: SQLAlchemy's own engine and sessions, for threads.

It has the settings of the asynchronous engine, a pool of its own (SQLAlchemy's `QueuePool`), and
the promise that a transaction ends as it was told, or raises. The driver is imported, and the
engine made, at the first use.
"""

import asyncio
import os
import sqlite3
import ssl
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from math import ceil, inf
from time import sleep
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from ..callsites import raising_lines
from ..clock import monotonic
from ..context import current
from ..engines.base import leave_to_begin, load
from ..engines.pgbouncer import OUTLASTS, SHOWN
from ..engines.postgresql import parameters
from ..engines.session_state import Left
from ..engines.sqlstates import BUGS, IN_ABORTED, sqlstate
from ..engines.transactions import (
    SYNC,
    Failure,
    aborted,
    checked,
    delay_of_retry,
    refuse_after_failure,
    refuse_control,
)
from ..errors import DatabaseError, TransactionAborted, Unreachable
from ..loggers import logger_named
from ..pool import FairPool
from ..pool.status import Counters
from ..pool.thread_pool import USED, ThreadPool
from ..pool.usage import time_statements
from ..settings.credentials import Credentials
from ..settings.database import DatabaseSettings
from ..settings.server import write_options
from ..settings.urls import hosts
from ..telemetry import repeats
from ..telemetry.leaks import LOOK, Detectors
from .engine import (
    FENCE,
    SERVICE,
    TCP_OPTIONS,
    handle_error,
    unreachable,
)
from .engine_options import EngineOptions
from .probe import Replicated

logger = logger_named("sync")

Result = TypeVar("Result")

DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "sqlite": "pysqlite"}
TO_INSTALL = {"psycopg": '"psycopg[binary]"', "pymysql": "pymysql"}
REFUSED = ("authentication failed", "Access denied")
"""What servers say of a password, for which psycopg gives no SQLSTATE."""

IN_SANDBOX = (
    "{0}: synchronous code has connections of its own, which see nothing of the sandbox: mark the"
    ' test with @pytest.mark.committed("{0}"), or ask for the fixture sync_session or sync_engine'
)

_all: "WeakSet[Synchronous]" = WeakSet()
_inherited: list[Any] = []
"""Pools of a parent process: collected, they would say goodbye on its connections."""


def mysql() -> Any:
    """Import what only a service with MySQL or MariaDB has."""
    return import_module("..engines.mysql", __package__)


class Synchronized(Replicated, Protocol):
    """A `Database`, whose synchronous side this is."""

    @property
    def dialect(self) -> str: ...  # noqa: D102 -- as of `Database`, and so on
    @property
    def env_prefix(self) -> str: ...  # noqa: D102 -- as above
    @property
    def session_class(self) -> type[AsyncSession]: ...  # noqa: D102 -- as above
    @property
    def engine_options(self) -> EngineOptions: ...  # noqa: D102 -- as above
    @property
    def pool(self) -> FairPool: ...  # noqa: D102 -- as above

    def read_settings(self) -> DatabaseSettings: ...  # noqa: D102 -- as above


class Synchronous:
    """What synchronous code uses of a database: `primary.sync`."""

    def __init__(self, database: Synchronized) -> None:
        self._database = database
        self._made: dict[URL, tuple[Engine, sessionmaker[Session]]] = {}
        self._lock = threading.Lock()
        _all.add(self)

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, made at the first use."""
        return self._open[0]

    @property
    def sessions(self) -> "sessionmaker[Session]":
        """Makes sessions on it."""
        return self._open[1]

    def session(self) -> AbstractContextManager[Session]:
        """Begin a transaction: commit on success, roll back on an error.

        That of a replica cannot write: the server refuses to.
        """
        return self._session(self.sessions)

    def request_session(self) -> Generator[Session]:
        """Yield the session of a request: what `def` routes depend on, and tests override."""
        with self.session() as session:
            yield session

    @contextmanager
    def _session(self, sessions: "sessionmaker[Session]") -> Generator[Session]:
        with sessions.begin() as session:
            yield session
        self._note_commit()

    def run_transaction(self, work: Callable[[Session], Result], *, attempts: int = 3) -> Result:
        """Run `work` in a transaction; again, from its beginning, if another one was in its way.

        As `Database.run_transaction()` does, in a thread.
        """
        for attempt in range(1, attempts + 1):
            commit_sent = False
            try:
                with self.session() as session:
                    result = work(session)
                    session.flush()
                    commit_sent = True
                return result  # noqa: TRY300 -- the commit above belongs in the try
            except (exc.DBAPIError, TransactionAborted) as error:
                delay = delay_of_retry(error, attempt, attempts, commit_sent=commit_sent)
                if delay is None:
                    raise
            sleep(delay)
        raise ValueError(f"attempts is {attempts}; it must be 1 or more")

    def _note_commit(self) -> None:
        """Note, for the client of this request, where the log is after a commit; 1 round trip."""
        primary, request = self._database, current()
        if request is None or request.written is None or not primary.is_open:
            return
        if not primary.replicas:  # And no file about them, perhaps.
            return
        replicas: Any = import_module(".replicas", __package__)
        if any(each.is_open and replicas.is_apart(each) for each in primary.replicas):
            position: int | None = None
            # What is committed is committed.
            with suppress(DatabaseError, exc.DBAPIError), self.engine.connect() as connection:
                position = connection.scalar(replicas.END)
            request.positions[primary.name] = replicas.NOWHERE if position is None else position
            request.written.add(primary.name)

    @property
    def engines(self) -> list[Engine]:
        """The engines that were made: none before the first use."""
        return [engine for engine, _ in self._made.copy().values()]

    @property
    def pools(self) -> list[ThreadPool]:
        """Their pools."""
        return [pool_of(engine) for engine in self.engines]

    def close(self, drain_timeout: float = 0) -> None:
        """Close all connections; those in use at their return, for which it waits so long."""
        with self._lock:
            made, self._made = self._made, {}
        end = monotonic() + drain_timeout
        for engine, _ in made.values():
            pool_of(engine).close(end)

    @property
    def _open(self) -> "tuple[Engine, sessionmaker[Session]]":
        database = self._database
        if database.is_open:
            settings = database.settings
            if database.pool.in_sandbox:
                raise exc.InvalidRequestError(IN_SANDBOX.format(database.name))
            if (made := self._made.get(settings.url)) is not None:
                return made
        elif self._made:
            return next(iter(self._made.values()))
        else:
            settings = database.read_settings()
        with self._lock:
            if settings.url not in self._made:
                engine = make_engine(database, settings)
                sessions = sessionmaker(
                    engine,
                    class_=checked(database.session_class).sync_session_class,
                    expire_on_commit=False,
                    close_resets_only=False,
                    info={"database": f"{database.name}{SYNC}"},
                )
                self._made[settings.url] = engine, sessions
            return self._made[settings.url]

    def begin_anew(self) -> None:
        """Leave the connections to the parent of this process."""
        self._lock = threading.Lock()
        for engine, _ in self._made.values():
            _inherited.append(engine.pool)
            engine.dispose(close=False)


def after_fork() -> None:
    """Discard inherited connections: two processes on one connection would mix up answers."""
    for each in _all:
        each.begin_anew()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=after_fork)


def pool_of(engine: Engine) -> ThreadPool:
    """Return an engine's pool."""
    assert isinstance(engine.pool, ThreadPool)  # noqa: S101 -- `make_engine` made it
    return engine.pool


def make_engine(database: Synchronized, settings: DatabaseSettings) -> Engine:
    """Make the engine of a database; it connects on first use."""
    name, dialect_name = database.name, database.dialect
    driver = DRIVERS[dialect_name]
    if driver in TO_INSTALL and find_spec(driver) is None:
        raise DatabaseError(name, f"synchronous code needs {driver}: uv add {TO_INSTALL[driver]}")
    read_only = database.replica_of is not None
    url = settings.url
    query = {key: url.query[key] for key in ("host", "port", "unix_socket") if key in url.query}
    options = {k: v for k, v in database.engine_options.items() if k != "connect_args"}
    engine = create_engine(
        url.set(drivername=f"{dialect_name}+{driver}", query=query),
        connect_args=ARGUMENTS[dialect_name](name, settings, read_only),
        echo=settings.echo,
        hide_parameters=not settings.echo,
        poolclass=ThreadPool,
        settings=settings,
        env_prefix=database.env_prefix,
        pool_logging_name=f"{name}.sync",
        **options,
    )
    replace_connect(engine, database, settings)
    Transactions(engine, name, settings, read_only=read_only)
    time_statements(engine, noting(name, settings, dialect_name))
    repeats.watch(engine, name)
    event.listen(engine, "do_execute", refuse_control)
    if dialect_name == "mysql":
        event.listen(engine, "do_execute", load("mysql").refuse_implicit_commit)
    if dialect_name != "postgresql":
        event.listen(engine, "do_execute", refuse_after_failure)

    @event.listens_for(engine, "checkout")
    def ping(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
        info: Any = record.record_info
        counters: Counters = pool_of(engine).counters
        if dialect_name == "sqlite" or monotonic() - info.get(USED, inf) < settings.ping_after:
            return
        counters.pings += 1
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            counters.ping_errors += 1
            raise exc.InvalidatePoolError from None

    @event.listens_for(engine, "connect")
    def watch(_connection: object, _record: object) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
        pool = pool_of(engine)
        if not pool.is_watched:  # Another after a fork, which has no thread but its own.
            pool.is_watched = True
            look = threading.Thread(
                target=lambda: asyncio.run(look_for_leaks(pool, database.env_prefix)),
                name=f"detectors of {pool.name}",
                daemon=True,
            )
            look.start()

    return engine


async def look_for_leaks(pool: ThreadPool, env_prefix: str) -> None:
    """Name who holds a connection for too long, or for nothing, until the pool is closed."""
    looking = asyncio.create_task(Detectors(lambda: pool, env_prefix).run())
    while not pool.closed.is_set():  # noqa: ASYNC110 -- a thread's event
        await asyncio.sleep(LOOK)
    looking.cancel()


def replace_connect(engine: Engine, database: Synchronized, settings: DatabaseSettings) -> None:
    """Connect with the password as it is now, and say why if that fails."""
    name, prefix = database.name, database.env_prefix
    credentials = Credentials(settings.password, settings.password_file)
    dialect: Any = engine.dialect  # As SQLAlchemy types its methods, they could not be replaced.
    connect_as_driver = dialect.connect

    def connect(*args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        password: str | None = None
        pool = pool_of(engine)
        try:
            if dialect.name != "sqlite":
                password = wait_for(credentials)
                if password is not None:
                    kwargs["password"] = password
                encoded = load(dialect.name).encode_password(kwargs.get("password"))
                if encoded is not None:
                    kwargs["password"] = encoded
            connection = connect_as_driver(*args, **kwargs)
            prepare(connection, dialect.name, settings)
        except Exception as error:
            pool.counters.connect_errors += 1
            refused = any(each in str(error) for each in REFUSED)
            credentials.note_failure("28P01" if refused else sqlstate(error))
            if isinstance(error, BUGS) and raising_lines(error):
                raise  # By code of the service, as of a password: no outage.
            raise Unreachable(name, unreachable(prefix, settings, error), cause=error) from error
        pool.counters.connects += 1
        pool.counters.connect_seconds += monotonic() - began
        pool.usage.opened("demand", monotonic() - began)
        if credentials.note_success(password):
            logger.info("%s: the password has changed; connections are replaced", pool.name)
            pool.retire()
        return connection

    dialect.connect = connect


def wait_for(credentials: Credentials) -> str | None:
    """Ask for the password; in a thread, for what makes it may be asynchronous, and so may we."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, credentials.ask()).result()


def prepare(connection: Any, dialect: str, settings: DatabaseSettings) -> None:
    """Set up a new connection, and room for what is noted on it."""
    if dialect == "sqlite":
        load(dialect).set_up(connection, settings)
    if dialect == "mysql":
        connection.get_transaction_status = lambda: bool(connection.server_status & IN_TRANSACTION)
    connection.failure = None
    connection.begun = connection.had = connection.is_undone = False
    connection.left = Left.NOTHING


class Transactions:
    """Has a transaction that was undone say so at its end, and take no more statements.

    What is known of it is noted on the driver's connection, as `prepare` makes it.
    """

    def __init__(
        self, engine: Engine, name: str, settings: DatabaseSettings, *, read_only: bool
    ) -> None:
        dialect: Any = engine.dialect  # As SQLAlchemy types its methods, none could be replaced.
        self._name = name
        self._read_only = read_only
        self._dialect = dialect
        self._begin_with = with_begin(settings, read_only=read_only) if settings.pgbouncer else ""
        self._is_in: Callable[[Any], bool] = IS_IN_TRANSACTION[dialect.name]
        if dialect.name == "mysql":
            mysql().save_round_trips(engine)
        if dialect.name == "sqlite":
            dialect.set_isolation_level = dialect.reset_isolation_level = leave_to_begin
            event.listen(engine, "begin", load("sqlite").begin)
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "handle_error", self._note_error)
        for method in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, method, self._checked(getattr(dialect, method)))
        self._commit_as_driver, self._roll_back = dialect.do_commit, dialect.do_rollback
        dialect.do_commit, dialect.do_rollback = self._commit, self._rollback

    def _begin(self, connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        in_autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        if self._begin_with and not in_autocommit:
            connection.exec_driver_sql(self._begin_with)
        driver.failure, driver.begun = None, not in_autocommit
        driver.had = driver.is_undone = False

    def _checked(self, execute: Callable[..., None]) -> Callable[..., None]:
        """Have what runs a statement look whether there is a transaction before and after it."""

        def run(cursor: Any, statement: str, *others: Any) -> None:
            driver = cursor.connection
            was_in = self._is_in(driver)
            try:
                execute(cursor, statement, *others)
            except Exception as error:
                self._look(driver, was_in, statement, error)
                raise
            self._look(driver, was_in, statement, None)

        return run

    def _look(self, driver: Any, was_in: bool, statement: str, error: Exception | None) -> None:
        is_in = self._is_in(driver)
        driver.had = driver.had or is_in
        # MySQL is in one when a statement has touched a table, the others at once.
        ended = (was_in or self._dialect.name != "mysql") and not is_in
        if error is not None and self._dialect.name == "mysql":
            number = mysql().number(error)
            ended = ended or mysql().undoes(number, statement)
            if number == mysql().LOCK_WAIT_TIMEOUT:  # Else it has undone the statement alone.
                ended = rolls_back_on_timeout(driver)
        if driver.begun and ended and not driver.is_undone:
            driver.failure, driver.is_undone = Failure(statement, error), True

    def _note_error(self, context: ExceptionContext) -> Exception | None:
        instead = handle_error(self._name, context, read_only=self._read_only)
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return instead
        driver: Any = connection.connection.dbapi_connection
        error = context.original_exception
        if sqlstate(error) == IN_ABORTED:
            return aborted(f"{self._name}{SYNC}", driver.failure)
        failure = Failure(context.statement or "", context.sqlalchemy_exception or error)
        if context.is_disconnect:  # The driver's connection goes; SQLAlchemy's is there to the end.
            vars(connection)["failure"] = failure
        if not driver.is_undone or driver.failure.error is error:
            driver.failure = failure  # As SQLAlchemy raises it, it has the service's own lines.
        return instead

    def _rollback(self, connection: Any) -> None:
        self._roll_back(connection)
        if (driver := connection.dbapi_connection) is not None:
            driver.begun = driver.is_undone = False

    def _commit(self, connection: Any) -> None:
        driver: Any = connection.dbapi_connection
        is_gone = driver.is_undone or is_aborted(driver) or (driver.had and not self._is_in(driver))
        if driver.begun and is_gone:
            self._rollback(connection)
            raise aborted(f"{self._name}{SYNC}", driver.failure)
        self._commit_as_driver(connection)
        driver.begun = False


def noting(name: str, settings: DatabaseSettings, dialect: str) -> Callable[[Any, str], None]:
    """Return what notes, by its cursor, what a statement leaves on the connection."""
    verdicts = load(dialect).verdicts

    def note(cursor: Any, statement: str) -> None:
        if not (left := verdicts[statement]):
            return
        if settings.pgbouncer:
            shown = " ".join(statement.split())[:SHOWN]
            raise exc.InvalidRequestError(OUTLASTS.format(name=name, statement=shown))
        driver = cursor.connection
        if not (dialect == "mysql" and driver.begun and mysql().OF_A_TRANSACTION.match(statement)):
            driver.left = max(driver.left, left)

    return note


def is_aborted(driver: Any) -> bool:
    """Whether PostgreSQL would answer a COMMIT by ROLLBACK."""
    return hasattr(driver, "pgconn") and driver.pgconn.transaction_status == IN_ERROR


def rolls_back_on_timeout(driver: Any) -> bool:
    """Ask a server of MySQL whether it undoes the whole transaction then."""
    with driver.cursor() as cursor:
        cursor.execute("SELECT @@innodb_rollback_on_timeout")
        return bool(cursor.fetchone()[0])


IN_TRANSACTION = 1
"""PyMySQL's flag of a server that is in a transaction."""
IN_ERROR = 3
"""libpq's status of a transaction that is aborted; 1 and 2 are of one that goes on."""
IS_IN_TRANSACTION: dict[str, Callable[[Any], bool]] = {
    "postgresql": lambda driver: driver.pgconn.transaction_status in {1, 2, IN_ERROR},
    "mysql": lambda driver: bool(driver.server_status & IN_TRANSACTION),
    "sqlite": lambda driver: driver.in_transaction,
}


class SqliteConnection(sqlite3.Connection):
    """sqlite3's connection, with room for notes."""


def of_psycopg(name: str, settings: DatabaseSettings, read_only: bool) -> dict[str, Any]:
    """Translate the settings to psycopg's arguments, which are libpq's."""
    query = settings.url.query
    arguments: dict[str, Any] = {
        "application_name": label(name),
        "connect_timeout": ceil(settings.connect_timeout),
        "keepalives_idle": TCP_OPTIONS["TCP_KEEPIDLE"],
        "keepalives_interval": TCP_OPTIONS["TCP_KEEPINTVL"],
        "keepalives_count": TCP_OPTIONS["TCP_KEEPCNT"],
        "tcp_user_timeout": TCP_OPTIONS["TCP_USER_TIMEOUT"],
        **{key: query[key] for key in LIBPQ if key in query},
    }
    if len(hosts(settings.url)) > 1:
        session = "prefer-standby" if read_only else "read-write"
        arguments = {"target_session_attrs": session, "load_balance_hosts": "random"} | arguments
    if mode := query.get("ssl"):
        arguments["sslmode"] = mode
        if str(mode).startswith("verify-") and query.get("sslrootcert", "system") == "system":
            # libpq's own "system" is not for verify-ca, and not in its older versions.
            arguments["sslrootcert"] = ssl.get_default_verify_paths().cafile or "system"
    if settings.pgbouncer:  # It refuses startup parameters; they go with BEGIN.
        return arguments | {"prepare_threshold": None}
    return arguments | {"options": write_options(parameters(settings, read_only=read_only))}


def with_begin(settings: DatabaseSettings, *, read_only: bool) -> str:
    """Write what PgBouncer takes at no other time."""
    return "; ".join(
        f"SET LOCAL {name.removeprefix('default_')} = {value}"
        for name, value in parameters(settings, read_only=read_only).items()
    )


def of_pymysql(name: str, settings: DatabaseSettings, read_only: bool) -> dict[str, Any]:
    """Translate the settings to PyMySQL's arguments; there are no replicas."""
    fence = settings.statement_timeout + FENCE if settings.statement_timeout else None
    return {
        "charset": "utf8mb4",
        "connect_timeout": ceil(settings.connect_timeout),
        "read_timeout": fence,
        "write_timeout": fence,
        "program_name": label(name),
        "init_command": mysql().session_settings(settings),
        "ssl": mysql().tls(settings.url),
    }


def of_sqlite(name: str, settings: DatabaseSettings, read_only: bool) -> dict[str, Any]:
    """Translate the settings to sqlite3's arguments."""
    return {"timeout": settings.lock_timeout, "factory": SqliteConnection}


def label(name: str) -> str:
    """Return what a connection is called on its server."""
    return f"{SERVICE}:{name}.sync"


LIBPQ = ("sslrootcert", "sslcert", "sslkey", "target_session_attrs", "passfile", "krbsrvname")
"""Parameters of a URL that are libpq's own."""
ARGUMENTS = {"postgresql": of_psycopg, "mysql": of_pymysql, "sqlite": of_sqlite}
