"""MariaDB and MySQL through the kit: sessions, errors, cancellation, TLS, times, migrations."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme
from dbkit import TYPES, Database, Databases, NotConfigured
from dbkit.commands import checks, migrations
from dbkit.engines.sqlstates import answer, is_retryable, sqlstate
from dbkit.errors import Unreachable
from dbkit.testing.sandbox import Sandbox
from mariadb import PASSWORD, Server
from running import PATIENCE
from sqlalchemy import MetaData, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

pytestmark = pytest.mark.anyio

SCHEMA = """
CREATE TABLE parents (
    id integer PRIMARY KEY, name varchar(5) NOT NULL UNIQUE, number smallint CHECK (number >= 0));
CREATE TABLE children (
    id integer PRIMARY KEY, parent_id integer NOT NULL REFERENCES parents (id));
INSERT INTO parents VALUES (1, 'one', 1), (2, 'two', 2);
INSERT INTO children VALUES (1, 1)
"""

# MySQL ends SLEEP() in time, too, but as if it had slept enough.
SLOW = f"SELECT count(*) FROM {', '.join(f'information_schema.collations {t}' for t in 'abcd')}"  # noqa: S608 -- ours


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    """Run each of both servers."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(server: Server) -> str:
    """Make a database and return its URL."""
    return server.new_database().render_as_string(hide_password=False)


@pytest.fixture
async def database(url: str) -> AsyncGenerator[Database]:
    """Open a database with two tables."""
    declared = Database(
        "primary", "mysql", url=url, pool_size=3, statement_timeout=1, lock_timeout=1
    )
    async with declared.open():
        await run(declared, *SCHEMA.split(";"))
        yield declared


def is_mariadb(database: Database) -> bool:
    """Whether it is that, and not MySQL."""
    return bool(getattr(database.engine.dialect, "is_mariadb", False))


async def run(database: Database, *statements: str, **values: Any) -> Any:
    """Run statements in a transaction; return the last one's first row."""
    async with database.session() as session:
        result: Any = None
        for statement in statements:
            result = await session.execute(text(statement), values)
        return result.first() if result.returns_rows else None


async def test_a_session_is_strict_in_utc_and_bounded(database: Database) -> None:
    timeouts, expected = "@@max_execution_time", (1000,)
    if is_mariadb(database):
        timeouts, expected = "@@max_statement_time, @@idle_transaction_timeout", (1.0, 60)
    found = await run(
        database,
        "SELECT @@sql_mode, @@time_zone, @@character_set_client, @@lock_wait_timeout,"
        f" @@innodb_lock_wait_timeout, {timeouts}",
    )

    assert {"STRICT_ALL_TABLES", "ONLY_FULL_GROUP_BY"} <= set(found[0].split(","))
    assert tuple(found)[1:] == ("+00:00", "utf8mb4", 1, 1, *expected)


@pytest.mark.parametrize(
    ("statement", "status", "code"),
    [
        ("INSERT INTO parents VALUES (1, 'again', 1)", 409, "23505"),
        ("INSERT INTO children VALUES (9, 77)", 409, "23503"),
        ("DELETE FROM parents WHERE id = 1", 409, "23503"),
        ("INSERT INTO parents VALUES (9, NULL, 1)", 422, "23502"),
        ("INSERT INTO parents (id) VALUES (9)", 422, "23502"),
        ("INSERT INTO parents VALUES (9, 'too long', 1)", 422, "22001"),
        ("INSERT INTO parents VALUES (9, 'nine', 99999)", 422, "22003"),
        ("INSERT INTO parents VALUES (9, 'nine', -1)", 422, "23514"),
        ("INSERT INTO parents VALUES (9, 'nine', 'x')", 422, "22000"),
        (SLOW, 504, "57014"),
        ("KILL QUERY CONNECTION_ID()", 504, "57014"),
        ("KILL CONNECTION_ID()", 503, "57P01 or 08006"),  # MySQL closes it without a word.
        ("SELECT * FROM nowhere", None, "42S02"),
    ],
)
async def test_errors_are_answered_as_those_of_postgresql(
    database: Database, statement: str, status: int | None, code: str
) -> None:
    with pytest.raises(DBAPIError) as caught:
        await run(database, statement)

    said = sqlstate(caught.value) or (caught.value.connection_invalidated and "08006")
    assert said in code.split(" or ")
    found = answer(said)
    assert (found and found.status) == status
    assert tuple(await run(database, "SELECT count(*) FROM parents")) == (2,)


