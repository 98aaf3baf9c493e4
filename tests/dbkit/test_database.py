"""Databases: opened and closed with the service, and a transaction for each session."""

import asyncio
import gc
import logging
import socket
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from dbkit import Database, Databases, NotConfigured, NotOpen, Unreachable, install, session_from
from dbkit.engines.base import load
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession


def declare(url: URL | str, name: str = "orders", **declared: Any) -> Database:
    if isinstance(url, URL):
        url = url.render_as_string(hide_password=False)
    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    return Database(name, dialect, url=url, **declared)


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return declare(f"sqlite:///{tmp_path / 'orders.sqlite3'}")
    return declare(request.getfixturevalue("database_url"))


async def execute(database: Database, statement: str) -> None:
    async with database.session() as session:
        await session.execute(text(statement))


async def count(database: Database, table: str = "things") -> int:
    async with database.session() as session:
        return int(await session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)  # noqa: S608


async def test_the_timeouts_and_the_name_reach_the_server(database_url: URL) -> None:
    database = declare(
        database_url, statement_timeout=1.5, lock_timeout=2, idle_in_transaction_timeout=70
    )
    async with database.open(), database.engine.connect() as connection:
        shown = {
            name: await connection.scalar(text(f"SHOW {name}"))
            for name in (
                "statement_timeout",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
                "application_name",
            )
        }

    assert shown == {
        "statement_timeout": "1500ms",
        "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "70s",
        "application_name": "dbkit:orders",
    }


async def test_sqlite_has_foreign_keys_and_a_journal_that_lets_readers_read(tmp_path: Path) -> None:
    database = declare(f"sqlite:///{tmp_path / 'orders.sqlite3'}", lock_timeout=2)
    async with database.open(), database.engine.connect() as connection:
        pragmas = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("foreign_keys", "journal_mode", "busy_timeout")
        }

    assert pragmas == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 2000}


async def test_a_session_commits_on_success_and_rolls_back_on_an_error(database: Database) -> None:
    async with database.open():
        await execute(database, "CREATE TABLE things (id integer PRIMARY KEY)")
        await execute(database, "INSERT INTO things VALUES (1)")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the block is what ends
            async with database.session() as session:
                await session.execute(text("INSERT INTO things VALUES (2)"))
                raise ZeroDivisionError

        assert await count(database) == 1
        assert database.pool.checkedout() == 0


async def test_a_transaction_that_reads_first_waits_for_a_writer(tmp_path: Path) -> None:
    database = declare(f"sqlite:///{tmp_path / 'orders.sqlite3'}")

    async def increment() -> None:
        async with database.session() as session:
            value = await session.scalar(text("SELECT number FROM things"))
            await session.execute(text("UPDATE things SET number = :n"), {"n": int(value or 0) + 1})

    async with database.open():
        await execute(database, "CREATE TABLE things (number integer)")
        await execute(database, "INSERT INTO things VALUES (0)")
        await asyncio.gather(*(increment() for _ in range(8)))

        async with database.session() as session:
            assert await session.scalar(text("SELECT number FROM things")) == 8


