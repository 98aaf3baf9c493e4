"""The sandbox: every transaction is a savepoint in one that is never committed.

The service's code, SQLAlchemy's engine, sessions and pool run unchanged. Only the dialect is
told otherwise: BEGIN takes a savepoint, COMMIT releases it, ROLLBACK goes back to it.
"""

from contextlib import closing
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool
from sqlalchemy.util import greenlet_spawn

from ..callsites import calling_lines
from ..engines.base import load
from ..engines.session_state import Left
from ..engines.sqlstates import IN_ABORTED, sqlstate
from ..engines.transactions import CONTROL, aborted, refuse_control
from ..pool import FairPool
from .watch import COMMITTED

REFUSED = """\
{name}: {statement} would end the sandbox, and what the test wrote would stay:
  {line}
  1. leave it to the session: `async with {name}.session()`, `session.begin_nested()`;
  2. or {committed}."""

LOST = """\
{name}: the sandbox was lost (a statement was cancelled, its connection was closed, or the server
rolled everything back), and what the test had committed went with it:
  {line}
  {committed}."""

LEFT = "{name}: the sandbox was left by a COMMIT or ROLLBACK that went to the driver itself"


class Sandbox:
    """Holds the transactions of one engine, whose pool has one connection."""

    def __init__(self, name: str, engine: AsyncEngine) -> None:
        self.name = name
        self._begun: DBAPIConnection | None = None
        self._committed = False
        self._in_savepoint = False
        self._autocommit: DBAPIConnection | None = None
        self._dialect: Any = engine.sync_engine.dialect
        self._roll_back = self._dialect.do_rollback
        if isinstance(engine.pool, FairPool):
            engine.pool.in_sandbox = True
        self._engine = load(self._dialect.name)
        # The dialect is this engine's own.
        self._dialect.do_begin = self._do_begin
        self._dialect.do_commit = self._do_commit
        self._dialect.do_rollback = self._do_rollback
        # Not listeners: whoever listens, as a fixture that slows statements down, comes first.
        self._dialect.do_execute = self._execute
        self._dialect.do_executemany = self._execute_many
        self._dialect.do_execute_no_params = self._execute_no_params
        self._dialect.set_isolation_level = self._set_isolation_level
        self._dialect.reset_isolation_level = self._reset_isolation_level
        for moment, listener in (
            ("begin", self._engine.begin),
            ("do_execute", refuse_control),  # The sandbox does, for its own reason.
            ("do_execute", self._engine.refuse_implicit_commit),
        ):
            if event.contains(engine.sync_engine, moment, listener):
                event.remove(engine.sync_engine, moment, listener)

    async def end(self, engine: AsyncEngine) -> str | None:
        """Roll back; return what went wrong."""
        if self._begun is None:
            return None
        # Past the engine: half the time of `engine.connect()` and `run_sync()`.
        return await greenlet_spawn(self._end, engine.sync_engine.pool)

    @property
    def is_altered(self) -> bool:
        """Whether a test has left on the connection what no reset undoes."""
        driver: Any = self._begun and self._dialect.get_driver_connection(self._begun)
        return driver is not None and driver.left != Left.NOTHING

    def forget(self) -> None:
        """Begin anew, with a connection that has nothing of the one before."""
        self._begun = None
        self._committed = self._in_savepoint = False

    def _end(self, pool: Pool) -> str | None:
        with closing(pool.connect()) as proxy:
            connection: Any = proxy.dbapi_connection
            lost = connection is not self._begun
            self.forget()
            if lost:
                return None
            try:
                run(connection, "ROLLBACK TO SAVEPOINT sandbox")
            except Exception:  # noqa: BLE001 -- drivers raise what they like
                return LEFT.format(name=self.name)
            self._roll_back(connection)
            return None

    # The dialect

    def _do_begin(self, proxy: Any) -> None:
        connection = proxy.dbapi_connection
        if connection is not self._begun:
            if self._committed:
                line = " <- ".join(calling_lines())
                raise InvalidRequestError(
                    LOST.format(name=self.name, line=line, committed=COMMITTED)
                )
            self.forget()
            if self._engine.begin_sandbox:
                run(connection, self._engine.begin_sandbox)
            run(connection, "SAVEPOINT sandbox")
            self._begun = connection
        driver = proxy.driver_connection
        driver.failure, driver.begun = None, self._autocommit is not connection
        if driver.begun:
            run(connection, "SAVEPOINT in_sandbox")
            self._in_savepoint = True

    def _do_commit(self, proxy: Any) -> None:
        if self._in_savepoint and proxy.dbapi_connection is self._begun:
            driver = proxy.driver_connection
            try:
                if not driver.is_undone:
                    run(self._begun, "RELEASE SAVEPOINT in_sandbox")
            except Exception as error:
                if driver.failure is None and sqlstate(error) != IN_ABORTED:
                    raise
                self._refuse_commit(proxy)
            if driver.is_undone:
                self._refuse_commit(proxy)
            self._in_savepoint = False
        self._committed = True

    def _refuse_commit(self, proxy: Any) -> None:
        """Raise what a COMMIT does that comes too late; there is no transaction after it."""
        undone = aborted(self.name, proxy.driver_connection.failure)
        self._do_rollback(proxy)
        raise undone from undone.__cause__

    def _do_rollback(self, proxy: Any) -> None:
        if self._begun is None or proxy.dbapi_connection is not self._begun:
            self._roll_back(proxy)
        elif proxy.driver_connection.is_undone:  # The sandbox with it.
            self._roll_back(proxy)
            self._begun, self._in_savepoint = None, False
        elif self._in_savepoint:
            run(self._begun, "ROLLBACK TO SAVEPOINT in_sandbox", "RELEASE SAVEPOINT in_sandbox")
            self._in_savepoint = False

    def _set_isolation_level(self, connection: DBAPIConnection, level: str) -> None:
        # A savepoint has no isolation level of its own.
        self._autocommit = connection if level == "AUTOCOMMIT" else None

    def _reset_isolation_level(self, _connection: DBAPIConnection) -> None:
        self._autocommit = None

    # Statements

    def _execute(self, cursor: Any, statement: str, parameters: Any, _: Any = None) -> None:
        self._run(statement, cursor.execute, parameters)

    def _execute_many(self, cursor: Any, statement: str, parameters: Any, _: Any = None) -> None:
        self._run(statement, cursor.executemany, parameters)

    def _execute_no_params(self, cursor: Any, statement: str, _: Any = None) -> None:
        self._run(statement, cursor.execute)

    def _run(self, statement: str, execute: Any, *parameters: object) -> None:
        self._engine.note(execute.__self__, statement)
        found = CONTROL.match(statement)
        if found is None and self._engine.commits:
            found = self._engine.commits.match(statement)
        if found:
            word = found[1].upper()
            line = " <- ".join(calling_lines())
            raise InvalidRequestError(
                REFUSED.format(name=self.name, statement=word, line=line, committed=COMMITTED)
            )
        if self._begun is None or self._autocommit is not self._begun:
            execute(statement, *parameters)
            return
        # What fails in AUTOCOMMIT undoes itself alone.
        run(self._begun, "SAVEPOINT in_sandbox")
        try:
            execute(statement, *parameters)
        except BaseException:
            run(self._begun, "ROLLBACK TO SAVEPOINT in_sandbox")
            raise
        self._committed = True
        run(self._begun, "RELEASE SAVEPOINT in_sandbox")


def run(connection: Any, *statements: str) -> None:
    """Run statements past the engine, so that nobody counts them; in a greenlet."""
    cursor = connection.cursor()
    try:
        for statement in statements:
            cursor.execute(statement)
    finally:
        cursor.close()