async def test_a_lock_and_a_deadlock_are_told_apart(database: Database) -> None:
    change = text("UPDATE parents SET number = 3 WHERE id = :id")

    async def both(first: int, second: int, barrier: asyncio.Barrier) -> str | None:
        try:
            async with database.session() as session:
                await session.execute(change, {"id": first})
                await barrier.wait()
                await session.execute(change, {"id": second})
        except DBAPIError as error:
            return sqlstate(error)
        return None

    barrier = asyncio.Barrier(2)
    codes = await asyncio.gather(both(1, 2, barrier), both(2, 1, barrier))
    assert [is_retryable(code) for code in codes if code] == [True]

    async with database.session() as session:
        await session.execute(change, {"id": 1})
        with pytest.raises(DBAPIError) as caught:
            await run(database, "SELECT 1 FROM parents WHERE id = 1 FOR UPDATE NOWAIT")
    assert sqlstate(caught.value) == "55P03"


async def test_what_is_cancelled_loses_its_connection_and_no_rows_of_others(
    database: Database,
) -> None:
    statements = (
        "SELECT :n, SLEEP(:n % 7 / 1000)",
        "SELECT :n, REPEAT('x', 300000) UNION ALL SELECT :n, REPEAT('y', 300000)",
        "SELECT :n, seq FROM seq_1_to_500",
    )
    others: list[int] = []

    async def one(number: int) -> None:
        async with database.session() as session:
            rows = await session.execute(text(statements[number % 3]), {"n": number})
            others.extend(row[0] for row in rows if row[0] != number)

    tasks = [asyncio.create_task(one(number)) for number in range(600)]
    for number, task in enumerate(tasks):
        if number % 2:
            asyncio.get_running_loop().call_later(number % 100 / 100, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)

    assert others == []
    assert sum(task.cancelled() for task in tasks) > 0
    assert tuple(await run(database, "SELECT 7")) == (7,)
    assert database.pool.snapshot().in_use == 0


async def test_a_connection_cancelled_in_a_statement_is_the_only_one_lost(
    database: Database,
) -> None:
    assert await database.pool.warm(3, deadline=10) == 3
    before = database.pool.snapshot().connects
    task = asyncio.create_task(run(database, "SELECT SLEEP(0.9)"))
    while database.pool.snapshot().in_use == 0:  # noqa: ASYNC110 -- nothing is set for it
        await asyncio.sleep(0.001)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert await database.pool.warm(3, deadline=10) == 3
    assert database.pool.snapshot().connects == before + 1


async def test_a_cancellation_that_comes_together_with_the_answer_is_not_lost(
    database: Database,
) -> None:
    class Cancelling(asyncio.BufferedProtocol):
        """Cancels who waits, in the turn of the loop in which the answer comes."""

        def __init__(self, protocol: asyncio.BufferedProtocol, task: asyncio.Task[Any]) -> None:
            self.protocol = protocol
            self.task = task

        def get_buffer(self, sizehint: int) -> Any:
            return self.protocol.get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            self.protocol.buffer_updated(nbytes)
            self.task.cancel()

    async def work() -> None:
        async with database.session() as session:
            connection = await session.connection()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            transport: asyncio.Transport = driver._transport  # noqa: SLF001 -- told nowhere else
            protocol: Any = transport.get_protocol()
            task = asyncio.current_task()
            assert task is not None
            transport.set_protocol(Cancelling(protocol, task))
            try:
                await session.execute(text("SELECT 1"))
            finally:
                transport.set_protocol(protocol)
        raise AssertionError("the cancellation was lost")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "given up"])
async def test_what_nobody_waits_for_stops_in_the_server_and_frees_its_locks(
    url: str, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    monkeypatch.setattr("dbkit.database.engine.FENCE", 0.5)
    timeout = 0 if cancelled else 0.5
    declared = Database("primary", "mysql", url=url, pool_size=2, statement_timeout=timeout)
    asleep = text("SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%(987)'")

    async def hold(database: Database, number: int) -> None:
        async with database.session() as session:
            change = text("UPDATE parents SET number = 9 WHERE id = :id")
            await session.execute(change, {"id": number})
            limit = "max_statement_time" if is_mariadb(database) else "max_execution_time"
            await session.execute(text(f"SET {limit} = 0"))
            await session.execute(text("SELECT SLEEP(987)"))

    async def until_there_are(count: int) -> None:
        async with asyncio.timeout(PATIENCE), Database("other", "mysql", url=url).open() as other:
            while await other.reader.scalar(asleep) != count:  # noqa: ASYNC110 -- in the server
                await asyncio.sleep(0.005)

    async with declared.open() as database:
        await run(database, *SCHEMA.split(";"))
        tasks = [asyncio.create_task(hold(database, number)) for number in (1, 2)]
        if cancelled:
            await until_there_are(2)
            for task in tasks:
                task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError | DBAPIError) for end in ends)
        await until_there_are(0)

        assert tuple(await run(database, "SELECT sum(number) FROM parents FOR UPDATE")) == (3,)


