"""The synchronous side of a database: `primary.sync`."""

# ruff: noqa: PT012 -- the end of a session is what raises

import asyncio
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import pytest
from dbkit import (
    Database,
    DatabaseError,
    Databases,
    PoolTimeout,
    TransactionAborted,
    Unreachable,
    install,
    job,
    opened,
    sync_session_from,
)
from dbkit.commands.embedded import EmbeddedPostgres
from dbkit.commands.pools import describe
from dbkit.database.budget import Claim, Limits
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from rendering import ROOT
from running import free_port, wait_until
from shop import Base, Item
from sqlalchemy import URL, Engine, exc, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import Session

TOKEN = {"Authorization": "Bearer sixteen characters"}
ENGINES = ["postgresql", "pgbouncer", "mariadb", "sqlite"]
SERVERS = ["postgresql", "mariadb"]
KIT = ROOT / "template" / "src" / "{{package}}"


def on(*engines: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("declared", engines, indirect=True)


@pytest.fixture
def shop(declared: Database) -> Iterator[Database]:
    """Make the tables by synchronous code; two items."""
    Base.metadata.create_all(declared.sync.engine)
    with declared.sync.session() as session:
        session.add_all([Item(name="lamp"), Item(name="chair")])
    yield declared
    declared.close_sync()


def names(database: Database) -> list[str]:
    with database.sync.session() as session:
        return list(session.scalars(select(Item.name).order_by(Item.id)))


@on(*ENGINES)
def test_a_session_commits_or_rolls_back(shop: Database) -> None:
    with shop.sync.session() as session:
        session.add(Item(name="desk"))
    with pytest.raises(ZeroDivisionError), shop.sync.session() as session:
        session.add(Item(name="vase"))
        session.flush()
        raise ZeroDivisionError
    with shop.sync.sessions() as session, session.begin():
        with pytest.raises(exc.IntegrityError), session.begin_nested():
            session.add(Item(name="lamp"))
            session.flush()
        session.add(Item(name="bed"))

    assert names(shop) == ["lamp", "chair", "desk", "bed"]
    assert isinstance(shop.sync.engine, Engine)
    assert shop.sync.pools[0].checkedout() == 0


@on(*ENGINES)
def test_a_transaction_that_was_undone_by_a_flush_raises(shop: Database) -> None:
    with pytest.raises(TransactionAborted) as caught, shop.sync.session() as session:
        session.add(Item(name="desk"))
        session.flush()
        session.add(Item(name="lamp"))
        with suppress(exc.IntegrityError):
            session.flush()

    assert names(shop) == ["lamp", "chair"]
    assert caught.value.database == "shop"
    said = str(caught.value)
    assert "nothing that it wrote" in said
    assert "belongs in `with session.begin_nested():`" in said
    assert "yourself: `session.rollback()`" in said


@on("postgresql", "pgbouncer")
def test_a_transaction_that_postgresql_aborted_raises(shop: Database) -> None:
    with (
        pytest.raises(TransactionAborted, match=r"by: SELECT 1/0 \(SQLSTATE 22012\)"),
        shop.sync.session() as session,
    ):
        session.execute(text("INSERT INTO items (label, quantity) VALUES ('desk', 1)"))
        with suppress(exc.DBAPIError):
            session.execute(text("SELECT 1/0"))
    with pytest.raises(TransactionAborted), shop.sync.engine.begin() as connection:
        with suppress(exc.DBAPIError):
            connection.execute(text("SELECT 1/0"))
        connection.execute(text("SELECT 1"))

    assert names(shop) == ["lamp", "chair"]


@on("postgresql", "pgbouncer", "mariadb")
def test_a_transaction_that_lost_a_conflict_is_run_again(shop: Database) -> None:
    both, attempts = threading.Barrier(2), list[str]()

    def change(first: str, second: str) -> None:
        def work(session: Session) -> None:
            is_first = first not in attempts
            attempts.append(first)
            change = text("UPDATE items SET quantity = quantity + 1 WHERE label = :name")
            session.execute(change, {"name": first})
            if is_first:
                both.wait()
            session.execute(change, {"name": second})

        shop.sync.run_transaction(work)

    threads = [
        threading.Thread(target=change, args=order)
        for order in (("lamp", "chair"), ("chair", "lamp"))
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert len(attempts) == 3
    with shop.sync.session() as session:
        assert session.scalars(select(Item.quantity)).all() == [2, 2]


@on("postgresql")
def test_a_transaction_that_fails_by_itself_is_not_run_again(shop: Database) -> None:
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(1)
        session.execute(text("SELECT 1/0"))

    with pytest.raises(exc.DBAPIError):
        shop.sync.run_transaction(work)
    assert attempts == [1]
    assert shop.sync.run_transaction(lambda session: session.scalar(text("SELECT 7"))) == 7


@on("sqlite")
def test_a_transaction_that_sqlite_rolled_back_raises(shop: Database) -> None:
    again = text("INSERT OR ROLLBACK INTO items (label, quantity) VALUES ('lamp', 1)")
    with (
        pytest.raises(TransactionAborted, match="INSERT OR ROLLBACK"),
        shop.sync.session() as session,
    ):
        session.add(Item(name="desk"))
        session.flush()
        with suppress(exc.IntegrityError):
            session.execute(again)
        session.execute(text("INSERT INTO items (label, quantity) VALUES ('bed', 1)"))

    assert names(shop) == ["lamp", "chair"]


@on("mariadb")
def test_a_transaction_that_a_deadlock_undid_raises(shop: Database) -> None:
    both, outcomes = threading.Barrier(2), list[str]()

    def change(first: str, second: str) -> None:
        try:
            with shop.sync.session() as session:
                change = text("UPDATE items SET quantity = quantity + 1 WHERE label = :name")
                session.execute(change, {"name": first})
                both.wait()
                try:
                    session.execute(change, {"name": second})
                except exc.OperationalError:
                    session.execute(text("SELECT 1"))
        except TransactionAborted as error:
            outcomes.append(error.sqlstate or "")
        else:
            outcomes.append("committed")

    orders = [("lamp", "chair"), ("chair", "lamp")]
    threads = [threading.Thread(target=change, args=order) for order in orders]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(outcomes) == ["40P01", "committed"]


@on("mariadb")
def test_what_would_commit_in_between_is_refused(shop: Database) -> None:
    with (
        pytest.raises(exc.InvalidRequestError, match="CREATE would commit"),
        shop.sync.session() as session,
    ):
        session.add(Item(name="desk"))
        session.flush()
        session.execute(text("CREATE TABLE t (id int)"))
    with (
        pytest.raises(exc.InvalidRequestError, match=r"session: `with shop\.sync\.session"),
        shop.sync.session() as session,
    ):
        session.execute(text("SELECT 1"))
        session.execute(text("COMMIT"))

    assert names(shop) == ["lamp", "chair"]


@on("postgresql", "mariadb")
def test_what_is_set_on_a_connection_is_gone_for_the_next(shop: Database) -> None:
    statement = "SET work_mem = '1MB'" if shop.dialect == "postgresql" else "SET @a := 1"
    ask = "SHOW work_mem" if shop.dialect == "postgresql" else "SELECT @a"
    with shop.sync.engine.connect() as connection:
        before = connection.scalar(text(ask))
        connection.execute(text(statement))
        assert connection.scalar(text(ask)) != before

    with shop.sync.engine.connect() as connection:
        assert connection.scalar(text(ask)) == before


@on("pgbouncer")
def test_behind_pgbouncer_nothing_may_stay(shop: Database) -> None:
    with (
        pytest.raises(exc.InvalidRequestError, match="behind PgBouncer"),
        shop.sync.session() as session,
    ):
        session.execute(text("SET work_mem = '1MB'"))
    with shop.sync.session() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "30s"


@pytest.mark.parametrize("declared", ["postgresql"], indirect=True)
def test_a_connection_is_set_up_as_the_asynchronous_ones(
    declared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = r"-c search_path=app,public -c a.b=two\ words"
    monkeypatch.setenv("SHOP_DATABASE_SERVER_SETTINGS", options)
    monkeypatch.setenv("SHOP_DATABASE_STATEMENT_TIMEOUT", "0.2")

    with declared.sync.session() as session:
        found = {
            name: session.scalar(text(f"SHOW {name}"))
            for name in ("application_name", "search_path", "a.b", "lock_timeout")
        }
        with pytest.raises(exc.OperationalError, match="statement timeout"):
            session.execute(text("SELECT pg_sleep(5)"))
        session.rollback()
    declared.close_sync()

    assert found == {
        "application_name": "dbkit:shop.sync",
        "search_path": "app,public",
        "a.b": "two words",
        "lock_timeout": "5s",
    }


@on("postgresql")
def test_a_replica_is_not_written_to(shop: Database) -> None:
    replica = Database("copy", "postgresql", replica_of=shop, env_prefix="COPY_")

    with pytest.raises(exc.DBAPIError, match="read-only"), replica.sync.session() as session:
        session.add(Item(name="desk"))
    with replica.sync.session() as session:
        assert session.scalars(select(Item.name)).all() == ["lamp", "chair"]
    replica.close_sync()


@on(*ENGINES)
def test_exhaustion_names_the_holder_and_what_to_do(
    declared: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOP_DATABASE_SYNC_POOL_SIZE", "1")
    monkeypatch.setenv("SHOP_DATABASE_POOL_TIMEOUT", "0.05")
    with job("report"), declared.sync.session() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(PoolTimeout) as caught, declared.sync.engine.connect():
            pass
    declared.close_sync()

    said = str(caught.value)
    assert said.startswith("shop: no connection for synchronous code within 0.05 s: 1 of 1 in use")
    assert "Raise SHOP_DATABASE_SYNC_POOL_SIZE (1) if" in said
    assert "\n  held by job report for 0." in said
    assert "test_sync.py:" in said
    assert [holder.task for holder in caught.value.holders] == ["of thread MainThread"]
    assert "holds a connection and asks for another" in caplog.text


@on("postgresql", "mariadb")
def test_a_server_that_is_away_is_named(
    declared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{declared.dialect}://user:s3cret@127.0.0.1:1/shop"
    monkeypatch.setenv("SHOP_DATABASE_URL", url)

    with pytest.raises(Unreachable) as caught, declared.sync.session() as session:
        session.execute(text("SELECT 1"))

    assert "user:***@127.0.0.1:1/shop" in str(caught.value)
    assert "check SHOP_DATABASE_URL" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@on(*SERVERS)
def test_connections_that_the_server_ended_are_not_handed_out(shop: Database) -> None:
    shop.declared["ping_after"] = 0
    shop.close_sync()
    held = [shop.sync.engine.connect() for _ in range(2)]
    ids = [each.scalar(text(IDENTITY[shop.dialect])) for each in held]
    for each in held:
        each.close()
    pool = shop.sync.pools[0]
    with shop.sync.engine.connect() as connection:
        mine = connection.scalar(text(IDENTITY[shop.dialect]))
        assert mine in ids
        (other,) = set(ids) - {mine}
        connection.execute(text(KILL[shop.dialect].format(other)))
        other_end = shop.sync.engine.connect()
        assert other_end.scalar(text("SELECT 41 + 1")) == 42
        other_end.close()

    assert pool.counters.ping_errors == 1


IDENTITY = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
KILL = {"postgresql": "SELECT pg_terminate_backend({}, 1000)", "mysql": "KILL {}"}


@on(*SERVERS, "sqlite")
def test_a_fork_connects_by_itself(shop: Database) -> None:
    engine = shop.sync.engine
    with engine.connect() as connection:
        question = text(IDENTITY.get(shop.dialect, "SELECT 1"))
        mine = connection.scalar(question)
        connection.rollback()  # Else a file of SQLite is locked.
        receiver, sender = multiprocessing.Pipe(duplex=False)
        if not (child := os.fork()):
            try:
                with engine.connect() as other:
                    theirs = [other.scalar(question)]
                with shop.sync.session() as session:
                    sender.send([*theirs, session.scalar(question)])
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert receiver.poll()
        theirs = receiver.recv()
        assert connection.scalar(question) == mine

    if shop.dialect != "sqlite":
        assert mine not in theirs
    assert names(shop) == ["lamp", "chair"]


@on(*ENGINES)
async def test_the_stop_waits_for_what_is_in_use_and_closes_all(
    declared: Database, caplog: pytest.LogCaptureFixture
) -> None:
    begun, ends = threading.Event(), threading.Event()

    def work() -> None:
        with declared.sync.session() as session:
            session.execute(text("SELECT 1"))
            begun.set()
            ends.wait()

    async with declared.open():
        working = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(begun.wait)
        (pool,) = declared.sync.pools
        asyncio.get_running_loop().call_later(0.1, ends.set)
    await working

    assert pool.snapshot().closed
    assert declared.sync.pools == []
    assert "still in use" not in caplog.text


@on("postgresql")
async def test_what_is_in_use_after_the_drain_is_named(
    declared: Database, caplog: pytest.LogCaptureFixture
) -> None:
    settings = declared.read_settings().model_copy(update={"drain_timeout": 0})
    async with declared.open(settings):
        connection = declared.sync.engine.connect()
        pid = connection.scalar(text(IDENTITY["postgresql"]))
        driver: Any = connection.connection.driver_connection
    assert pid
    held = "shop.sync: still in use at the end: 1\n  held by task of thread MainThread"
    assert held in caplog.text
    connection.close()
    assert driver.closed


@on("postgresql")
def test_a_leak_is_named(shop: Database, caplog: pytest.LogCaptureFixture) -> None:
    pool = shop.sync.pools[0]
    pool.usage.leaks = 0
    shop.close_sync()
    caplog.clear()
    shop.declared["leak_after"] = 0.1

    with job("nightly"), shop.sync.session() as session:
        session.execute(text("SELECT 1"))
        wait_until(lambda: "LEAK_AFTER" in caplog.text, "a leak is named")

    assert "shop.sync: a connection is held for longer than SHOP_DATABASE_LEAK_AFTER" in caplog.text
    assert ": job nightly for " in caplog.text
    assert shop.sync.pools[0].usage.leaks == 1


@pytest.fixture
async def role(postgres: EmbeddedPostgres) -> AsyncGenerator[AsyncConnection]:
    engine = create_async_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text("CREATE ROLE turning LOGIN PASSWORD 'one'"))
        yield connection
        await connection.execute(text("DROP ROLE turning"))
    await engine.dispose()


@on("postgresql")
async def test_a_password_that_changes(
    declared: Database, role: AsyncConnection, database_url: URL, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("one")
    database = Database(
        "turn",
        "postgresql",
        url=database_url._replace(username="turning", password=None).render_as_string(),
        password_file=str(tmp_path / "secret"),
    )

    def user() -> str:
        with database.sync.engine.connect() as connection:
            connection.detach()
            return connection.scalar(text("SELECT current_user")) or ""

    assert await asyncio.to_thread(user) == "turning"
    await role.execute(text("ALTER ROLE turning PASSWORD 'two'"))
    (tmp_path / "secret").write_text("two")
    assert await asyncio.to_thread(user) == "turning"
    database.close_sync()


@on("postgresql")
def test_a_password_that_is_asked_for(database_url: URL, declared: Database) -> None:
    async def password() -> str:
        await asyncio.sleep(0)
        return database_url.password or ""

    url = database_url._replace(password=None).render_as_string()
    database = Database("asks", "postgresql", url=url, password=password)

    with database.sync.session() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.close_sync()


def test_what_is_not_used_costs_nothing(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from typing import Annotated
from fastapi import FastAPI
from sqlalchemy.orm import Session
from dbkit import Database, Databases, install, sync_session_from
databases = Databases(Database("shop", "sqlite", url="sqlite:///shop"))
assert "dbkit.database.sync" not in sys.modules
DependsOnShop = Annotated[Session, sync_session_from(databases["shop"])]
app = FastAPI()
install(app, databases)
@app.get("/")
def read(session: DependsOnShop) -> int: ...
async def run():
    async with databases.open():
        pass
asyncio.run(run())
assert not {"psycopg", "pymysql"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(KIT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("dialect", "command"),
    [("postgresql", 'psycopg: uv add "psycopg[binary]"'), ("mysql", "pymysql: uv add pymysql")],
)
def test_a_driver_that_is_missing_is_named(
    dialect: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[type(Database("x", "sqlite").sync).__module__]
    monkeypatch.setattr(module, "find_spec", dict[str, object]().get)
    database = Database("shop", dialect, url=f"{dialect}://a:b@127.0.0.1:1/c")

    with pytest.raises(DatabaseError, match=r"^shop: synchronous code needs ") as caught:
        database.sync.session()

    assert str(caught.value).endswith(command)


def test_the_budget_counts_it_where_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database("shop", "postgresql", url="postgresql://a@b/c")
    limits = Limits("one", 100, 3, "role app", -1, "shop", -1)

    def claimed() -> int:
        return Claim("shop", database.read_settings(), limits, database.uses_sync).connections

    assert claimed() == 11
    monkeypatch.setenv("SHOP_DATABASE_SYNC_POOL_SIZE", "3")
    assert claimed() == 14
    monkeypatch.delenv("SHOP_DATABASE_SYNC_POOL_SIZE")
    sync_session_from(database)
    assert claimed() == 16


@asynccontextmanager
async def service(shop: Database) -> AsyncGenerator[AsyncClient]:
    """Run an application whose routes are `def`."""
    app = FastAPI()
    databases = Databases(shop)
    install(app, databases)

    @app.post("/items/{name}")
    def create(name: str, session: Annotated[Session, sync_session_from(shop)]) -> int:  # pyright: ignore[reportUnusedFunction]
        session.add(Item(name=name))
        return len(session.execute(select(Item)).all())

    @app.get("/held")
    def held(session: Annotated[Session, sync_session_from(shop)]) -> list[str]:  # pyright: ignore[reportUnusedFunction]
        session.execute(text("SELECT 1"))
        return [str(each) for each in shop.sync.pools[0].holders()]

    @app.post("/late")
    def late(session: Annotated[Session, sync_session_from(shop)]) -> int:  # pyright: ignore[reportUnusedFunction]
        session.add(Item(name="lamp"))  # Which fails at the COMMIT.
        return 1

    async with databases.open():
        transport = ASGITransport(app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@on(*ENGINES)
async def test_routes_that_are_def(
    shop: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POOLS_TOKEN", "METRICS_TOKEN"):
        monkeypatch.setenv(name, "sixteen characters")
    caplog.set_level(logging.INFO)
    shop.declared["pool_timeout"] = 0.05
    shop.declared["sync_pool_size"] = 1
    shop.close_sync()
    async with service(shop) as client:
        assert (await client.post("/items/desk")).json() == 3
        assert (await client.post("/late")).status_code == 409
        (holder,) = (await client.get("/held")).json()
        assert holder.startswith("GET /held for ")
        assert "test_sync.py" in holder
        with shop.sync.engine.connect() as taken:
            taken.execute(text("SELECT 1"))
            refused = await client.get("/held")
        metrics = shop.sync.pools[0]
        state = (await client.get("/pools/state", headers=TOKEN)).json()
        scraped = (await client.get("/metrics", headers=TOKEN)).text

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["detail"].startswith("shop: no connection became free in time")
    assert metrics.usage.routes["POST /items/{name}"].statements >= 2
    assert metrics.counters.timeouts == 1
    assert list(state["databases"]) == ["shop", "shop.sync"]
    assert state["databases"]["shop.sync"]["pool"]["timeouts"] == 1
    assert "shop.sync: up; 0 of 1 in use" in describe(state)
    assert re.search(
        r'use_time_seconds_count{db_client_connection_pool_name="shop.sync"} \d', scraped
    )


def test_scripts_close_what_they_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    databases = Databases(Database("shop", "sqlite", url=f"sqlite:///{tmp_path / 'shop'}"))

    with opened(databases):
        with databases["shop"].sync.session() as session:
            assert session.scalar(text("SELECT 1")) == 1
        (pool,) = databases["shop"].sync.pools

    assert pool.snapshot().closed
    assert databases["shop"].sync.pools == []


@pytest.mark.parametrize("declared", ["postgresql"], indirect=True)
def test_the_second_of_two_hosts_is_used_when_the_first_is_away(
    declared: Database, database_url: URL
) -> None:
    query = {"host": [f"127.0.0.1:{free_port()}", f"127.0.0.1:{database_url.port}"]}
    both = database_url.set(host=None, port=None, query=query)
    url = both.render_as_string(hide_password=False)
    database = Database("shop", "postgresql", url=url)

    with database.sync.session() as session:
        assert session.scalar(text("SELECT inet_server_port()")) == database_url.port
    database.close_sync()
