"""Fixtures: the real application on real databases, each test on its own.

`tests/conftest.py` names this module in `pytest_plugins` and gives the `app` fixture. By
default a test runs in a sandbox: every transaction is a savepoint in one that is rolled back.
`@pytest.mark.committed` gives it databases of its own instead, with real commits and the whole
pool; `@pytest.mark.committed("analytics")` only that one.
"""

import asyncio
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from anyio.from_thread import BlockingPortal
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session, object_mapper

from ..clock import monotonic
from ..database.databases import Databases
from . import faults
from .folder import remove_unused, run_parent
from .home import Home, lead_to
from .homes import find_homes
from .isolation import Isolation, follow_primary
from .watch import Record

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

DatabaseDown = Callable[[str], AbstractAsyncContextManager[None]]
"""Has a database refuse connections until exit."""
SlowDatabase = Callable[[str, float], AbstractContextManager[None]]
"""Has each statement take so many seconds longer until exit."""

SYNCHRONOUS = {"sync_engine", "sync_session"}
"""Fixtures whose connections see nothing of a sandbox."""
MARKER = (
    "committed(*databases): real commits, in copies of these databases (of all) for this test alone"
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have anyio's plugin, if it is to run all that is async, run our fixtures for `def` tests."""
    if config.pluginmanager.hasplugin("anyio") and config.getini("anyio_mode") == "auto":
        for item in items:
            if isinstance(item, pytest.Function) and "running_app" in item.fixturenames:
                item.fixturenames.append("anyio_backend")


def pytest_unconfigure() -> None:
    """Remove what workers that were killed have left."""
    remove_unused(run_parent())


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every test and fixture in one event loop: pools belong to the loop they are used in."""
    return "asyncio"


@pytest.fixture(scope="session")
def database_homes(app: FastAPI, pytestconfig: pytest.Config) -> Generator[dict[str, Home]]:
    """Make a migrated database for each of the service's, and name them in the environment.

    `TEST_DATABASE_URL`, or `ANALYTICS_TEST_DATABASE_URL` for `analytics`, says beside which
    database; otherwise they are on an embedded PostgreSQL, or files.
    """
    databases: Databases = app.state.databases

    async def each(act: Callable[[Home], Coroutine[Any, Any, None]]) -> None:
        for home in homes.values():  # One after the other: Alembic's state is global.
            await act(home)

    with ExitStack() as stack:
        pytestconfig.add_cleanup(stack.close)  # Ctrl-C may end fixtures before their end.
        has_cache = pytestconfig.pluginmanager.hasplugin("cacheprovider")
        cache = pytestconfig.cache.mkdir("dbkit") if has_cache else None
        homes = stack.enter_context(find_homes(databases, cache))
        # Not `Home.clear`: that would be the base's own, whatever the home is.
        stack.callback(lambda: asyncio.run(each(lambda home: home.clear())))
        asyncio.run(each(lambda home: home.prepare()))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for home in homes.values():
            for database in (home.database, *home.database.replicas):
                lead_to(patch, database, home.own)
        yield homes


@pytest.fixture(scope="session")
async def running_app(app: FastAPI, database_homes: dict[str, Home]) -> AsyncGenerator[FastAPI]:
    """Run the application's lifespan, once for all tests of a worker."""
    databases: Databases = app.state.databases
    # Else a test that freezes time stops all timeouts, and ends those that began before.
    vars(asyncio.get_running_loop())["time"] = monotonic
    async with app.router.lifespan_context(app):
        engines = [database.engine.sync_engine for database in databases.values()]
        for engine in engines:
            event.listen(engine, "checkout", outside_a_test)
        yield app
        for engine in engines:
            event.remove(engine, "checkout", outside_a_test)


@pytest.fixture(scope="session")
async def isolations(
    running_app: FastAPI, database_homes: dict[str, Home]
) -> AsyncGenerator[dict[str, Isolation]]:
    """Return what isolates tests, by database."""
    databases: Databases = running_app.state.databases
    isolations = {name: Isolation(databases[name], home) for name, home in database_homes.items()}
    async with AsyncExitStack() as stack:
        for home in database_homes.values():
            await stack.enter_async_context(home.stay_connected())
        yield isolations
        for isolation in isolations.values():
            await isolation.close()


@pytest.fixture
async def databases(
    request: pytest.FixtureRequest, running_app: FastAPI, isolations: dict[str, Isolation]
) -> AsyncGenerator[Databases]:
    """Give the databases to this test alone; fail it if it leaves anything behind."""
    marker = request.node.get_closest_marker("committed")
    committed = set(marker.args or isolations) if marker else set[str]()
    if SYNCHRONOUS & set(request.fixturenames):
        committed |= set(isolations)
    for name in sorted(committed):
        isolation_of(isolations, name)
    overrides = dict(running_app.dependency_overrides)
    found: list[list[str]] = []
    try:
        async with AsyncExitStack() as stack:
            for name, each in isolations.items():
                entered = each.copy() if name in committed else each.sandbox()
                found.append(await stack.enter_async_context(entered))
                for replica in each.database.replicas:
                    stack.enter_context(follow_primary(replica))
            yield running_app.state.databases
    finally:
        running_app.dependency_overrides = overrides
    if said := [fault for faults_ in found for fault in faults_]:
        pytest.fail("\n".join(said), pytrace=False)


def isolation_of(isolations: dict[str, Isolation], name: str) -> Isolation:
    """Find what isolates a database; fail the test if that is no database, or a replica."""
    for each in isolations.values():
        if name in [replica.name for replica in each.database.replicas]:
            primary = each.database.name
            said = f"in tests, {name} reads by the connections of {primary}: name {primary} instead"
            pytest.fail(said, pytrace=False)
    must_be_among(isolations, name)
    return isolations[name]


def must_be_among(names: Iterable[str], name: str) -> None:
    """Fail the test if there is no database of that name."""
    if name not in names:
        pytest.fail(f"no database {name}; there is {', '.join(names)}", pytrace=False)


class Isolated(Protocol):
    """Gives a task, and those that it begins, databases of their own until exit."""

    def __call__(self) -> AbstractAsyncContextManager[None]: ...  # noqa: D102 -- its class says it


@pytest.fixture
def isolated(databases: Databases, isolations: dict[str, Isolation]) -> Isolated:
    """Isolate tasks of one test from each other: copies of all databases, with real commits.

    As in `async with isolated(): ...`, in as many tasks at once as you like.
    """

    @asynccontextmanager
    async def isolate() -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            found: list[list[str]] = []
            for each in isolations.values():
                found.append(await stack.enter_async_context(each.copy_here()))
                for replica in each.database.replicas:
                    stack.enter_context(follow_primary(replica, here=True))
            yield
        if said := [fault for faults_ in found for fault in faults_]:
            pytest.fail("\n".join(said), pytrace=False)

    return isolate


@pytest.fixture
async def client(running_app: FastAPI, databases: Databases) -> AsyncGenerator[AsyncClient]:
    """Call the application over HTTP, without a network."""
    transport = ASGITransport(running_app)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture(scope="session")
async def event_loop_of_fixtures() -> asyncio.AbstractEventLoop:
    """Return the one event loop of fixtures and tests."""
    return asyncio.get_running_loop()


@pytest.fixture
def sync_client(
    running_app: FastAPI,
    databases: Databases,
    event_loop_of_fixtures: asyncio.AbstractEventLoop,
) -> Generator["TestClient"]:
    """Call the application by FastAPI's `TestClient`, for tests that are not `async def`.

    A `TestClient` of its own would run the application in another event loop than the pools';
    this one has the fixtures' loop run in a thread for as long as the test lasts.
    """
    with warnings.catch_warnings(action="ignore"):  # It would rather have another httpx.
        from fastapi.testclient import TestClient  # noqa: PLC0415 -- who does not use it has none

    loop = event_loop_of_fixtures
    if loop.is_running():
        pytest.fail("sync_client is for tests that are `def`; use client", pytrace=False)
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def open_portal() -> BlockingPortal:
        return await BlockingPortal().__aenter__()

    portal = asyncio.run_coroutine_threadsafe(open_portal(), loop).result()
    client = TestClient(running_app)
    client.portal = portal
    try:
        yield client
    finally:
        portal.call(portal.stop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture
async def shared_session(
    running_app: FastAPI, databases: Databases
) -> AsyncGenerator[AsyncSession]:
    """Return a session of the first database, which the routes of this test are given, too.

    Each request is a savepoint in it. A reader has a connection of its own, and reads what is
    committed: `await shared_session.commit()`.
    """
    database = next(iter(databases.values()))
    async with database.sessions() as session:

        async def share() -> AsyncGenerator[AsyncSession]:
            async with session.begin_nested():
                yield session

        running_app.dependency_overrides[database.request_session] = share
        yield session


@pytest.fixture
def sync_engine(databases: Databases) -> Engine:
    """Return the synchronous engine of the first database; such a test has copies of its own."""
    return next(iter(databases.values())).sync.engine


@pytest.fixture
def sync_session(databases: Databases) -> Generator[Session]:
    """Begin a synchronous session in the first database; such a test has copies of its own.

    What others are to see is committed by `sync_session.commit()`.
    """
    with next(iter(databases.values())).sync.sessions() as session:
        yield session
        session.commit()


class AddRows(Protocol):
    """Adds rows and commits; each finds its database by its base."""

    async def __call__(self, *rows: object) -> None: ...  # noqa: D102 -- its class says it


@pytest.fixture
def add_rows(databases: Databases) -> AddRows:
    """Add rows to the databases that they belong to, and commit.

    As in `await add_rows(Item(name="lamp", quantity=3))`.
    """

    async def add(*rows: object) -> None:
        for database in databases.values():
            if theirs := [row for row in rows if database.base and belongs(row, database.base)]:
                async with database.session() as session:
                    session.add_all(theirs)

    return add


def belongs(row: object, base: type[DeclarativeBase]) -> bool:
    """Whether a row is of a table of this base, or of one that SQLModel made in its metadata."""
    table: Any = object_mapper(row).local_table
    return table.metadata is base.metadata


class Counting(Protocol):
    """Counts until exit, in one database or in all; fails unless there were `count`."""

    def __call__(self, count: int, database: str | None = None) -> AbstractContextManager[None]: ...  # noqa: D102 -- its class says it


@pytest.fixture
def assert_statements(isolations: dict[str, Isolation]) -> Counting:
    """Count statements, and show them when there were more or fewer.

    As in `with assert_statements(2): ...`, or `assert_statements(2, "primary")`.
    """
    return counter(isolations, "statements", lambda record: record.statements)


@pytest.fixture
def assert_checkouts(isolations: dict[str, Isolation]) -> Counting:
    """Count connections taken, as `assert_statements` does; shows the lines that took them."""
    return counter(isolations, "checkouts", lambda record: record.checkouts)


def counter(
    isolations: dict[str, Isolation], what: str, of: Callable[[Record], list[str]]
) -> Counting:
    """Make the function that counts `what`."""

    @contextmanager
    def count(count: int, database: str | None = None) -> Generator[None]:
        with ExitStack() as stack:
            records = {
                name: stack.enter_context(isolation_of(isolations, name).watch.record())
                for name in ([database] if database else isolations)
            }
            yield
        found = [f"\n  {name}: {each}" for name, record in records.items() for each in of(record)]
        if len(found) != count:
            pytest.fail(f"{len(found)} {what}, not {count}:{''.join(found)}", pytrace=False)

    return count


class PoolExhausted(Protocol):
    """Has the pool of a database exhausted until exit; callers wait `pool_timeout` seconds."""

    def __call__(  # noqa: D102 -- its class says it
        self, database: str, pool_timeout: float = 0.1
    ) -> AbstractAsyncContextManager[None]: ...


@pytest.fixture
def pool_exhausted(databases: Databases, isolations: dict[str, Isolation]) -> PoolExhausted:
    """Hold all connections of a pool.

    As in `async with pool_exhausted("primary"): ...`.
    """

    def exhaust(database: str, pool_timeout: float = 0.1) -> AbstractAsyncContextManager[None]:
        if database in databases and databases[database].replica_of:
            return faults.exhausted_replica(databases[database], pool_timeout)
        isolation = isolation_of(isolations, database)
        return faults.exhausted(isolation.database, isolation.watch, pool_timeout)

    return exhaust


@pytest.fixture
def database_down(databases: Databases) -> DatabaseDown:
    """Have a database refuse connections.

    As in `async with database_down("primary"): ...`.
    """

    def down(database: str) -> AbstractAsyncContextManager[None]:
        must_be_among(databases, database)
        return faults.down(databases[database])

    return down


@pytest.fixture
def slow_database(databases: Databases, isolations: dict[str, Isolation]) -> SlowDatabase:
    """Have each statement take some seconds longer.

    As in `with slow_database("primary", 0.5): ...`.
    """

    def slow(database: str, seconds: float) -> AbstractContextManager[None]:
        isolation_of(isolations, database)  # Of a replica, the primary's statements would be slow.
        return faults.slow(databases[database], seconds)

    return slow


def outside_a_test(*_: object) -> None:
    """Refuse a connection that no test would return."""
    raise InvalidRequestError(
        "a database was used outside a test, or by a test without isolation: have it ask for the"
        " fixture `databases` or `client`"
    )
