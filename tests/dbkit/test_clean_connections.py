"""A connection is handed on as the pool made it, or not at all: by what the next caller finds."""

# ruff: noqa: SLF001 - what rests in the pool is asked of it
# pyright: reportPrivateUsage=false

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from dbkit import Database
from dbkit.commands.embedded import EmbeddedPostgres
from mariadb import MariaDB
from pool_proxy import Proxy
from pooler import pgbouncer
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from waiting import until

pytestmark = pytest.mark.anyio

Act = Callable[[Database, str], Awaitable[object]]


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@asynccontextmanager
async def opened(
    url: URL | str, dialect: Any = "postgresql", **settings: Any
) -> AsyncGenerator[Database]:
    """Open a database of one connection, which is not looked at without a reason."""
    url = url if isinstance(url, str) else shown(url)
    declared: dict[str, Any] = {
        "pool_size": 1,
        "queue_target": 0,
        "keepalive": 0,
        "ping_after": 3600,
    }
    async with Database("shop", dialect, url=url, **declared | settings).open() as database:
        yield database


async def by_session(database: Database, statement: str) -> None:
    async with database.session() as session:
        await session.execute(text(statement))


async def by_execute(database: Database, statement: str) -> None:
    await database.execute(text(statement))


async def by_reader(database: Database, statement: str) -> None:
    await database.reader.execute(text(statement))


async def by_engine(database: Database, statement: str) -> None:
    async with database.engine.connect() as connection:
        await connection.exec_driver_sql(statement)
        await connection.commit()


async def by_driver(database: Database, statement: str) -> None:
    async with database.driver_connection() as driver:
        await driver.execute(statement)


async def by_drivers_fetch(database: Database, statement: str) -> None:
    async with database.driver_connection() as driver:
        await driver.fetch(statement)


async def by_raw_connection(database: Database, statement: str) -> None:
    async with database.engine.connect() as connection:
        raw: Any = await connection.get_raw_connection()
        await raw.driver_connection.execute(statement)


async def by_cursor(database: Database, statement: str) -> None:
    async with database.driver_connection() as driver, driver.cursor() as cursor:
        await cursor.execute(statement)


async def by_raw_cursor(database: Database, statement: str) -> None:
    async with database.engine.connect() as connection:
        raw: Any = await connection.get_raw_connection()
        async with raw.driver_connection.cursor() as cursor:
            await cursor.execute(statement)