async def test_a_cancelled_transaction_leaves_no_lock(tmp_path: Path) -> None:
    database = declare(f"sqlite:///{tmp_path / 'orders.sqlite3'}", pool_size=1, lock_timeout=0.5)
    steps = 0

    async with database.open():
        gc.disable()  # Else the lock would go with it.
        try:
            for steps in range(100):
                task = asyncio.create_task(execute(database, "SELECT 1"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if not task.cancel():
                    break
                await asyncio.wait([task])
                await execute(database, "SELECT 1")
        finally:
            gc.enable()
    assert 10 < steps < 100


async def test_a_session_that_outlives_its_block_raises_and_holds_nothing(
    database: Database,
) -> None:
    async with database.open():
        async with database.session() as session:
            await session.execute(text("SELECT 1"))

        with pytest.raises(InvalidRequestError, match="closed"):
            await session.execute(text("SELECT 1"))
        assert database.pool.checkedout() == 0


@pytest.mark.parametrize("attribute", ["engine", "settings", "probe", "pool"])
def test_outside_the_lifespan_a_database_says_what_to_do(attribute: str) -> None:
    database = declare("sqlite:///orders.sqlite3")

    with pytest.raises(NotOpen) as caught:
        getattr(database, attribute)

    assert str(caught.value) == "orders: not open; enter `async with databases.open():` first"


async def test_outside_the_lifespan_there_is_no_session(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(NotOpen):
            async with database.session():
                pass
        async with database.open():
            await execute(database, "SELECT 1")


async def test_a_database_that_is_open_cannot_be_opened_again(database: Database) -> None:
    databases = Databases(database)
    async with databases.open():
        with pytest.raises(RuntimeError) as caught:
            async with databases.open():
                pass

        assert str(caught.value) == "orders: open already; a service opens its databases once"
        await execute(database, "SELECT 1")


def test_a_closed_database_opens_in_another_event_loop(database: Database) -> None:
    async def use() -> None:
        async with database.open():
            await execute(database, "SELECT 1")

    asyncio.run(use())
    asyncio.run(use())


async def test_what_opens_half_way_leaves_nothing_open(database_url: URL) -> None:
    first = declare(database_url)
    second = declare(
        "postgresql://u:s3cret@127.0.0.1:1/n", "second", required_at_start=True, connect_timeout=0.2
    )

    with pytest.raises(Unreachable, match="second: cannot connect"):
        async with Databases(first, second).open():
            pass

    for database in (first, second):
        with pytest.raises(NotOpen):
            _ = database.engine
    await no_connections(database_url)


def test_what_a_service_was_made_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("engines.mysql", "database.replicas"):
        monkeypatch.setitem(sys.modules, f"dbkit.{module}", None)
    load.cache_clear()
    primary = Database("primary", "postgresql")

    with pytest.raises(NotConfigured, match="audit: this service was made without mysql: add"):
        Databases(primary, Database("audit", "mysql")).read_settings()
    with pytest.raises(LookupError, match="this service was made without replicas: add"):
        Database("replica", "postgresql", replica_of=primary)
    load.cache_clear()


async def test_what_is_misconfigured_opens_nothing(database_url: URL) -> None:
    first = declare(database_url)
    second = declare("mysql://u:s3cret@h/n", "second")

    with pytest.raises(NotConfigured, match="SECOND_DATABASE_URL: is for mysql"):
        async with Databases(first, second).open():
            pass

    with pytest.raises(NotOpen):
        _ = first.engine


async def test_closing_leaves_no_connection(database_url: URL) -> None:
    database = declare(database_url, pool_size=3, min_ready=3)
    async with Databases(database).open():
        await asyncio.gather(*(execute(database, "SELECT 1") for _ in range(3)))

    await no_connections(database_url)


async def no_connections(url: URL) -> None:
    """Wait until the server has no connection to the database but our own."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND application_name LIKE 'dbkit:%'"
        " AND application_name <> 'dbkit:watcher'"
    )
    watcher = declare(url, "watcher")
    async with asyncio.timeout(30), watcher.open(), watcher.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while await connection.scalar(query):  # noqa: ASYNC110 -- the server has no event
            await asyncio.sleep(0.01)


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = declare(
            f"postgresql://u:s3cret@127.0.0.1:{port}/n", connect_timeout=0.2, min_ready=0
        )
        database_with_probe_only = Databases(database)
        async with asyncio.timeout(30), database_with_probe_only.open():
            with pytest.raises((Unreachable, PoolTimeout)) as caught:
                await execute(database, "SELECT 1")

    assert str(caught.value).startswith("orders: ")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


async def test_a_request_that_touches_two_databases(database_url: URL, tmp_path: Path) -> None:
    primary = declare(database_url)
    audit = declare(f"sqlite:///{tmp_path / 'audit.sqlite3'}", "audit")
    databases = Databases(primary, audit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with databases.open():
            for database in databases.values():
                await execute(database, "CREATE TABLE things (id integer PRIMARY KEY)")
            yield

    app = FastAPI(lifespan=lifespan)
    install(app, databases)

    @app.post("/both/{number}")
    async def both(  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        number: int,
        one: Annotated[AsyncSession, session_from(primary)],
        other: Annotated[AsyncSession, session_from(audit)],
    ) -> None:
        for session in (one, other):
            await session.execute(text(f"INSERT INTO things VALUES ({number})"))  # noqa: S608
        if number == 2:
            raise ZeroDivisionError

    transport = ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        assert (await client.post("/both/1")).status_code == 200
        assert (await client.post("/both/2")).status_code == 500
        assert (await client.post("/both/1")).status_code == 409
        assert [await count(each) for each in databases.values()] == [1, 1]
        assert [each.pool.checkedout() for each in databases.values()] == [0, 0]


ODD_PASSWORDS = ["s3cret", "s3@cret", "s3:c/r?e#t%", "s3 créᵗ", "s3&cret=1", "'s3\"cret\\"]


@pytest.mark.parametrize("password", ODD_PASSWORDS)
async def test_no_password_in_what_a_database_says(
    database_url: URL, password: str, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    caplog.set_level(logging.DEBUG)
    wrong = database_url.set(password=password)
    in_query = URL.create("postgresql", "u", None, "127.0.0.1", 1, "n", {"password": password})
    urls = (wrong, wrong.set(port=1), wrong.set(database="missing"), in_query)
    for url in urls:
        database = declare(url, echo=True, min_ready=0, connect_timeout=5)
        async with database.open():
            said += [repr(database), str(database), repr(database.settings), repr(database.engine)]
            said += [repr(vars(database.engine.sync_engine)["url"]), database.pool.status()]
            with pytest.raises((Unreachable, PoolTimeout)) as caught:
                await execute(database, "SELECT 1")
            said += traceback.format_exception(caught.value)

    text_of_all = "".join(said) + caplog.text
    assert password not in text_of_all
    assert quote(password, safe="") not in text_of_all


async def test_an_odd_password_connects(database_url: URL) -> None:
    password = "s3@c:r/e?t#% é"  # noqa: S105 -- of this test
    admin = declare(database_url, "admin")
    async with admin.open():
        async with admin.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute(f"CREATE ROLE odd LOGIN PASSWORD '{password}'")
        try:
            database = declare(database_url.set(username="odd", password=password))
            async with database.open():
                await execute(database, "SELECT 1")
        finally:
            await execute(admin, "DROP ROLE odd")


async def test_parameters_are_people_s_data(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with database.open():
        with pytest.raises(DBAPIError) as caught:
            async with database.session() as session:
                await session.execute(text("SELECT * FROM nowhere WHERE id = :id"), {"id": 987654})

    assert "987654" not in f"{caught.value} {caught.value.orig} {caplog.text}"


async def test_an_idle_transaction_is_ended_by_the_server(database_url: URL) -> None:
    database = declare(database_url, pool_size=1)
    async with database.open():
        with pytest.raises(DBAPIError, match=r"idle-in-transaction|closed"):  # noqa: PT012
            async with database.session() as session, asyncio.timeout(30):
                await session.execute(
                    text("SET LOCAL idle_in_transaction_session_timeout = '10ms'")
                )
                connection = await session.connection()
                driver: Any = (await connection.get_raw_connection()).driver_connection
                while not driver.is_closed():  # noqa: ASYNC110 -- the driver has no event
                    await asyncio.sleep(0.01)
                await session.execute(text("SELECT 1"))

        await execute(database, "SELECT 1")
