"""Who uses a database in a test: each checkout with the line that took it, each statement."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from ..callsites import calling_lines
from ..context import current
from ..errors import PoolTimeout
from ..pool import FairPool

COMMITTED = "mark the test with @pytest.mark.committed: a database of its own, with a whole pool"

ONE_CONNECTION = """\
{name}: the sandbox has one connection, and {why}:
  {holder}
  1. end the first session before the second begins (a request needs one too);
  2. or {committed}."""

OTHER_LOOP = """\
{name}: a pool belongs to one event loop, and this is not the one that the fixtures run in.
  anyio's plugin: leave `anyio_backend` to dbkit.testing, and let tests be `async def`;
  pytest-asyncio: set asyncio_default_fixture_loop_scope and asyncio_default_test_loop_scope
    to "session";
  TestClient: use the fixture `sync_client`, which runs in the fixtures' loop."""

_by_fixture: ContextVar[bool] = ContextVar("by_fixture", default=False)


@dataclass(eq=False)
class Checkout:
    """A connection taken: by which task, on which line."""

    task: asyncio.Task[Any] | None
    lines: tuple[str, ...]
    by_fixture: bool

    def __str__(self) -> str:
        return " <- ".join(self.lines) or "(no line of yours)"


@dataclass
class Record:
    """What happened while somebody counted."""

    statements: list[str] = field(default_factory=list[str])
    checkouts: list[str] = field(default_factory=list[str])


class Watch:
    """Watches the engines that stand in for one database during the tests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[ConnectionPoolEntry, Checkout] = {}
        """What is checked out; also what the garbage collector found, which is not returned."""
        self.users: WeakSet[asyncio.Task[Any]] = WeakSet()
        """Tasks that asked for a connection."""
        self.records: list[Record] = []
        self._loop = asyncio.get_running_loop()

    def attach(self, engine: AsyncEngine, *, one_connection: bool = False) -> None:
        """Watch an engine made with `WatchedPool`."""
        pool = engine.pool
        assert isinstance(pool, WatchedPool)  # noqa: S101 -- see above
        pool.watch, pool.one_connection = self, one_connection
        event.listen(engine.sync_engine, "checkout", self._checked_out)
        event.listen(engine.sync_engine, "checkin", self._checked_in)
        event.listen(engine.sync_engine, "before_cursor_execute", self._executes)

    def asks(self, *, one_connection: bool) -> None:
        """Note the task that asks for a connection; refuse what could only wait for itself."""
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidRequestError(OTHER_LOOP.format(name=self.name))
        if task := asyncio.current_task():
            self.users.add(task)
        # Behind `@app.middleware("http")` a route has a task of its own, and its request's waits.
        request = current()
        waiting = {task, request and request.task}
        for checkout in self.held.values():
            if one_connection and checkout.task in waiting and not checkout.by_fixture:
                why = "this task holds it already"
                if checkout.task is not task:
                    why = "the task that waits for this request holds it"
                raise self._refusal(why, checkout)

    def waited_in_vain(self, seconds: float) -> InvalidRequestError | None:
        """Explain a timeout in the sandbox, unless a fixture wanted it."""
        for checkout in self.held.values():
            if not checkout.by_fixture:
                why = f"another task has held it for {seconds:g} s"
                return self._refusal(why, checkout)
        return None

    def _refusal(self, why: str, holder: object) -> InvalidRequestError:
        return InvalidRequestError(
            ONE_CONNECTION.format(name=self.name, why=why, holder=holder, committed=COMMITTED)
        )

    @contextmanager
    def by_fixture(self) -> Generator[None]:
        """Count what is taken until exit as a fixture's, which no test has to return."""
        token = _by_fixture.set(True)
        try:
            yield
        finally:
            _by_fixture.reset(token)

    @contextmanager
    def record(self) -> Generator[Record]:
        """Record until exit."""
        record = Record()
        self.records.append(record)
        try:
            yield record
        finally:
            self.records.remove(record)

    def _checked_out(self, _connection: Any, entry: ConnectionPoolEntry, _proxy: Any) -> None:
        by_fixture = _by_fixture.get()
        lines = () if by_fixture else calling_lines()
        checkout = Checkout(asyncio.current_task(), lines, by_fixture)
        self.held[entry] = checkout
        for record in self.records:
            if not checkout.by_fixture:
                record.checkouts.append(str(checkout))

    def _checked_in(self, _connection: Any, entry: ConnectionPoolEntry) -> None:
        self.held.pop(entry, None)

    def _executes(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        for record in self.records:
            record.statements.append(" ".join(statement.split()))


class WatchedPool(FairPool):
    """The service's pool, which also records which task checks out each connection."""

    watch: Watch | None = None
    one_connection = False

    def _do_get(self) -> ConnectionPoolEntry:
        if self.watch is None:
            return super()._do_get()
        self.watch.asks(one_connection=self.one_connection)
        try:
            return super()._do_get()
        except PoolTimeout as error:
            if self.one_connection and (why := self.watch.waited_in_vain(self.timeout())):
                raise why from error
            raise

    def recreate(self) -> FairPool:
        """Return a new pool that is watched as this one is."""
        pool = super().recreate()
        assert isinstance(pool, WatchedPool)  # noqa: S101 -- it is of our type
        pool.watch, pool.one_connection = self.watch, self.one_connection
        return pool
