"""States of a database that stop a caller; each says which database, and what to do next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import exc


@dataclass(frozen=True)
class Holder:
    """Who holds a connection at the moment."""

    database: str
    route: str | None
    """`GET /items/{item_id}`; None outside a request."""
    request_id: str | None
    """`X-Request-ID`, else the trace of `traceparent`."""
    task: str
    """The name of its task."""
    held: float
    """Seconds since it took the connection."""
    in_sql: float
    """Seconds of these in which the database had something to do."""
    statements: int
    streams: bool
    """Whether it fetches rows bit by bit, for which the database works between its statements."""
    where: tuple[str, ...]
    """Lines of the service where it is now, the innermost first."""
    is_there: bool
    """Whether it is; else, because its task has ended or runs in a thread, `where` is the line on
    which it took the connection."""
    ended: bool
    """Whether its task has ended: then nothing will return the connection."""
    use: Any
    """Identifies the checkout."""

    @property
    def idle(self) -> float:
        """Seconds in which it held the connection for nothing."""
        return self.held - self.in_sql

    def __str__(self) -> str:
        name = self.route or f"task {self.task}"
        text = f"{name} for {self.held:.2f} s, {self.in_sql:.2f} s of it in SQL"
        if self.streams:
            text += ", streaming rows"
        if self.ended:
            text += "; its task has ended"
        if self.where:
            text += f", {'now' if self.is_there else 'it was taken'} at {' <- '.join(self.where)}"
        return f"{text} [{self.request_id}]" if self.request_id else text


class Unwritten:
    """A message that is written when it is read: under overload, few are."""

    def __init__(self, write: Callable[[], str]) -> None:
        self._write = write

    @cached_property
    def _text(self) -> str:
        return self._write()

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return repr(self._text)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self._text,)


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
        self._detail = detail

    @property
    def detail(self) -> str:
        """The message without the name."""
        return str(self._detail)

    def __str__(self) -> str:
        return f"{self.database}: {self.detail}" if self.database else self.detail


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


class Unreachable(DatabaseError, exc.OperationalError):  # pyright: ignore[reportIncompatibleVariableOverride] -- ours comes first
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
