"""One open connection of a pool, and what only its driver can tell about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn


@dataclass(eq=False, slots=True)
class Slot:
    """A connection that counts towards the limit of its pool. Times are monotonic."""

    record: ConnectionPoolEntry
    connection: DBAPIConnection
    is_closed: Callable[[], bool]
    """Whether the driver knows that it is closed; asks nothing of the server."""
    expires: float
    """When it is to be retired: at its next return, or in the background."""
    taken: float
    """When it was last handed out, or proved alive."""
    contact: float
    """When it was last returned, or proved alive."""
    used: float
    """When it was last returned."""


def closed_check(dialect: Dialect, driver_connection: Any) -> Callable[[], bool]:
    """Return the driver's own check for a closed connection, without a round trip.

    The driver is known by its name and never imported: a service has only its own.
    """
    if dialect.driver == "asyncpg":
        return driver_connection.is_closed
    if dialect.driver == "asyncmy":
        return lambda: driver_connection._stream_broken  # noqa: SLF001 -- it says less in public
    return never


def never() -> bool:
    """Answer for a driver that cannot tell: a ping will."""
    return False


async def ping(dialect: Dialect, slot: Slot) -> None:
    """Ask the server for a sign of life; raises whatever the driver raises.

    On asyncpg this is one round trip, in the simple protocol, which is right behind PgBouncer
    too; SQLAlchemy's own ping takes three. (Not an empty query: asyncpg 0.32 chokes on it.)
    """
    if dialect.driver == "asyncpg":
        driver_connection: Any = slot.record.driver_connection
        await driver_connection.execute("SELECT 1")
    else:
        await greenlet_spawn(dialect.do_ping, slot.connection)