async def by_adapters_cursor(database: Database, statement: str) -> None:
    def work(connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()

    async with database.engine.begin() as connection:
        await connection.run_sync(work)


WAYS = [
    by_session,
    by_execute,
    by_reader,
    by_engine,
    by_driver,
    by_drivers_fetch,
    by_raw_connection,
]

FOUND = """
    SELECT 'setting ' || name || ' = ' || setting FROM pg_settings
        WHERE source = 'session' AND setting IS DISTINCT FROM reset_val
        AND name <> 'application_name'  -- PgBouncer sets it.
    UNION ALL SELECT 'setting my.tenant' WHERE current_setting('my.tenant', true) <> ''
    UNION ALL SELECT 'user ' || current_user WHERE current_user <> session_user
    UNION ALL SELECT 'session user ' || session_user WHERE session_user <> 'postgres'
    UNION ALL SELECT 'table ' || relname FROM pg_class
        WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema()
    UNION ALL SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'channel ' || pg_listening_channels()
    UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE is_holdable
    UNION ALL SELECT 'statement ' || name FROM pg_prepared_statements WHERE from_sql
"""


async def left(database: Database) -> list[str]:
    """Say what a caller finds that another has left, on a connection of PostgreSQL."""
    return list(await database.reader.scalars(text(FOUND)))


async def pid(database: Database) -> int:
    found: int = await database.reader.scalar(text("SELECT pg_backend_pid()"))
    return found


STATE = [
    "SET search_path = pg_catalog",
    "SELECT set_config('my.tenant', '5', false)",
    "SET ROLE reader",
    "SET SESSION AUTHORIZATION reader",
    "SET statement_timeout = 5",
    "SET default_transaction_read_only = on",
    "SET TIME ZONE 'Europe/Berlin'",
    "CREATE TEMP TABLE mine (a int)",
    "SELECT pg_advisory_lock(1)",
    "LISTEN news",
    "PREPARE mine AS SELECT 1",
]


@pytest.fixture(scope="module")
def reader_role(postgres: EmbeddedPostgres) -> None:
    async def make() -> None:
        async with opened(postgres.url("postgres")) as database:
            await database.execute(text("CREATE ROLE reader"))

    asyncio.run(make())


@pytest.mark.usefixtures("reader_role")
async def test_what_one_caller_sets_the_next_one_does_not_find(database_url: URL) -> None:
    async with opened(database_url) as database:
        for way in WAYS:
            for statement in STATE:
                if way is by_reader and statement.startswith("CREATE"):
                    continue  # A reader refuses it.
                await way(database, statement)

                assert await left(database) == [], (way, statement)

        timeout = await database.reader.scalar(text("SHOW statement_timeout"))
        assert timeout == "30s"  # As the pool set it when it connected, and not the server's.


async def test_a_cursor_with_hold_is_closed(database_url: URL) -> None:
    async with opened(database_url) as database:
        await by_session(database, "DECLARE c CURSOR WITH HOLD FOR SELECT 1")

        assert await left(database) == []


async def test_a_reset_is_one_round_trip_and_keeps_the_connection(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as database:
        sent = 0
        for _ in range(2):
            before = await pid(database)
            await by_execute(database, "SET search_path = pg_catalog")
            await until(lambda: len(database.pool._connections.idle) == 1)  # It has been reset.
            sent = proxy.round_trips
            await by_execute(database, "SET search_path = pg_catalog")
            assert await pid(database) == before

        # The statement, the reset, and the question: nothing is prepared anew.
        assert proxy.round_trips - sent == 3


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "SELECT set_config('my.tenant', '5', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "CREATE TEMP TABLE mine (a int) ON COMMIT DROP",
    ],
)
async def test_what_ends_with_its_transaction_costs_nothing(
    database_url: URL, statement: str
) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as database:
        for _ in range(2):
            await by_session(database, statement)
        before, pings = proxy.round_trips, database.pool.counters.pings
        await by_session(database, statement)

        assert proxy.round_trips - before == 3  # BEGIN, the statement, COMMIT
        assert database.pool.counters.pings == pings
        assert database.pool.counters.retired == 0


async def test_what_a_driver_did_that_leaves_nothing_costs_nothing(database_url: URL) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as database:
        async with database.driver_connection() as driver:
            await driver.fetchval("SELECT 1")
        before = proxy.round_trips
        async with database.driver_connection() as driver:
            await driver.fetchval("SELECT 1")

        assert proxy.round_trips - before == 1


def nothing(*_: object) -> None:
    """Take no notice."""


async def alter_by_codec(driver: Any) -> None:
    await driver.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=nothing)


async def alter_by_listener(driver: Any) -> None:
    await driver.add_listener("news", nothing)


async def alter_by_log_listener(driver: Any) -> None:
    driver.add_log_listener(nothing)


async def alter_by_discard(driver: Any) -> None:
    await driver.execute("DISCARD ALL")


@pytest.mark.parametrize(
    "alter", [alter_by_codec, alter_by_listener, alter_by_log_listener, alter_by_discard]
)
async def test_a_connection_that_was_altered_is_replaced(
    database_url: URL, alter: Callable[[Any], Awaitable[None]]
) -> None:
    async with opened(database_url) as database:
        before = await pid(database)
        async with database.driver_connection() as driver:
            await alter(driver)

        assert await pid(database) != before
        assert await database.reader.scalar(text("SELECT 1")) == 1
        assert await left(database) == []


