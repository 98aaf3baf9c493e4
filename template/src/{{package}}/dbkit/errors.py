"""States of a database that stop a caller; each says which database, and what to do next."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import exc

from .usage import Holder


class DatabaseError(Exception):
    """Base of every error that this package raises; its message begins with the database."""

    retry_after: float = 1.0
    """Seconds after which trying again may help, where time may cure the state at all."""
    holders: Sequence[Holder] = ()
    """Who held the connections of the pool, the longest first, when that is why."""
    blocked: str = ""
    """What blocked the event loop meanwhile, if anything did, by route and line."""

    def __init__(self, database: str, detail: Any) -> None:
        self.database = database
        """The name of the database; empty where it is not about one alone."""
        self.detail = detail
        """The message without the name."""

    def __str__(self) -> str:
        return f"{self.database}: {self.detail}" if self.database else str(self.detail)


class NotConfigured(DatabaseError):
    """Settings are missing or wrong; `faults` names each variable as it is typed."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("", "\n  ".join(["settings are missing or wrong:", *self.faults]))


class NotOpen(DatabaseError):
    """A database was used before the service started, or after it stopped."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "not open; enter `async with databases.open():` first")


class ReadOnly(DatabaseError, exc.InvalidRequestError):
    """A reader was asked to write, or to lock; `what` says it in a verb, `writer` who may."""

    def __init__(self, name: str, what: str, writer: str) -> None:
        session = f"{writer.title().replace('_', '')}Session"
        super().__init__(
            name,
            f"a reader does not {what}: every read of it is a transaction of its own; "
            f"depend on {session}, or use `async with {writer}.session()`",
        )


class TransactionAborted(DatabaseError, exc.InvalidRequestError):
    """The transaction was undone before its end: nothing of it is stored.

    Its cause is the error that undid it, if that is known, and `sqlstate` the code of that.
    """

    def __init__(self, database: str, detail: str, sqlstate: str | None = None) -> None:
        super().__init__(database, detail)
        self.sqlstate = sqlstate


class Unreachable(DatabaseError, exc.OperationalError):
    """The server did not accept a connection, or the connection was lost.

    Or the server will not be asked again before `retry_after` seconds. It is also SQLAlchemy's
    `OperationalError`, so that code which handles that handles this.
    """

    statement = params = ismulti = None
    connection_invalidated = True
    hide_parameters = True

    def __init__(
        self,
        database: str,
        detail: str,
        *,
        cause: Exception | None = None,
        retry_after: float = DatabaseError.retry_after,
    ) -> None:
        super().__init__(database, detail)
        self.orig = self.__cause__ = cause
        self.retry_after = retry_after

    def add_detail(self, msg: str) -> None:
        """Take what SQLAlchemy has to add, as of an autoflush."""
        self.add_note(msg)

    def __reduce__(self) -> Any:
        return Exception.__reduce__(self)


class PoolTimeout(DatabaseError, exc.TimeoutError):
    """No connection became free within `pool_timeout`."""


class PoolOverloaded(DatabaseError, exc.TimeoutError):
    """The request was shed before it waited for `pool_timeout`."""


class PoolClosed(DatabaseError, exc.InvalidRequestError):
    """The pool is draining: it hands out no more connections."""


class EmbeddedFailed(DatabaseError):
    """A server of development and tests could not be started."""

    def __init__(self, detail: str) -> None:
        super().__init__("", detail)
