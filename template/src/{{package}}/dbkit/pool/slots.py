"""One open connection of a pool, and its ping."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from ..engines.drivers import RESET
from ..engines.session_state import Left


@dataclass(eq=False, slots=True)
class Slot:
    """A connection that counts towards the limit of its pool. Times are monotonic."""

    record: ConnectionPoolEntry
    connection: DBAPIConnection
    driver: Any
    """The driver's own connection."""
    notes: Any
    """What has `left` and `handed_out`: the driver's connection, where it can."""
    is_closed: Callable[[], bool]
    """Whether the driver knows that it is closed; asks nothing of the server."""
    left: Callable[[bool], str]
    """Why it may not be handed on as its last caller left it, given whether it is a sandbox's; asks
    nothing of the server."""
    expires: float
    """When it is to be retired: at its next return, or in the background."""
    taken: float
    """When it was last handed out, or proved alive."""
    contact: float
    """When it was last returned, or proved alive."""
    used: float
    """When it was last returned."""


async def ping(dialect: Dialect, slot: Slot) -> None:
    """Ask the server for a sign of life; raises whatever the driver raises.

    A connection with a state of its last caller's is reset by the same round trip.

    On asyncpg this is one round trip, in the simple protocol, which is right behind PgBouncer
    too; SQLAlchemy's own ping takes three. (Not an empty query: asyncpg 0.32 chokes on it.)
    """
    if dialect.driver == "asyncpg":
        await slot.driver.execute(RESET if slot.notes.left else "SELECT 1")
        slot.notes.left = Left.NOTHING
    else:
        await greenlet_spawn(dialect.do_ping, slot.connection)