async def test_what_listeners_set_when_it_connected_stays(database_url: URL) -> None:
    async with opened(database_url) as database:

        @event.listens_for(database.engine.sync_engine, "connect")
        def prepare(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute("SET my.tenant = 'nobody'")
            cursor.close()
            connection.commit()

        database.pool.retire()
        before = await pid(database)
        await by_session(database, "SET my.tenant = 'five'")
        tenant = await database.reader.scalar(text("SELECT current_setting('my.tenant')"))

        assert tenant == "nobody"
        assert await pid(database) != before  # A reset would have undone what the listener did.


async def test_isolation_level_and_read_only_of_one_caller_are_not_the_next_ones(
    database_url: URL,
) -> None:
    levels = text(
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    )
    async with opened(database_url) as database:
        async with database.engine.connect() as connection:
            await connection.execution_options(
                isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True
            )
            assert tuple((await connection.execute(levels)).one()) == ("serializable", "on")
        async with database.session() as session:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})

        async with database.session() as session:
            assert tuple((await session.execute(levels)).one()) == ("read committed", "off")
        assert database.pool.counters.retired == database.pool.counters.lost == 0


async def test_what_a_listener_sets_by_a_cursor_of_its_own_is_gone_each_time(
    database_url: URL,
) -> None:
    async with opened(database_url) as database:

        def set_tenant(connection: Any, *_: object) -> None:
            cursor = connection.connection.cursor()
            cursor.execute("SET my.tenant = 'five'")
            cursor.close()

        for _ in range(3):  # SQLAlchemy keeps the statement prepared from the first time on.
            event.listen(database.engine.sync_engine, "before_cursor_execute", set_tenant)
            async with database.session() as session:
                await session.execute(text("SELECT 1"))
            event.remove(database.engine.sync_engine, "before_cursor_execute", set_tenant)

            assert await left(database) == []


async def test_a_caller_cancelled_in_a_listeners_statement_leaves_no_transaction(
    database_url: URL,
) -> None:
    """As in https://github.com/sqlalchemy/sqlalchemy/issues/13381."""
    async with opened(database_url) as database:
        await database.execute(text("CREATE TABLE numbers (n int)"))

        @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
        def set_tenant(connection: Any, *_: object) -> None:
            cursor = connection.connection.cursor()
            cursor.execute("SELECT set_config('my.tenant', 'five', true)")
            cursor.close()

        for turn in range(30):

            async def write() -> None:
                async with database.session() as session:
                    await session.execute(text("INSERT INTO numbers VALUES (1)"))
                    await asyncio.sleep(60)

            task = asyncio.create_task(write())
            await until(lambda: database.pool.checkedout() == 1)
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

            async with database.session() as session:
                assert await session.scalar(text("SELECT count(*) FROM numbers")) == 0
            xid = text("SELECT pg_current_xact_id_if_assigned()")
            assert await database.reader.scalar(xid) is None


# In a transaction, busy, or cut short


async def test_a_transaction_begun_in_text_is_not_handed_on(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database_url) as database:
        await database.execute(text("CREATE TABLE numbers (n int)"))
        before = await pid(database)
        for _ in range(3):
            await by_driver(database, "BEGIN; INSERT INTO numbers VALUES (1)")

            assert await database.reader.scalar(text("SELECT count(*) FROM numbers")) == 0
        assert await pid(database) != before
        assert database.pool.counters.lost == 3

    said = [each.message for each in caplog.records if "returned a connection" in each.message]
    assert len(said) == 1  # Once for each route.
    assert "in a transaction" in said[0]
    assert "test_clean_connections.py" in said[0]


async def test_a_statement_that_goes_on_after_its_session_harms_nobody(database_url: URL) -> None:
    async with opened(database_url, pool_size=1) as database:
        await database.execute(text("CREATE TABLE numbers (n int)"))
        tasks: list[asyncio.Task[Any]] = []
        for number in range(40):
            with suppress(Exception):  # SQLAlchemy refuses some of these itself.
                async with database.session() as session:
                    work = session.execute(text("INSERT INTO numbers VALUES (1)"))
                    tasks.append(asyncio.create_task(work))
                    for _ in range(number % 8):
                        await asyncio.sleep(0)
            for _ in range(5):
                async with database.session() as session:
                    assert await session.scalar(text("SELECT 1")) == 1
        await asyncio.gather(*tasks, return_exceptions=True)

        assert await database.reader.scalar(text("SELECT pg_current_xact_id_if_assigned()")) is None


