"""What a service adds to its engines: arguments of SQLAlchemy's, and the setup of connections."""

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from ..settings.database import DatabaseSettings

EngineOptions = Mapping[str, Any]
"""Further arguments of `create_async_engine()`."""

OnConnect = Callable[[Any], Awaitable[object] | None]
"""Sets up a new connection, which is the driver's own: asyncpg's, asyncmy's, aiosqlite's."""

ISOLATION = (
    "set default_transaction_isolation (PostgreSQL) or transaction_isolation (MySQL) in"
    " SERVER_SETTINGS"
)

# What the kit sets itself, beside the fields of `DatabaseSettings`.
OWN_OPTIONS = {
    "async_creator": "the pool connects",
    "creator": "the pool connects",
    "hide_parameters": "it follows ECHO",
    "isolation_level": ISOLATION,
    "pool": "the kit has its own",
    "pool_events": "listen to `engine.sync_engine`, or use on_connect",
    "pool_logging_name": "it is the database's name",
    "pool_pre_ping": "the pool pings what was unused for PING_AFTER seconds",
    "pool_reset_on_return": "the pool resets connections itself",
    "pool_use_lifo": "it always does",
    "poolclass": "the kit has its own",
}
OWN_ARGUMENTS = {
    "async_creator_fn": "the pool connects",
    "command_timeout": "set STATEMENT_TIMEOUT",
    "connect_timeout": "set CONNECT_TIMEOUT",
    "connection_class": "the kit has its own",
    "init_command": "set SERVER_SETTINGS, or use on_connect",
    "password": "declare password=",
    "program_name": "it is the service's name",
    "read_timeout": "set STATEMENT_TIMEOUT",
    "server_settings": "set SERVER_SETTINGS",
    "ssl": "write sslmode, sslrootcert, sslcert and sslkey in the URL",
    "target_session_attrs": "write it in the URL",
    "timeout": "set CONNECT_TIMEOUT",
}


def check_options(options: EngineOptions, prefix: str) -> None:
    """Raise `ValueError` for what the kit sets itself, with the way to set it."""
    for name in options:
        if name in DatabaseSettings.model_fields:
            way = f"declare {name}= beside engine_options, or set {prefix}{name.upper()}"
        elif name in OWN_OPTIONS:
            way = OWN_OPTIONS[name]
        else:
            continue
        raise ValueError(f"engine_options may not hold {name}: {way}")
    for name in options.get("connect_args", {}).keys() & OWN_ARGUMENTS.keys():
        raise ValueError(f"connect_args may not hold {name}: {OWN_ARGUMENTS[name]}")
    if "isolation_level" in options.get("execution_options", {}):
        raise ValueError(f"execution_options may not hold isolation_level: {ISOLATION}")


def call_on_connect(engine: AsyncEngine, name: str, on_connect: OnConnect | None) -> None:
    """Have a function set up each new connection, before its first use."""
    if on_connect is None:
        return

    # After SQLAlchemy's own listener, whose codecs the function may replace.
    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        try:
            if isawaitable(result := on_connect(connection.driver_connection)):
                await_only(result)
            end_transaction(connection)
        except Exception as error:
            error.add_note(f"{name}: raised by on_connect")
            raise


def end_transaction(connection: Any) -> None:
    """Leave a new connection in no transaction: MySQL's first SELECT has begun one."""
    driver = connection.driver_connection
    if hasattr(driver, "get_transaction_status"):
        connection.rollback()
    elif driver.is_in_transaction() if hasattr(driver, "fetchrow") else driver.in_transaction:
        raise RuntimeError("on_connect left a transaction open")