async def test_one_connection_serves_readers_and_transactions_in_turn(url: str) -> None:
    count = text("SELECT count(*) FROM parents")
    add = text("INSERT INTO parents VALUES (:id, :id, 1)")

    async def is_seen(database: Database, id_: int) -> bool:
        """Whether a session sees what is committed after its first look."""
        async with database.session() as session:
            if id_ == 4:
                await session.connection(execution_options={"isolation_level": "READ COMMITTED"})
            before = await session.scalar(count)
            await other.execute(add, {"id": id_})
            return await session.scalar(count) != before

    settings: Any = {"url": url, "pool_size": 1}
    async with (
        Database("primary", "mysql", **settings).open() as database,
        Database("other", "mysql", **settings).open() as other,
    ):
        await run(database, *SCHEMA.split(";"))
        await database.reader.scalar(count)
        with pytest.raises(DBAPIError):
            await run(database, "INSERT INTO parents VALUES (3, '3', 1)", "SELECT nothing")
        with pytest.raises(InvalidRequestError, match="START TRANSACTION is not for SQL text"):
            await database.reader.execute(text("START TRANSACTION"))
        assert await database.reader.scalar(count) == 2
        await other.execute(add, {"id": 6})
        assert await database.reader.scalar(count) == 3

        assert [await is_seen(database, id_) for id_ in (3, 4, 5)] == [False, True, False]
        assert await database.reader.scalar(count) == 6
        assert database.pool.snapshot().connects == 1