async def test_a_statement_of_the_driver_that_goes_on_is_cut_short(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database_url) as database:
        before = await pid(database)
        async with database.driver_connection() as driver:
            sleeps = asyncio.create_task(driver.execute("SELECT pg_sleep(60)"))
            await asyncio.sleep(0)  # It is sent.

        async with asyncio.timeout(30):
            assert await pid(database) != before
            with pytest.raises(Exception):  # noqa: B017, PT011 -- the driver's, of several kinds
                await sleeps
    assert "while a statement still ran on it" in caplog.text


async def copy_out(driver: Any, _folder: Path) -> None:
    async def sink(_: bytes) -> None:
        await asyncio.sleep(0)

    await driver.copy_from_query(
        "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)", output=sink
    )


async def copy_in(driver: Any, _folder: Path) -> None:
    async def source() -> AsyncGenerator[bytes]:
        while True:
            yield b"1\n" * 1000

    await driver.copy_to_table("numbers", source=source())


async def fetch(driver: Any, _folder: Path) -> None:
    await driver.fetch("SELECT n, repeat('x', 100) FROM generate_series(1, 10000000) n")


async def iterate(driver: Any, _folder: Path) -> None:
    async with driver.transaction():
        async for _ in driver.cursor("SELECT n FROM generate_series(1, 10000000) n", prefetch=5):
            pass


async def prepare(driver: Any, _folder: Path) -> None:
    for number in range(1_000_000):
        await driver.prepare(f"SELECT {number}")


@pytest.mark.parametrize("exchange", [copy_out, copy_in, fetch, iterate, prepare])
@pytest.mark.parametrize("how", ["cancelled", "timed out", "timed out and caught"])
async def test_what_was_cut_short_is_not_handed_on(
    database_url: URL, tmp_path: Path, exchange: Callable[[Any, Path], Awaitable[None]], how: str
) -> None:
    async with opened(database_url) as database:
        await database.execute(text("CREATE TABLE numbers (n bigint)"))
        for turn in range(10):

            async def use(turn: int = turn) -> None:
                async with database.driver_connection() as driver:
                    try:
                        limit = None if how == "cancelled" else 0.002 * turn
                        async with asyncio.timeout(limit):
                            await exchange(driver, tmp_path)
                    except TimeoutError:
                        if how != "timed out and caught":
                            raise

            task = asyncio.create_task(use())
            if how == "cancelled":
                await until(lambda: database.pool.checkedout() == 1)
                for _ in range(turn * turn):
                    await asyncio.sleep(0)
                task.cancel()
            with suppress(asyncio.CancelledError, TimeoutError):
                await task

            assert await left(database) == []
            assert await database.reader.scalar(text("SELECT 1 + 1")) == 2
        assert await database.reader.scalar(text("SELECT count(*) FROM numbers")) == 0


async def test_the_drivers_own_timeout_cuts_short_too(database_url: URL) -> None:
    async with opened(database_url) as database:
        before = await pid(database)
        async with database.driver_connection() as driver:
            with pytest.raises(TimeoutError):
                await driver.execute("SELECT pg_sleep(60)", timeout=0.01)

        assert await pid(database) != before


async def test_closing_twice_returns_once(database_url: URL) -> None:
    async with opened(database_url, pool_size=2) as database:
        connection = await database.engine.connect()
        raw = await connection.get_raw_connection()
        await connection.close()
        await connection.close()
        raw.close()

        assert database.pool.checkedout() == 0
        assert database.pool.checkedin() == 1


# PgBouncer


@pytest.mark.parametrize(
    "way", [by_session, by_execute, by_driver, by_drivers_fetch, by_raw_connection]
)
async def test_behind_pgbouncer_nothing_is_left_on_a_connection_of_its_own(
    postgres: EmbeddedPostgres, database_url: URL, way: Act
) -> None:
    with pgbouncer(postgres.url(""), pool_size=1) as pooler:
        url = pooler.set(database=database_url.database)
        async with opened(url, pgbouncer=True, pool_size=3) as database:
            for statement in STATE:
                with pytest.raises(InvalidRequestError, match="SET LOCAL"):
                    await way(database, statement)
            await way(database, "SELECT 1")
            await by_session(database, "SET LOCAL search_path = pg_catalog")
            await by_session(database, "SELECT pg_advisory_xact_lock(1)")

            assert await left(database) == []
            assert database.pool.checkedout() == 0


