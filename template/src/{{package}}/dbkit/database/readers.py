"""Single statements, which hold nothing: each takes a connection, asks once, and gives it back.

A transaction of one statement costs three round trips: BEGIN, the statement, COMMIT or ROLLBACK. In
AUTOCOMMIT it is one; and all of it is done in one greenlet, where SQLAlchemy's asyncio classes
start one for each of their methods.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, overload

from sqlalchemy import Engine, Executable, Result, ScalarResult, TextClause
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncResult, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.interfaces import ORMOption
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.selectable import TypedReturnsRows
from sqlalchemy.util import greenlet_spawn

from ..engines.sqlstates import is_stale
from ..errors import ReadOnly
from .native import BUFFERED, get_natively, is_plain, nothing, run_natively

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Parameters = Mapping[str, Any]

# Set on each connection: an engine of its own would not see listeners that are added later.
AUTOCOMMIT: Mapping[str, Any] = {"isolation_level": "AUTOCOMMIT"}
LONGEST_SHOWN = 60
"""Characters of a statement that a message shows."""
WRITES = re.compile(r"\s*(insert|update|delete|merge|create|alter|drop|truncate)\b", re.IGNORECASE)


class Reader:
    """Reads from one database; its methods are those of `AsyncSession`, and hold nothing.

    Every call sees what is committed when it begins; two that must see the same belong in a
    session, at REPEATABLE READ. Objects come back detached: what was not loaded raises
    `DetachedInstanceError` when it is touched, and never asks the database.

    What writes or locks is refused (`ReadOnly`) before a connection is taken, text by its first
    word. What a CTE or a function writes is seen by nobody but the server.
    """

    def __init__(self, name: str, engine: AsyncEngine, *, writer: str | None = None) -> None:
        self._name = name
        self._writer = writer or name
        self._engine = engine

    @overload
    async def execute(
        self, statement: TypedReturnsRows[*Ts], params: Parameters | None = None
    ) -> Result[*Ts]: ...
    @overload
    async def execute(
        self, statement: Executable, params: Parameters | None = None
    ) -> Result[*tuple[Any, ...]]: ...
    async def execute(self, statement: Executable, params: Parameters | None = None) -> Any:
        """Run a statement and return its rows, all of them fetched."""
        self._refuse_writes(statement)
        return await self._read(run, statement, params)

    @overload
    async def scalars(
        self, statement: TypedReturnsRows[T], params: Parameters | None = None
    ) -> ScalarResult[T]: ...
    @overload
    async def scalars(
        self, statement: Executable, params: Parameters | None = None
    ) -> ScalarResult[Any]: ...
    async def scalars(
        self, statement: Executable, params: Parameters | None = None
    ) -> ScalarResult[Any]:
        """Run a statement and return the first column of its rows, all of them fetched."""
        return (await self.execute(statement, params)).scalars()

    @overload
    async def scalar(
        self, statement: TypedReturnsRows[T], params: Parameters | None = None
    ) -> T | None: ...
    @overload
    async def scalar(self, statement: Executable, params: Parameters | None = None) -> Any: ...
    async def scalar(self, statement: Executable, params: Parameters | None = None) -> Any:
        """Run a statement and return the first column of its first row; None if there is none."""
        return (await self.execute(statement, params)).scalar()

    async def get(
        self, entity: type[T], ident: Any, *, options: Sequence[ORMOption] = ()
    ) -> T | None:
        """Return the object with this primary key, detached; None if there is none."""
        return await self._read(get, entity, ident, options)

    @overload
    def stream(
        self, statement: TypedReturnsRows[*Ts], params: Parameters | None = None
    ) -> AbstractAsyncContextManager[AsyncResult[*Ts]]: ...
    @overload
    def stream(
        self, statement: Executable, params: Parameters | None = None
    ) -> AbstractAsyncContextManager[AsyncResult[*tuple[Any, ...]]]: ...
    def stream(
        self, statement: Executable, params: Parameters | None = None
    ) -> AbstractAsyncContextManager[Any]:
        """Read rows as they are needed: the one method that holds a connection, until exit.

        As in `async with reader.stream(statement) as result`, and in it `async for row in result`.
        """
        self._refuse_writes(statement)
        return Stream(AsyncSession(self._source()), statement, params)

    def _source(self) -> AsyncEngine:
        """Return the engine to read from now."""
        return self._engine

    def _read(self, ask: Callable[..., Awaitable[T]], *arguments: Any) -> Awaitable[T]:
        """Ask that engine."""
        return ask(self._source().sync_engine, *arguments)

    def _refuse_writes(self, statement: Any) -> None:
        refuse_text(statement)
        if isinstance(statement, TextClause):
            if found := WRITES.match(statement.text):
                raise ReadOnly(self._name, found[1].lower(), self._writer)
        elif statement.is_dml or isinstance(statement, ExecutableDDLElement):
            what = statement.__visit_name__.replace("_", " ")
            raise ReadOnly(self._name, what, self._writer)
        elif getattr(statement, "_for_update_arg", None) is not None:
            raise ReadOnly(self._name, "lock rows", self._writer)

    if not TYPE_CHECKING:  # To a type checker there are no such attributes.

        def __getattr__(self, name: str) -> Any:
            if hasattr(AsyncSession, name):
                raise AttributeError(str(ReadOnly(self._name, name, self._writer)))
            raise AttributeError(f"a Reader has no attribute {name!r}")


class Stream(AbstractAsyncContextManager[AsyncResult[Any]]):
    """The rows of a statement as they are needed, in a session of their own.

    Not a generator: Python closes those that are left behind each by itself, with what they use.
    """

    def __init__(
        self, session: AsyncSession, statement: Executable, params: Parameters | None
    ) -> None:
        self._session = session
        self._statement = statement
        self._params = params

    async def __aenter__(self) -> AsyncResult[Any]:
        # PostgreSQL's cursors live in transactions; SQLite's BEGIN would queue behind a writer.
        is_postgresql = self._session.get_bind().dialect.name == "postgresql"
        options = {"postgresql_readonly": True} if is_postgresql else AUTOCOMMIT
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._session)
            await self._session.connection(execution_options=options)
            try:
                result = await self._session.stream(self._statement, self._params)
            except DBAPIError as error:
                if not is_stale(error):
                    raise
                await self._session.rollback()
                await self._session.connection(execution_options=options)
                result = await self._session.stream(self._statement, self._params)
            stack.pop_all()
        return result

    async def __aexit__(self, *error: object) -> None:
        await self._session.__aexit__(*error)


async def run(
    engine: Engine,
    statement: Executable,
    params: Parameters | None,
    begin: Callable[[], None] = nothing,
) -> Any:
    """Run a statement in AUTOCOMMIT; `begin` is called once it may begin.

    Natively, where that is the same: it takes half the time.
    """
    result = await run_natively(engine, statement, params, begin)
    if result is None:
        result = await greenlet_spawn(run_alone, engine, statement, params, begin)
    return result


async def get(engine: Engine, entity: Any, ident: Any, options: Sequence[ORMOption]) -> Any:
    """Get an object in AUTOCOMMIT; natively, where that is the same."""
    result = await get_natively(engine, entity, ident, options)
    if result is None:
        return await greenlet_spawn(get_alone, engine, entity, ident, options)
    return result.one_or_none()


def asked_again(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Ask once more what was prepared before a migration changed its tables: nothing was done."""

    @wraps(ask)
    def asked(*args: Any, **kwargs: Any) -> Any:
        try:
            return ask(*args, **kwargs)
        except DBAPIError as error:
            if not is_stale(error):
                raise
        return ask(*args, **kwargs)

    return asked


