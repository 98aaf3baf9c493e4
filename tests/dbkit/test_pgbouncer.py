"""PgBouncer in transaction mode: right answers, timeouts that hold, and nothing left behind."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dbkit import Database
from dbkit.commands import migrations
from dbkit.commands.checks import Finding, check
from dbkit.commands.embedded import EmbeddedPostgres
from mixed_statements import Base, run
from pooler import pgbouncer
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from test_budget import connected
from test_migrations import write

# Of our startup parameters; it takes them then, and does nothing about them.
IGNORED = (
    "statement_timeout,lock_timeout,idle_in_transaction_session_timeout,"
    "client_connection_check_interval"
)

LEFT = text("""
    SELECT 'statement ' || name FROM pg_prepared_statements
    UNION ALL SELECT 'setting ' || name FROM pg_settings
        WHERE source = 'session' AND setting <> reset_val
        AND name <> 'application_name'  -- PgBouncer sets it.
    UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relpersistence = 't'
    UNION ALL SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory'
""")


@pytest.fixture(scope="session")
def pooler(postgres: EmbeddedPostgres) -> Iterator[URL]:
    """Run a PgBouncer of two connections to each database; the URL names none."""
    with pgbouncer(postgres.url(""), ignore_startup_parameters=IGNORED) as url:
        yield url


@pytest.fixture
def pooled_url(pooler: URL, database_url: URL) -> str:
    """Return the URL of an empty database, by way of PgBouncer."""
    return shown(pooler.set(database=database_url.database))


@pytest.fixture
async def pooled(pooled_url: str) -> AsyncIterator[Database]:
    """Open a database behind PgBouncer, with ten times as many connections as that has."""
    database = Database(
        "orders", "postgresql", url=pooled_url, pgbouncer=True, pool_size=20, queue_target=0
    )
    async with database.open():
        yield database


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


async def findings(database: Database) -> list[Finding]:
    return [finding async for finding in check([database])]


async def answers(connection: AsyncConnection, *settings: str) -> list[str]:
    return [str(await connection.scalar(text(f"SHOW {each}"))) for each in settings]


async def test_twenty_clients_on_two_connections_get_their_own_answers(
    pooled: Database, postgres: EmbeddedPostgres, database_url: URL
) -> None:
    async with pooled.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    assert await run(pooled.engine, clients=20, turns=50) == {}

    async with connected(postgres.url(database_url.database or "")) as connection:
        backends = text(
            "SELECT state FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        states = (await connection.scalars(backends)).all()
    assert states == ["idle"] * len(states)  # in no transaction
    assert len(states) <= 2
    autocommit = pooled.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as one, autocommit.connect() as other:
        for each in (one, other):  # Each on one of the two server connections.
            driver = (await each.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.execute("START TRANSACTION")  # without the settings of its BEGIN
            assert (await each.scalars(LEFT)).all() == []


@pytest.mark.programs
async def test_readers_and_sessions_work(pooled: Database) -> None:
    async with pooled.session() as session:
        await session.execute(text("CREATE TABLE numbers (n int)"))
        await session.execute(text("INSERT INTO numbers SELECT generate_series(1, 500)"))

    count = text("SELECT count(*) FROM numbers WHERE n > :n")
    found = await asyncio.gather(*(pooled.reader.scalar(count, {"n": n}) for n in range(100)))
    async with pooled.reader.stream(text("SELECT n FROM numbers ORDER BY n")) as result:
        streamed = [row.n async for row in result]

    assert found == [500 - n for n in range(100)]
    assert streamed == list(range(1, 501))


async def test_a_changed_column_is_read_as_what_it_is_now(pooled: Database) -> None:
    async with pooled.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE moments (at bigint)"))
        await connection.execute(text("INSERT INTO moments VALUES (5)"))
        assert await connection.scalar(text("SELECT at FROM moments")) == 5

    async with pooled.engine.begin() as connection:
        change = "ALTER TABLE moments ALTER at TYPE timestamptz USING to_timestamp(at)"
        await connection.execute(text(change))

    async with pooled.engine.connect() as connection:
        moment = await connection.scalar(text("SELECT at FROM moments"))
        assert moment.timestamp() == 5


async def test_timeouts_hold_in_a_transaction_and_stay_there(pooled: Database) -> None:
    settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    autocommit = pooled.engine.execution_options(isolation_level="AUTOCOMMIT")

    async with pooled.engine.connect() as connection:
        assert await answers(connection, *settings) == ["30s", "5s", "1min"]
    async with autocommit.connect() as connection:
        assert await answers(connection, *settings) == ["0", "0", "0"]


async def test_a_transaction_may_have_an_isolation_of_its_own(pooled: Database) -> None:
    engine = pooled.engine.execution_options(isolation_level="SERIALIZABLE")

    async with engine.connect() as connection:
        found = await answers(connection, "transaction_isolation", "statement_timeout")

    assert found == ["serializable", "30s"]


async def test_a_replica_stays_read_only(pooled_url: str) -> None:
    primary = Database("orders", "postgresql", url=pooled_url, pgbouncer=True)
    replica = Database("replica", "postgresql", replica_of=primary, url=pooled_url, pgbouncer=True)

    async with replica.open(), replica.engine.connect() as connection:
        assert await answers(connection, "transaction_read_only") == ["on"]


async def test_the_server_sees_whose_connection_it_is(pooled: Database) -> None:
    async with pooled.engine.connect() as connection:
        assert await answers(connection, "application_name") == ["dbkit:orders"]


async def test_what_is_declared_has_no_findings(pooled_url: str) -> None:
    database = Database("orders", "postgresql", url=pooled_url, pgbouncer=True)

    assert await findings(database) == []


async def test_a_pooler_that_is_not_declared_is_an_error(pooled_url: str) -> None:
    database = Database("orders", "postgresql", url=pooled_url)

    assert await findings(database) == [
        Finding(
            "database.E004",
            "orders",
            "a pooler in transaction mode lies between, and mixes up prepared statements:"
            " set ORDERS_DATABASE_PGBOUNCER=true",
        )
    ]


async def test_a_pooler_that_is_not_there_is_a_warning(database_url: URL) -> None:
    database = Database("orders", "postgresql", url=shown(database_url), pgbouncer=True)

    assert await findings(database) == [
        Finding(
            "database.W005",
            "orders",
            "ORDERS_DATABASE_PGBOUNCER is set, but the server itself answers",
            "unset ORDERS_DATABASE_PGBOUNCER: every statement takes a second round trip for it",
        )
    ]


async def test_a_pooler_in_session_mode_is_a_warning(database_url: URL) -> None:
    with pgbouncer(
        database_url, pool_size=5, pool_mode="session", ignore_startup_parameters=IGNORED
    ) as url:
        (found,) = await findings(Database("orders", "postgresql", url=shown(url)))

    assert found.id == "database.W006"
    assert found.hint == "if it is in transaction mode, set ORDERS_DATABASE_PGBOUNCER=true"


async def test_a_pooler_that_refuses_our_timeouts_is_named_in_the_error(database_url: URL) -> None:
    with pgbouncer(database_url) as url:
        (found,) = await findings(Database("orders", "postgresql", url=shown(url)))

    assert found.id == "database.E002"
    assert found.text.endswith(
        "unsupported startup parameter: statement_timeout;"
        " if that is PgBouncer, set ORDERS_DATABASE_PGBOUNCER=true"
    )


async def test_lost_statements_are_blamed_on_a_pooler(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database("orders", "postgresql", url=shown(database_url))

    async with database.open(), database.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        await connection.execute(text("DEALLOCATE ALL"))
        with pytest.raises(DBAPIError, match="does not exist"):
            await connection.execute(text("SELECT 1"))

    (said,) = (each.getMessage() for each in caplog.records if each.levelno == logging.ERROR)
    assert said == (
        "orders: a pooler in transaction mode lies between, and mixes up prepared statements:"
        " set ORDERS_DATABASE_PGBOUNCER=true"
    )


async def test_of_two_that_migrate_through_a_pooler_one_waits(pooled: Database) -> None:
    async def migrate() -> None:
        async with migrations.connect(pooled, alone=True):
            pass

    async with migrations.connect(pooled, alone=True) as connection:
        other = asyncio.create_task(migrate())
        _, waiting = await asyncio.wait({other}, timeout=2 * migrations.LOCK_INTERVAL)
        assert waiting
        await connection.execute(text("SELECT 1"))  # Who waits leaves a server connection free.
    await other


async def test_a_migration_through_a_pooler_has_no_timeout(
    pooled_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(
        "orders",
        "postgresql",
        base=Base,
        url=pooled_url,
        pgbouncer=True,
        statement_timeout=0.05,
    )
    write("0001", 'op.execute("SELECT pg_sleep(0.2)")')

    assert await migrations.migrate(database) == ["upgraded to 0001: step 0001."]