# MariaDB and SQLite


@pytest.mark.parametrize(
    ("statement", "question"),
    [
        ("SET @x = 5", "SELECT @x IS NOT NULL"),
        ("SET SESSION sql_mode = ''", "SELECT @@sql_mode = ''"),
        ("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
        ("SELECT GET_LOCK('mine', 1)", "SELECT IS_USED_LOCK('mine') = CONNECTION_ID()"),
        ("USE mysql", "SELECT DATABASE() = 'mysql'"),
        ("CREATE TEMPORARY TABLE mine (a int)", "SELECT (SELECT a FROM mine) IS NULL"),
        ("PREPARE mine FROM 'SELECT 1'", "EXECUTE mine"),
        ("EXECUTE IMMEDIATE 'SET @x = 5'", "SELECT @x IS NOT NULL"),
        ("SELECT LAST_INSERT_ID(77)", "SELECT LAST_INSERT_ID() = 77"),
    ],
)
async def test_on_mariadb_the_next_caller_finds_nothing(
    mariadb: MariaDB, statement: str, question: str
) -> None:
    async with opened(await asyncio.to_thread(mariadb.new_database), "mysql") as database:
        for way in (
            by_session,
            by_execute,
            by_engine,
            by_cursor,
            by_raw_cursor,
            by_adapters_cursor,
        ):
            await way(database, statement)

            async with database.session() as session:
                with suppress(DBAPIError):  # There is no such table, no such statement.
                    assert not await session.scalar(text(question)), way


async def test_on_mariadb_what_is_set_for_the_next_transaction_is_not_the_next_callers(
    mariadb: MariaDB,
) -> None:
    async with opened(await asyncio.to_thread(mariadb.new_database), "mysql") as database:
        await by_execute(database, "CREATE TABLE one (n int)")
        for way in (by_session, by_execute, by_reader, by_engine, by_cursor, by_raw_cursor):
            await way(database, "SET TRANSACTION READ ONLY")

            await by_session(database, "INSERT INTO one VALUES (1)")
        lost = database.pool.counters.lost
        async with database.session() as session:
            await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        async with database.session() as session:
            await session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            await session.execute(text("SELECT 1"))
        assert database.pool.counters.lost == lost  # Those are over with their transactions.


async def test_on_mariadb_a_lock_of_tables_is_not_handed_on(mariadb: MariaDB) -> None:
    async with opened(await asyncio.to_thread(mariadb.new_database), "mysql") as database:
        await by_execute(database, "CREATE TABLE one (n int)")
        await by_execute(database, "CREATE TABLE other (n int)")
        await by_execute(database, "LOCK TABLES one WRITE")

        await by_execute(database, "INSERT INTO other VALUES (1)")


@pytest.mark.parametrize(
    ("statement", "question", "expected"),
    [
        ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys", 1),
        ("PRAGMA busy_timeout = 7", "PRAGMA busy_timeout", 5000),
        ("PRAGMA query_only = ON", "PRAGMA query_only", 0),
        ("CREATE VIEW temp.mine AS SELECT 1", "SELECT count(*) FROM temp.sqlite_schema", 0),
        ("CREATE TEMP TABLE mine (a)", "SELECT count(*) FROM temp.sqlite_schema", 0),
        ("ATTACH ':memory:' AS other", "SELECT count(*) FROM pragma_database_list", 1),
    ],
)
async def test_on_sqlite_the_next_caller_finds_nothing(
    tmp_path: Path, statement: str, question: str, expected: int
) -> None:
    async with opened(f"sqlite:///{tmp_path / 'shop.sqlite3'}", "sqlite") as database:
        for way in (by_execute, by_driver, by_engine, by_raw_connection, by_adapters_cursor):
            in_transaction = way in {by_engine, by_adapters_cursor}
            if in_transaction and statement.startswith(("PRAGMA foreign", "ATTACH")):
                continue  # Not in a transaction.
            await way(database, statement)

            assert await database.reader.scalar(text(question)) == expected, way
