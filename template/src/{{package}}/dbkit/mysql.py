"""MySQL and MariaDB: settings of a session, TLS, modes of commit, the end of statements."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from . import credentials
from .pool import FairPool
from .settings import DatabaseSettings

KILL_TIMEOUT = 5.0
"""Seconds in which what a cancelled caller left is stopped, or else runs to its own timeout."""
SERVER_LOST = 2013
LONGEST_WAIT = 31_536_000
"""Seconds that stand for "as long as it takes": the most that both servers take, a year."""


def connect_args(label: str, settings: DatabaseSettings, fence: float | None) -> dict[str, Any]:
    """Translate the settings to asyncmy's arguments; `fence` in seconds is for a frozen server."""
    return {
        "connect_timeout": settings.connect_timeout,
        "read_timeout": fence,
        "program_name": label,  # in performance_schema.session_connect_attrs
        "init_command": session_settings(settings),
        "ssl": tls(settings.url),
    }


async def connect_within(
    seconds: float, connect: Callable[..., DBAPIConnection], arguments: Any
) -> DBAPIConnection:
    """Connect and authenticate in time; asyncmy's own timeout covers the socket alone."""
    password = str(arguments.get("password", "")).encode()  # A str it would send as Latin-1.
    async with asyncio.timeout(seconds):
        return await greenlet_spawn(connect, **arguments | {"password": password})


def session_settings(settings: DatabaseSettings) -> str:
    """Write the one statement that sets up a session, on either server.

    `/*M! */` is a comment to MySQL, and MariaDB skips `/*!50708 */`: versions from 50700 to
    50999 are MySQL's. MySQL's timeout is for SELECT alone, and it has none for idle transactions.
    """
    lock_wait = ceil(settings.lock_timeout) or LONGEST_WAIT  # whole seconds
    return (
        "SET time_zone = '+00:00',"
        # asyncmy escapes with backslashes, which a server's NO_BACKSLASH_ESCAPES would disable.
        " sql_mode = 'TRADITIONAL,ONLY_FULL_GROUP_BY',"
        f" innodb_lock_wait_timeout = {lock_wait}, lock_wait_timeout = {lock_wait}"
        f" /*M!100103 , max_statement_time = {settings.statement_timeout:.3f} */"
        f" /*M!100301 , idle_transaction_timeout = {ceil(settings.idle_in_transaction_timeout)} */"
        f" /*!50708 , max_execution_time = {settings.statement_timeout * 1000:.0f} */"
    )


def tls(url: URL) -> ssl.SSLContext | None:
    """Make what checks the server's certificate, or None for a connection without TLS."""
    context = credentials.tls(url)
    if context is None and url.query.get("ssl") == "require":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def begin(connection: Connection) -> None:
    """Begin as the connection is told to, which is left as it is for whoever comes next."""
    level = connection.get_execution_options().get("isolation_level")
    connection.connection.autocommit(level == "AUTOCOMMIT")  # Nothing is sent if it is so already.
    if level not in {None, "AUTOCOMMIT"}:
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}")


def leave_to_begin(_connection: DBAPIConnection, _level: str | None = None) -> None:
    """Set no isolation level: `begin` does."""


def prepare(engine: AsyncEngine, another: Callable[[], AsyncEngine]) -> None:
    """Set what this engine does beside SQLAlchemy's; `another` makes one without a pool."""
    save_round_trips(engine.sync_engine)
    if isinstance(engine.pool, FairPool):
        stop_what_is_left(engine, another())


def save_round_trips(engine: Engine) -> None:
    """Switch to AUTOCOMMIT and back when the other is needed, and roll back what there is.

    In SQLAlchemy's own way, a read of one round trip takes six or seven.
    """
    dialect: Any = engine.dialect  # As it types its methods, they could not be replaced.
    roll_back = dialect.do_rollback

    def do_rollback(connection: Any) -> None:
        driver = connection.driver_connection
        if driver.get_transaction_status() or not driver.get_autocommit():
            roll_back(connection)

    dialect.do_rollback = do_rollback
    dialect.set_isolation_level = dialect.reset_isolation_level = leave_to_begin
    event.listen(engine, "begin", begin)


def stop_what_is_left(engine: AsyncEngine, aside: AsyncEngine) -> None:
    """Kill what callers have left to the server, locks and all, if that is quickly done.

    By one connection beside the pool: in its queue they would wait behind who needs their locks.
    """
    in_turn = asyncio.Lock()

    async def kill(thread: int) -> None:
        with suppress(Exception):  # It has ended by itself, or there is no server.
            async with asyncio.timeout(KILL_TIMEOUT), in_turn, aside.connect() as connection:
                await connection.exec_driver_sql(f"KILL {thread}")

    @event.listens_for(engine.sync_engine, "handle_error")
    def look(context: ExceptionContext) -> None:
        connection = context.connection
        if connection and not connection.invalidated and is_left(context.original_exception):
            driver: Any = connection.connection.driver_connection
            cast("FairPool", engine.pool).beside(kill(driver.thread_id()))


def is_left(error: BaseException) -> bool:
    """Whether the server still works on what its caller no longer waits for."""
    if isinstance(error, asyncio.CancelledError):
        return True
    return error.args[:1] == (SERVER_LOST,) and "(read timeout)" in str(error)  # our fence
