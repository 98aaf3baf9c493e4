"""Engines: SQLAlchemy's own, with timeouts and a name on every connection."""

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any, cast

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from ..callsites import raising_lines
from ..engines.base import Connecting, Engine, load
from ..engines.failures import driver_error, schema_differs
from ..engines.metadata import NoTimeZone
from ..engines.sqlstates import BUGS, DISCONNECTED, READ_ONLY, UNKNOWN_STATEMENT, sqlstate
from ..engines.transactions import note_failure, refuse_control
from ..errors import Unreachable
from ..loggers import logger_named
from ..pool import FairPool
from ..pool.timeouts import Timers, within
from ..pool.usage import time_statements
from ..settings.credentials import REFUSED, Credentials
from ..settings.database import DatabaseSettings
from ..settings.threads import LookingUp, is_pending, look_up
from ..settings.urls import driver_url, shown
from ..telemetry.repeats import watch
from .engine_options import EngineOptions, OnConnect, call_on_connect
from .native import make_native

logger = logger_named("engine")

SERVICE = (__package__ or "").partition(".")[0]

# Seconds, but the count: the kernel gives a silent peer up after some 30 s, or 15 s when it owes
# an answer to what was sent. The second net, below the pool's pings. Absent where not supported.
TCP_OPTIONS = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,  # milliseconds
}

FENCE = 5.0
"""Seconds behind `statement_timeout` after which the driver gives a server up."""

REFUSED_SETTING = {"22023", "42704"}
"""SQLSTATEs of a server that does not know a setting, or not that value."""

UNKNOWN_PARAMETER = "08P01"
"""What PgBouncer answers to startup parameters: to a server, a violation of the protocol."""

ROTATION = 60.0
"""Seconds within which connections that were opened with an old password are replaced."""

HINTS = {
    "08001": "the file cannot be opened: see that its folder is there, and may be written to",
    "28P01": "the server refused the user or the password",
    "28000": "the server refused the user, or asks for TLS (?sslmode=require) or for a certificate"
    " (&sslcert=)",
    "3D000": "the server has no such database: correct the name, or run `manage.py create`",
    "53300": "the server has no connection left: see `manage.py check`",
    "57P03": "the server is starting up or shutting down",
}


def create_engine(
    name: str,
    prefix: str,
    settings: DatabaseSettings,
    *,
    pooled: bool = True,
    read_only: bool = False,
    poolclass: type[FairPool] = FairPool,
    options: EngineOptions | None = None,
    on_connect: OnConnect | None = None,
) -> AsyncEngine:
    """Create the engine of database `name`; it connects on first use.

    `prefix` begins the names of its variables in messages. Without `pooled`, each
    connection is opened when it is asked for, and closed when it is given back. With
    `read_only`, the server refuses to write. `options` are further arguments of
    `create_async_engine()`; `on_connect` sets up each connection before its first use.
    """
    options = dict(options or {})
    kind = load(settings.url.get_backend_name())
    # Behind the server's own timeout, which keeps the connection: for a server that is frozen.
    fence = settings.statement_timeout + FENCE if settings.statement_timeout else None
    pool: dict[str, Any] = {"poolclass": NullPool}
    if pooled:
        arguments = {"settings": settings, "env_prefix": prefix, "pool_logging_name": name}
        pool = {"poolclass": poolclass, **arguments}
    engine = create_async_engine(
        driver_url(settings.url),
        connect_args={
            **options.pop("connect_args", {}),
            **kind.connect_args(
                Connecting(name, settings, f"{SERVICE}:{name}", fence, pooled, read_only)
            ),
        },
        echo=settings.echo,
        # Parameters are people's data: neither errors nor logs show them unless asked to.
        hide_parameters=not settings.echo,
        **pool,
        **options,
    )

    replace_connect(engine, kind, name, prefix, settings)

    @event.listens_for(engine.sync_engine, "handle_error")
    def note_error(context: ExceptionContext) -> Exception | None:
        if sqlstate(context.original_exception) in UNKNOWN_STATEMENT and not settings.pgbouncer:
            logger.error("%s: %s", name, undeclared(prefix))
        instead = handle_error(name, context, read_only=read_only)
        return note_failure(name, context) or instead

    kind.prepare(
        engine,
        lambda: create_engine(name, prefix, settings, pooled=False),
        (lambda work: cast("FairPool", engine.pool).beside(work)) if pooled else None,
    )
    call_on_connect(engine, name, on_connect)
    if pooled:
        time_statements(engine.sync_engine, kind.note)
        event.listen(engine.sync_engine, "do_execute", refuse_control)
        watch(engine.sync_engine, name)
        make_native(engine.sync_engine)
    return engine


def replace_connect(
    engine: AsyncEngine, kind: Engine, name: str, prefix: str, settings: DatabaseSettings
) -> None:
    """Connect with the password as it is now, and say why if that fails.

    Not by the event `do_connect`, so that a service's own listeners are called, before this.
    """
    credentials = Credentials(settings.password, settings.password_file)
    dialect: Any = engine.dialect  # As SQLAlchemy types its methods, they could not be replaced.
    connect_as_driver = dialect.connect

    def connect(*args: Any, **kwargs: Any) -> DBAPIConnection:
        try:
            if kind.is_file:
                connection, password = connect_as_driver(*args, **kwargs), None
                kind.set_up(connection, settings)
            else:
                arguments, timeout = shuffle_hosts(kwargs), settings.connect_timeout
                connection, password = await_only(
                    connect_within(timeout, connect_as_driver, kind, arguments, credentials)
                )
                keep_alive(connection)
        except Exception as error:
            credentials.note_failure(sqlstate(error))
            if isinstance(error, BUGS) and raising_lines(error):
                raise  # By code of the service, as of a password: no outage.
            said = unreachable(prefix, settings, error)
            raise Unreachable(name, said, cause=error) from error
        if isinstance(engine.pool, FairPool):
            engine.pool.note_opened(connection)
            if credentials.note_success(password):
                logger.info("%s: the password has changed; connections are replaced", name)
                engine.pool.retire(within=ROTATION)
        return connection

    dialect.connect = connect


