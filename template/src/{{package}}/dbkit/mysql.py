"""What connections to MySQL and MariaDB are told: timeouts, time zone, strictness, TLS."""

import asyncio
import ssl
from math import ceil
from typing import Any

from sqlalchemy import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.util import greenlet_spawn

from . import credentials
from .settings import DatabaseSettings

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


async def connect_within(seconds: float, dialect: Any, arguments: Any) -> DBAPIConnection:
    """Connect and authenticate in time; asyncmy's own timeout covers the socket alone."""
    password = str(arguments.get("password", "")).encode()  # A str it would send as Latin-1.
    async with asyncio.timeout(seconds):
        return await greenlet_spawn(dialect.connect, **arguments | {"password": password})


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
