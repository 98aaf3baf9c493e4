"""One open connection of a pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry


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