async def connect_within(
    seconds: float,
    connect: Callable[..., DBAPIConnection],
    kind: Engine,
    arguments: dict[str, Any],
    credentials: Credentials,
) -> tuple[DBAPIConnection, str | None]:
    """Ask for the password, find the host, connect and authenticate, all in time."""
    arguments = dict(arguments)
    try:
        async with within(0.9 * seconds):  # Before the pool's own, which knows no reason.
            password = await credentials.ask()
            if password is not None:
                arguments["password"] = password
            if (encoded := kind.encode_password(arguments.get("password"))) is not None:
                arguments["password"] = encoded
            await find_hosts(arguments, seconds / 2)
            arguments["loop"] = LookingUp(call_later=Timers().call_later)
            connection = await greenlet_spawn(connect, **arguments)
            connection.driver_connection._loop = arguments["loop"].loop  # noqa: SLF001 -- as it is found
            return connection, password
    except TimeoutError:
        host = arguments.get("host")
        if isinstance(host, str) and is_pending(host):
            raise ConnectionError(f"the resolver does not answer for {host}") from None
        raise


async def find_hosts(arguments: dict[str, Any], patience: float) -> None:
    """Have the names of hosts looked up; of several, leave out those that are not found soon."""
    host = arguments.get("host", "")
    if isinstance(host, str):
        await look_up(host)
        return

    async def find(name: str) -> None:
        async with within(patience):
            await look_up(name)

    found = await asyncio.gather(*(find(each) for each in host), return_exceptions=True)
    pairs = zip(host, arguments["port"], found, strict=True)
    known = [(name, port) for name, port, error in pairs if error is None]
    if not known:
        raise next(error for error in found if error is not None)
    arguments["host"], arguments["port"] = map(list, zip(*known, strict=True))


def handle_error(name: str, context: ExceptionContext, *, read_only: bool) -> Exception | None:
    """Tell lost connections from failed statements, and return what to raise instead, if so."""
    error = context.original_exception
    if context.sqlalchemy_exception is not None:  # For the exception handlers.
        vars(context.sqlalchemy_exception)["database"] = name
        vars(context.sqlalchemy_exception)["schema_differs"] = schema_differs(context)
    if isinstance(error, OSError | TimeoutError):  # SQLAlchemy wraps neither.
        context.is_disconnect = True
        return Unreachable(name, f"the connection was lost: {reason(error)}", cause=error)
    if isinstance(error, OverflowError | UnicodeError | NoTimeZone):  # Drivers and we, of a value.
        wrong = DataError(context.statement, context.parameters, error, hide_parameters=True)
        vars(wrong)["database"] = name
        return wrong
    if sqlstate(error) == READ_ONLY and read_only:
        return None  # A write to a replica is its caller's mistake.
    outdated = type(driver_error(error)).__name__ == "OutdatedSchemaCacheError"
    if outdated or sqlstate(error) in DISCONNECTED:
        context.is_disconnect = True  # asyncpg would go on by types that are no longer so.
    if (
        sqlstate(error) == READ_ONLY
        and context.engine
        and isinstance(context.engine.pool, FairPool)
    ):
        context.engine.pool.retire()  # The others answer a ping too, and refuse the next write.
    return None


def shuffle_hosts(arguments: dict[str, Any]) -> dict[str, Any]:
    """Try the hosts in another order each time, so that no dead one is always the first."""
    if not isinstance(arguments.get("host"), list):
        return arguments
    pairs = list(zip(arguments["host"], arguments["port"], strict=True))
    random.shuffle(pairs)
    return arguments | {"host": [host for host, _ in pairs], "port": [port for _, port in pairs]}


def keep_alive(connection: Any) -> None:
    """Have the kernel find a peer that is gone without a word; no driver offers the settings."""
    transport = getattr(connection.driver_connection, "_transport", None)
    peer: socket.socket | None = transport and transport.get_extra_info("socket")
    if peer is None or peer.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in TCP_OPTIONS.items():
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def unreachable(prefix: str, settings: DatabaseSettings, error: Exception) -> str:
    """Say which server was tried, what it answered, and which variable to check."""
    advice = f"check {prefix}URL"
    if settings.password_file and (sqlstate(error) in REFUSED or isinstance(error, ValueError)):
        advice = f"check {prefix}PASSWORD_FILE"
    if settings.server_settings and sqlstate(error) in REFUSED_SETTING:
        advice = f"check {prefix}SERVER_SETTINGS"
    if sqlstate(error) == UNKNOWN_PARAMETER and not settings.pgbouncer:
        advice = f"if that is PgBouncer, set {prefix}PGBOUNCER=true"
    return f"cannot connect to {shown(settings.url)}: {reason(error)}; {advice}"


def undeclared(prefix: str) -> str:
    """Explain missing prepared statements: an undeclared pooler may mix up results."""
    return (
        "a pooler in transaction mode lies between, and mixes up prepared statements:"
        f" set {prefix}PGBOUNCER=true"
    )


def reason(error: BaseException) -> str:
    """Say in a few words why a connection failed."""
    if hint := HINTS.get(sqlstate(error) or ""):
        return hint
    if isinstance(error.__cause__, OSError):  # asyncmy gives each failure to connect one number.
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    said = getattr(error, "strerror", None) or str(error)
    return said.partition("\n")[0] or type(error).__name__
