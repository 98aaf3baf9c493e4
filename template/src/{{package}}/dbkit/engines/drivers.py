"""Whether a connection may be handed on: what its driver knows, without asking the server."""

from collections.abc import Callable
from functools import cache
from typing import Any

from .base import Engine, never
from .session_state import Left

IN_TRANSACTION = "in a transaction"
BUSY = "while a statement still ran on it"
STATE = "with settings of its own"
ALTERED = "altered"


class Unwatched:
    """The notes on a connection of a class that has no room for them."""

    left = Left.NOTHING
    handed_out = False


def forget(driver: Any) -> Any:
    """Take a connection for what its next caller may find; return what has the notes on it."""
    try:
        driver.left, driver.handed_out = Left.NOTHING, False
    except AttributeError:  # asyncpg's own class, on an engine that is not of our making
        return Unwatched()
    return driver


def left_check(engine: Engine, connection: Any, driver: Any, notes: Any) -> Callable[[bool], str]:
    """Return what says, in a word or two, why a connection may not be handed on; "" if it may.

    It is told whether the connection is a sandbox's. That one is in a transaction all the time, and
    what only another connection would be free of stays until the test ends: with the connection,
    what the test wrote would go.
    """
    is_in_transaction = engine.transaction_check(driver)
    check = cache(lambda: engine.busy_check(driver))
    mutex = getattr(connection, "_execute_mutex", None)  # Locked while SQLAlchemy runs a statement.
    is_locked = mutex.locked if mutex else never

    def left(in_sandbox: bool) -> str:
        if is_in_transaction() and not in_sandbox:
            return IN_TRANSACTION
        if is_locked():
            return BUSY
        if notes.left or notes.handed_out:
            if notes.handed_out and check()():
                return BUSY
            if notes.left == Left.ALTERED or (notes.handed_out and not engine.knows_when_busy):
                return "" if in_sandbox else ALTERED
            if notes.left:
                return STATE
            notes.handed_out = False
        return ""

    return left
