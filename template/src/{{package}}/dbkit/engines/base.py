"""What differs between servers and their drivers, behind one interface: a file for each."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import resolve_name
from re import Pattern
from typing import Any, ClassVar

from sqlalchemy import Connection, Dialect, TextClause
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from ..settings.database import DatabaseSettings
from .session_state import Left, Verdicts

KNOWN = frozenset({"postgresql", "mysql", "sqlite"})
LONGEST_WAIT = 31_536_000
"""Seconds that stand for "as long as it takes": the most that MySQL and MariaDB take, a year."""
Work = Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Connecting:
    """What an engine's connections are made for."""

    name: str
    settings: DatabaseSettings
    label: str
    """What the server shows of a connection."""
    fence: float | None
    """Seconds, beyond the server's own `statement_timeout`, after which it counts as frozen."""
    pooled: bool
    read_only: bool


class Engine:
    """One kind of server, and its driver. No method but `ping` asks the server anything."""

    is_file: ClassVar = False
    """Whether the database is a file, without a server."""
    knows_when_busy: ClassVar = False
    """Whether the driver can tell that a statement is still running."""
    begin_sandbox: ClassVar[str | None] = None
    """The statement that begins a sandbox's transaction; None where the driver sends BEGIN."""
    commits: ClassVar[Pattern[str] | None] = None
    """Statements before which the server commits what there is."""
    limits_query: ClassVar[TextClause | None] = None
    """Asks for what `database.budget.Limits` holds."""
    verdicts = Verdicts(lambda _: Left.NOTHING)
    """What a statement leaves on its connection."""

    def connect_args(self, wanted: Connecting) -> dict[str, Any]:
        """Translate the settings to the driver's arguments."""
        raise NotImplementedError

    def encode_password(self, password: object) -> Any:
        """Return a password as the driver takes it; None leaves it to the driver to find one."""
        return password

    def set_up(self, connection: Any, settings: DatabaseSettings) -> None:
        """Set up a new connection, of an engine that is a file."""

    def prepare(
        self,
        engine: AsyncEngine,
        another: Callable[[], AsyncEngine],
        run: Callable[[Work], object] | None,
    ) -> None:
        """Add listeners and settings to a new engine; `another` makes one without a pool.

        `run` starts a background task; None for engines without a pool, as of migrations.
        """

    def begin(self, connection: Connection) -> None:
        """Begin a transaction, where SQLAlchemy's own way is not enough."""

    def refuse_implicit_commit(
        self, _cursor: object, statement: str, _parameters: object, context: Any
    ) -> None:
        """Refuse what would commit, on this server, what a transaction has done so far."""

    def note(self, cursor: Any, statement: str) -> None:
        """Note what a statement of SQLAlchemy's leaves, on the connection of its cursor."""
        if left := self.verdicts[statement]:
            driver = cursor._adapt_connection._connection  # noqa: SLF001 -- told nowhere else
            driver.left = max(getattr(driver, "left", left), left)

    def closed_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check for a closed connection; "no" if only a ping can tell."""
        return never

    def transaction_check(self, driver: Any) -> Callable[[], bool]:
        """Return the driver's own check for a transaction."""
        return never

    def busy_check(self, driver: Any) -> Callable[[], bool]:
        """Return what says whether the driver waits for an answer."""
        return never

    async def ping(
        self, dialect: Dialect, connection: DBAPIConnection, driver: Any, notes: Any
    ) -> None:
        """Ask for a sign of life, and undo `Left.STATE`; raises whatever the driver raises."""
        await greenlet_spawn(dialect.do_ping, connection)


def never(*_: object) -> bool:
    """Return False, for a driver that cannot tell."""
    return False


def leave_to_begin(_connection: object, _level: str | None = None) -> None:
    """Set no isolation level: `begin` does."""


@cache
def load(dialect: str) -> Engine:
    """Return the engine of a dialect, by SQLAlchemy's name; `LookupError` if it is left out."""
    return import_optional(f".{dialect}", dialect).ENGINE if dialect in KNOWN else Engine()


def import_optional(module: str, what: str) -> Any:
    """Import a module that only services with `what` have; `LookupError` says how to get it."""
    name = resolve_name(module, __package__)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise LookupError(
            f"this service was made without {what}: add such a database to the template's list,"
            " `copier update --defaults --ask databases`"
        ) from None