async def test_tls_is_checked_and_never_left_out(server: Server, url: str, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    server.authority.cert_pem.write_to_path(str(ca))
    host = url.replace("127.0.0.1", "localhost")
    for wanted in (
        f"{url}?sslmode=require",
        f"{host}?sslmode=verify-full&ssl_ca={ca}",
        f"{url}?sslmode=verify-ca&ssl_ca={ca}",
    ):
        database = Database("primary", "mysql", url=wanted, required_at_start=True)
        async with database.open():
            assert (await run(database, "SHOW STATUS LIKE 'Ssl_cipher'"))[1]
    refused = f"{url}?sslmode=verify-full&ssl_ca={ca}"
    with pytest.raises(Unreachable, match="certificate"):
        await connect(refused)


async def test_a_user_who_has_to_shows_a_certificate(
    server: Server, url: str, tmp_path: Path
) -> None:
    user = f"u{uuid4().hex[:12]}"
    await asyncio.to_thread(
        server.run,
        f"CREATE USER {user}@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE X509",
        f"GRANT ALL ON *.* TO {user}@'%'",
    )
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    for path, authority in ((ours, server.authority), (theirs, trustme.CA())):
        client = authority.issue_cert("client@example.org")
        client.private_key_and_cert_chain_pem.write_to_path(str(path))
    own = make_url(url).set(username=user, query={"sslmode": "require"})

    def showing(certificate: Path | None) -> str:
        query = {"ssl_cert": str(certificate)} if certificate else {}
        return own.update_query_dict(query).render_as_string(hide_password=False)

    await connect(showing(ours))
    for refused in (showing(theirs), showing(None)):
        with pytest.raises(Unreachable, match="; check PRIMARY_DATABASE_URL"):
            await connect(refused)


async def connect(url: str) -> None:
    """Connect once, or raise what is in the way, however long the server takes to say it."""
    async with Database("primary", "mysql", url=url).open() as database:
        await database.reader.scalar(text("SELECT 1"))


async def test_times_keep_their_moment_and_need_a_zone(url: str) -> None:
    class Base(DeclarativeBase):
        metadata = MetaData()
        type_annotation_map = TYPES

    class Event(Base):
        __tablename__ = "events"

        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[datetime]

    noon = datetime(2026, 1, 1, 12, 0, 0, 123456, timezone(timedelta(hours=2)))
    async with Database("primary", "mysql", url=url).open() as database:
        async with database.session() as session:
            connection = await session.connection()
            await connection.run_sync(Base.metadata.create_all)
            session.add(Event(id=1, at=noon))
        async with database.session() as session:
            event = await session.get_one(Event, 1)
            assert (event.at, event.at.tzinfo) == (noon, UTC)
        with pytest.raises(DataError) as caught:
            async with database.session() as session:
                session.add(Event(id=2, at=datetime(2026, 1, 1)))  # noqa: DTZ001 -- none, on purpose
        assert sqlstate(caught.value) == "22000"


def migrated(url: str, **revisions: tuple[str, ...]) -> Database:
    """Declare a database with migrations, in this folder: the statements of each, by revision."""

    class Base(DeclarativeBase):
        pass

    folder = Path("migrations", "primary")
    folder.mkdir(parents=True)
    after: str | None = None
    for revision, statements in revisions.items():
        (folder / f"{revision}.py").write_text(
            f'"""{revision}."""\nfrom alembic import op\nrevision = "{revision}"\n'
            f"down_revision = {after!r}\n\n\ndef upgrade():\n"
            + "".join(f"    op.execute({statement!r})\n" for statement in statements)
        )
        after = revision
    return Database("primary", "mysql", url=url, base=Base)


async def test_a_migration_that_fails_half_way_leaves_its_first_half(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = ("CREATE TABLE t (id int)", "SELECT nothing")
    database = migrated(url, one=("SELECT 1",), two=broken)

    with pytest.raises(migrations.MigrationFailed, match="cannot roll a change of the schema back"):
        await migrations.migrate(database)

    assert [each.applied for each in await migrations.history(database)] == [True, False]
    async with database.open():
        await run(database, "SELECT * FROM t")
    # Its owner did the rest by hand.
    assert await migrations.fake(database) == "noted as two, and nothing was run; it was one"
    assert await migrations.migrate(database) == []


async def test_two_that_migrate_at_once_wait_for_each_other(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "CREATE TABLE t (id int, CONSTRAINT pk_t PRIMARY KEY (id))"
    database = migrated(url, one=(table, "DROP TABLE IF EXISTS nowhere"))
    waiting = text("SELECT count(*) FROM information_schema.processlist WHERE state = 'User lock'")

    async with Database("other", "mysql", url=url).open() as other:
        async with other.session() as session:
            await session.execute(text("SELECT GET_LOCK(SHA2(DATABASE(), 256), 0)"))
            tasks = [asyncio.create_task(migrations.migrate(database)) for _ in range(2)]
            async with asyncio.timeout(PATIENCE):
                while await session.scalar(waiting) != 2:  # noqa: ASYNC110 -- in the server
                    await asyncio.sleep(0.005)
            await session.execute(text("SELECT RELEASE_LOCK(SHA2(DATABASE(), 256))"))
        steps = await asyncio.gather(*tasks)

    assert sorted(steps) == [[], ["upgraded to one: one."]]
    # Not that the name of the primary key is ignored.
    said = [each.getMessage() for each in caplog.records if each.name == "asyncmy"]
    assert [each for each in said if "PROCESSLIST" not in each] == [  # As this test asks for it.
        f"Unknown table '{database.read_settings().url.database}.nowhere'"
    ]


async def test_a_server_that_takes_no_more_writes_loses_its_connections(
    server: Server, url: str
) -> None:
    user = f"u{uuid4().hex[:12]}"
    name = make_url(url).database
    await asyncio.to_thread(
        server.run,
        f"CREATE USER {user}@'%' IDENTIFIED BY '{PASSWORD}'",
        f"GRANT ALL ON {name}.* TO {user}@'%'",
    )
    own = make_url(url).set(username=user).render_as_string(hide_password=False)
    async with Database("primary", "mysql", url=own, pool_size=3).open() as database:
        await run(database, *SCHEMA.split(";"))
        assert await database.pool.warm(3, deadline=10) == 3
        await asyncio.to_thread(server.run, "SET GLOBAL read_only = 1")
        try:
            with pytest.raises(DBAPIError) as caught:
                await run(database, "DELETE FROM children")
        finally:
            await asyncio.to_thread(server.run, "SET GLOBAL read_only = 0")
        assert sqlstate(caught.value) == "25006"

        await run(database, "DELETE FROM children")
        status = database.pool.snapshot()
        assert status.retired + status.lost == 3
        assert status.connects > 3


async def test_a_narrow_character_set_is_found(server: Server, url: str) -> None:
    name = make_url(url).database
    await asyncio.to_thread(server.run, f"ALTER DATABASE {name} CHARACTER SET latin1")
    database = Database("primary", "mysql", url=url)

    found = [each async for each in checks.check([database])]

    assert [(each.id, each.text) for each in found] == [
        (
            "mysql.W001",
            "its new tables have the character set latin1, which not every text fits in",
        )
    ]
    assert found[0].hint.startswith(f"ALTER DATABASE `{name}` CHARACTER SET utf8mb4;")


async def test_a_server_that_is_set_up_badly_is_said_to_be(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Base(DeclarativeBase):
        pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEB_CONCURRENCY", "50")
    name, user = make_url(url).database, f"u{uuid4().hex[:12]}"
    own = make_url(url).set(username=user).render_as_string(hide_password=False)
    declared: Any = {"url": own, "statement_timeout": 0, "idle_in_transaction_timeout": 0}
    await asyncio.to_thread(
        server.run,
        f"CREATE USER {user}@'%' IDENTIFIED BY '{PASSWORD}' WITH MAX_USER_CONNECTIONS 20",
        f"GRANT ALL ON {name}.* TO {user}@'%'",
        f"CREATE TABLE {name}.kept (n int) ENGINE = MyISAM",
        "SET GLOBAL read_only = 1",
    )
    monkeypatch.setattr("time.time", lambda: 1e9)
    try:
        found = {
            each.id: each
            async for each in checks.check(
                [Database("orders", "mysql", base=Base, **declared)], deploy=True
            )
        }
    finally:
        await asyncio.to_thread(server.run, "SET GLOBAL read_only = 0")

    assert set(found) == {
        *("database.E010", "database.E011", "database.W012", "database.W014", "database.W015"),
        *("database.W016", "mysql.W002"),
        "database.W004",  # Alembic would make its table.
    }
    assert f"user {user}@% may have 20: orders 11 in each of" in found["database.E011"].text
    assert "the server accepts 500 (500, 0 reserved)" in found["database.E010"].text
    assert "ahead of ours" in found["database.W012"].text
    assert found["database.W016"].hint.startswith("set ORDERS_DATABASE_URL")
    assert "kept (MyISAM)" in found["mysql.W002"].text


async def test_a_service_that_starts_warns_of_a_server_that_two_databases_exhaust_together(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    second = await asyncio.to_thread(server.new_database)
    shown = second.render_as_string(hide_password=False)
    declared: Any = {"pool_size": 20}  # With a probe, 294 in 14 processes.
    databases = Databases(
        Database("primary", "mysql", url=url, **declared),
        Database("analytics", "mysql", url=shown, **declared),
    )

    async with databases.open():
        pass

    (said,) = (each for each in caplog.messages if "connections" in each)
    assert said == (
        "primary: up to 588 connections, and the server accepts 500 (500, 0 reserved):"
        " primary 21, analytics 21 in each of 14 processes, with a probe each;"
        " see `manage.py check --deploy`"
    )


async def test_the_sandbox_refuses_what_would_end_it(url: str) -> None:
    async with (
        Database("other", "mysql", url=url).open() as other,
        Database("primary", "mysql", url=url, pool_size=1).open() as database,
    ):
        await run(other, *SCHEMA.split(";"))
        sandbox = Sandbox("primary", database.engine)
        for statement in ("CREATE TABLE t (id int)", "truncate parents", "/* now */ COMMIT"):
            with pytest.raises(InvalidRequestError, match="would end the sandbox"):
                await run(database, statement)
        await run(database, "CREATE TEMPORARY TABLE t (id int)", "DELETE FROM children")
        await database.execute(text("DELETE FROM parents"))
        assert await database.reader.scalar(text("SELECT count(*) FROM parents")) == 0

        assert await sandbox.end(database.engine) is None

        assert await other.reader.scalar(text("SELECT count(*) FROM parents")) == 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("mysql+aiomysql://u@h/n", "driver aiomysql cannot work here; write mysql://"),
        ("mysql://u@h", "names no database; write it as mysql://user:password@host:3306/name"),
        ("mariadb://u@h/n?charset=latin1", "parameter charset is utf8mb4 or left out"),
        ("mysql://u@h/n?sslmode=prefer", "sslmode is one of disable, require, verify-ca"),
        ("mysql://u@h/n?autocommit=1", "parameter autocommit is not known here"),
    ],
)
def test_a_url_that_cannot_work_is_refused(written: str, said: str) -> None:
    with pytest.raises(NotConfigured, match=said.replace("+", r"\+").replace("?", r"\?")):
        Database("primary", "mysql", url=written).read_settings({})


async def test_a_migration_may_write_rows_before_it_changes_a_table(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "CREATE TABLE t (id int, CONSTRAINT pk_t PRIMARY KEY (id))"
    database = migrated(url, one=(table, "INSERT INTO t VALUES (1)", "ALTER TABLE t ADD n int"))

    assert await migrations.migrate(database) == ["upgraded to one: one."]