@asked_again
def run_alone(
    engine: Engine,
    statement: Executable,
    params: Parameters | None,
    begin: Callable[[], None],
) -> Any:
    """Run a statement in AUTOCOMMIT, in a greenlet; `begin` is called once it may begin.

    The drivers' adapters fetch all rows with the statement, so that the result outlives the
    connection's return.
    """
    if is_plain(statement):  # Then what an ORM session adds is for nothing.
        with engine.connect().execution_options(**AUTOCOMMIT) as connection:
            begin()
            return connection.execute(statement, params)
    with Session(engine) as session:
        session.connection(execution_options=AUTOCOMMIT)
        begin()
        return session.execute(statement, params, execution_options=BUFFERED)


@asked_again
def get_alone(engine: Engine, entity: Any, ident: Any, options: Sequence[ORMOption]) -> Any:
    """Get an object in AUTOCOMMIT, in a greenlet."""
    with Session(engine) as session:
        session.connection(execution_options=AUTOCOMMIT)
        return session.get(entity, ident, options=options)


def refuse_text(statement: Any) -> None:
    """Refuse a plain string, as SQLAlchemy does."""
    if isinstance(statement, str):
        shown = statement if len(statement) <= LONGEST_SHOWN else f"{statement[:LONGEST_SHOWN]}..."
        raise ArgumentError(
            f"Textual SQL expression {shown!r} should be explicitly declared as text({shown!r})"
        )
