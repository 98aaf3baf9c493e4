"""Replicas, on a real primary and a server that follows it."""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from dbkit import Database, Databases, NotConfigured, ReadOnly, install, session_from
from dbkit.commands.checks import check
from dbkit.database.replicas import History, source
from dbkit.settings.urls import Dialect, hosts, parse_url
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from replication import Server
from sqlalchemy import URL, NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from waiting import until

pytestmark = pytest.mark.anyio

MAX_LAG = 0.1
"""Seconds: a replica that repeats nothing is soon further behind."""
PRIMARY = "postgresql://user:s3cret@first:5432/orders"


@dataclass(frozen=True)
class Pair:
    """A primary and its replica, each with the database `orders`."""

    primary: Server
    replica: Server

    async def ask(self, server: Server, statement: str) -> Any:
        """Ask a server by itself."""
        url = server.url("orders")
        engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            result = await connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Have the replica repeat nothing until exit."""
        await self.ask(self.replica, "SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"

        async def is_paused() -> bool:
            return await self.ask(self.replica, state) == "paused"

        try:
            await until(is_paused)
            yield
        finally:
            await self.ask(self.replica, "SELECT pg_wal_replay_resume()")


def shown(server: Server, name: str = "orders") -> str:
    return server.url(name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def pair(fast_directory: Path) -> Iterator[Pair]:
    """Run a primary and a replica."""
    with Server(fast_directory / "primary") as primary:
        primary.create_database("orders")
        with primary.make_replica(fast_directory / "replica") as replica:
            yield Pair(primary, replica)


@asynccontextmanager
async def opened(pair: Pair, **declared: Any) -> AsyncGenerator[tuple[Database, Database]]:
    """Open both databases."""
    primary = Database("primary", "postgresql", url=shown(pair.primary))
    own: Any = {"url": shown(pair.replica)} | declared
    replica = Database("replica", "postgresql", replica_of=primary, **own)
    async with AsyncExitStack() as stack:
        for database in (primary, replica):
            await stack.enter_async_context(database.open())
        yield primary, replica


async def write(primary: Database) -> None:
    """Have the primary's log go on."""
    async with primary.session() as session:
        await session.execute(text("CREATE TABLE IF NOT EXISTS marks (at timestamptz)"))
        await session.execute(text("INSERT INTO marks VALUES (now())"))


async def caught_up(primary: Database, replica: Database) -> None:
    """Wait until the replica has what the primary has."""

    async def has() -> bool:
        await primary.probe.ask()
        await replica.probe.ask()
        return (replica.probe.position or 0) >= (primary.probe.position or 0)

    await until(has)


async def left_behind(primary: Database, replica: Database) -> None:
    """Wait until a replica that is paused is further behind than `max_lag`."""
    await write(primary)
    await primary.probe.ask()

    async def is_behind() -> bool:
        await replica.probe.ask()
        return replica.probe.lag > MAX_LAG

    await until(is_behind)


# ------------------------------------------------------------------------------------ settings


def test_a_replica_borrows_the_url_of_its_primary() -> None:
    primary = Database("primary", "postgresql", env_prefix="DATABASE_")
    replica = Database("replica", "postgresql", replica_of=primary)

    borrowed = replica.read_settings({"DATABASE_URL": PRIMARY})
    own = replica.read_settings(
        {"DATABASE_URL": PRIMARY, "REPLICA_DATABASE_URL": PRIMARY.replace("first", "second")}
    )

    assert (borrowed.url.host, borrowed.url.password) == ("first", "s3cret")
    assert own.url.host == "second"


def test_a_fault_of_the_borrowed_url_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "mysql://there/orders")
    primary = Database("primary", "postgresql", env_prefix="DATABASE_")
    replica = Database("replica", "postgresql", replica_of=primary)

    with pytest.raises(NotConfigured) as caught:
        Databases(primary, replica).read_settings()

    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["DATABASE_URL"]


def test_the_service_is_ready_without_a_replica_unless_told_otherwise() -> None:
    primary = Database("primary", "postgresql", url=PRIMARY)

    assert not Database("replica", "postgresql", replica_of=primary).read_settings({}).required
    needed = Database("replica", "postgresql", replica_of=primary, required=True)
    assert needed.read_settings({}).required


def test_each_host_of_a_url_is_asked_by_itself() -> None:
    several = parse_url("postgresql://u:p@/orders?host=first:1&host=second:2", "postgresql")

    found = [url.get_dialect()().create_connect_args(url)[1] for url in hosts(several)]

    assert [(each["host"], each["port"]) for each in found] == [("first", 1), ("second", 2)]
    one = parse_url(PRIMARY, "postgresql")
    assert hosts(one) == [one]


# -------------------------------------------------------------------------------------- reading


async def test_the_server_refuses_writes_by_a_replica(pair: Pair) -> None:
    """Also where the replica is the primary itself, as in development."""
    async with opened(pair, url=shown(pair.primary)) as (primary, replica):
        await write(primary)
        async with replica.engine.connect() as connection:
            with pytest.raises(DBAPIError, match="read-only transaction"):
                await connection.execute(text("DELETE FROM marks"))
            await connection.rollback()
            assert await connection.scalar(text("SELECT count(*) FROM marks"))

        assert replica.pool.snapshot().lost == replica.pool.snapshot().retired == 0
        assert source(replica) is replica


async def test_a_replica_has_no_sessions(pair: Pair) -> None:
    async with opened(pair) as (_, replica):
        with pytest.raises(ReadOnly, match=r"^replica: .* depend on PrimarySession, or use "):
            async with replica.session():
                pass


async def test_a_replica_that_is_behind_is_not_read(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(pair, max_lag=MAX_LAG) as (primary, replica):
        await write(primary)
        await caught_up(primary, replica)
        await until(lambda: source(replica) is replica and replica.probe.lag == 0)

        async with pair.paused():
            await left_behind(primary, replica)
            assert (source(replica), replica.status) == (primary, "lagging")

        await caught_up(primary, replica)
        await until(lambda: source(replica) is replica)
        said = [each for each in caplog.messages if "its primary" in each]
        # On a busy machine, it may be behind once more.
        assert [re.sub(r"\d+\.\d", "N", each) for each in said][:2] == [
            "replica: N s behind its primary",
            "replica: near enough again to its primary",
        ]


@pytest.mark.parametrize("declared", [{"fallback": False}, {"max_lag": 0}])
async def test_a_replica_that_is_behind_is_read_if_that_is_wanted(
    pair: Pair, declared: dict[str, Any]
) -> None:
    async with opened(pair, **({"max_lag": MAX_LAG} | declared)) as (primary, replica):
        await write(primary)
        await caught_up(primary, replica)
        async with pair.paused():
            await left_behind(primary, replica)
            assert source(replica) is replica


async def test_a_replica_that_is_down_is_not_read(pair: Pair) -> None:
    nobody = URL.create("postgresql", "postgres", "x", "127.0.0.1", 1, "orders")
    away = nobody.render_as_string(hide_password=False)
    async with opened(pair, url=away) as (primary, replica):
        assert source(replica) is primary
    async with opened(pair, url=away, fallback=False) as (_, replica):
        assert source(replica) is replica


async def test_one_of_several_hosts_may_be_down(pair: Pair) -> None:
    server = pair.replica.url("orders")
    several = server.set(host=None, port=None).update_query_dict(
        {"host": ["127.0.0.1:1", f"127.0.0.1:{server.port}"]}
    )
    async with opened(pair, url=several.render_as_string(hide_password=False)) as (_, replica):
        assert replica.probe.is_up
        async with replica.engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_is_in_recovery()"))


async def test_connections_are_shared_by_the_hosts_and_prefer_replicas(pair: Pair) -> None:
    """The primary is one of the hosts, and gets none while there is a replica."""
    servers = [pair.primary.url("orders"), pair.replica.url("orders")]
    several = (
        servers[0]
        .set(host=None, port=None)
        .update_query_dict({"host": [f"127.0.0.1:{server.port}" for server in servers]})
    )
    url = several.render_as_string(hide_password=False)
    async with opened(pair, url=url, pool_size=4, min_ready=4) as (_, replica):
        assert await roles(replica, 4) == {True}
    primary = Database("primary", "postgresql", url=url, pool_size=4, min_ready=4)
    async with primary.open():
        assert await roles(primary, 4) == {False}


async def roles(database: Database, count: int) -> set[bool]:
    """Whether the servers of `count` connections are replicas."""
    async with AsyncExitStack() as stack:
        found: set[bool] = set()
        for _ in range(count):
            connection = await stack.enter_async_context(database.engine.connect())
            found.add(bool(await connection.scalar(text("SELECT pg_is_in_recovery()"))))
        return found


async def test_a_read_goes_to_the_primary_when_the_replica_fails_it(pair: Pair) -> None:
    """Nobody has noticed yet: neither the probe nor the pool."""
    async with opened(pair) as (primary, replica):
        await write(primary)
        await caught_up(primary, replica)
        fatal = text("SELECT pg_terminate_backend(pg_backend_pid()) WHERE pg_is_in_recovery()")

        assert await replica.reader.scalar(fatal) is None
        assert replica.pool.snapshot().lost == 1
        assert await replica.reader.scalar(text("SELECT pg_is_in_recovery()"))

    async with opened(pair, fallback=False) as (primary, replica):
        with pytest.raises(DBAPIError):
            await replica.reader.scalar(fatal)


async def test_an_error_of_the_statement_is_no_failure_of_the_replica(pair: Pair) -> None:
    async with opened(pair) as (primary, replica):
        with pytest.raises(DBAPIError, match="division by zero"):
            await replica.reader.scalar(text("SELECT 1 / 0"))

        assert primary.pool.snapshot().in_use == 0
        async with replica.reader.stream(text("SELECT pg_is_in_recovery()")) as result:
            assert [row[0] async for row in result] == [True]


async def test_a_reader_of_a_replica_names_who_may_write(pair: Pair) -> None:
    async with opened(pair) as (_, replica):
        with pytest.raises(ReadOnly, match=r"^replica: a reader does not insert.*PrimarySession"):
            await replica.reader.execute(text("INSERT INTO marks VALUES (now())"))


def test_lag_is_the_time_since_the_primary_was_beyond() -> None:
    history = History()
    history.note(10)
    history.note(20)

    assert history.seconds_behind(20) == history.seconds_behind(30) == 0
    assert history.seconds_behind(10) > 0
    assert history.seconds_behind(5) >= history.seconds_behind(10)

    history.note(15)  # Another server was promoted.

    assert history.seconds_behind(15) == 0


# ------------------------------------------------------------------------- reading one's own writes


@asynccontextmanager
async def serving(primary: Database, replica: Database) -> AsyncGenerator[AsyncClient]:
    """Serve two routes: one writes, one says where it would read."""
    app = FastAPI()
    session_of_primary = session_from(primary)
    install(app, Databases(primary, replica))

    @app.post("/marks")
    async def write_mark(session: AsyncSession = session_of_primary) -> None:
        await session.execute(text("INSERT INTO marks VALUES (now())"))

    @app.get("/source")
    async def read_source(session: AsyncSession = session_of_primary) -> str:
        await session.execute(text("SELECT 1"))
        return source(replica).name

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_who_wrote_reads_the_primary_until_the_replica_has_it(pair: Pair) -> None:
    async with (
        opened(pair) as databases,
        serving(*databases) as writer,
        serving(*databases) as other,
    ):
        await write(databases[0])
        await caught_up(*databases)
        async with pair.paused():
            assert (await writer.get("/source")).json() == "replica"

            response = await writer.post("/marks")

            assert "set-cookie" in response.headers
            assert (await writer.get("/source")).json() == "primary"
            assert (await other.get("/source")).json() == "replica"
        await caught_up(*databases)
        response = await writer.get("/source")
        assert response.json() == "replica"
        assert "set-cookie" not in response.headers


async def test_the_cookie_says_a_position_and_no_more(pair: Pair) -> None:
    async with opened(pair) as databases, serving(*databases) as client:
        await write(databases[0])

        header = (await client.post("/marks")).headers["set-cookie"]

        (cookie,) = SimpleCookie(header).values()
        assert cookie.key == "read_after_primary"
        end = await pair.ask(pair.primary, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        assert 0 < int(cookie.value, 16) <= end
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")


@pytest.mark.parametrize(
    "cookie",
    ["", "x", "-1", "F" * 17, "0x5", "G", "read_after_primary", "1;read_after_other=FFFFFFFFFFFF"],
)
async def test_a_cookie_that_is_none_counts_for_nothing(pair: Pair, cookie: str) -> None:
    async with opened(pair) as databases, serving(*databases) as client:
        await caught_up(*databases)

        response = await client.get("/source", headers={"cookie": f"read_after_primary={cookie}"})

        assert response.json() == "replica"


@pytest.mark.parametrize("declared", [{"read_your_writes": False}, {"url": None}])
async def test_no_cookie_where_none_is_of_use(pair: Pair, declared: dict[str, Any]) -> None:
    """Switched off, or a replica that is its primary."""
    if "url" in declared:
        declared = {"url": shown(pair.primary)}
    async with opened(pair, **declared) as databases, serving(*databases) as client:
        await write(databases[0])

        assert "set-cookie" not in (await client.post("/marks")).headers


async def test_a_write_whose_position_cannot_be_asked_is_answered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed is committed; the client reads the primary for a while."""
    monkeypatch.setattr("dbkit.database.replicas.END", text("SELECT no_such_function()"))
    async with opened(pair) as databases, serving(*databases) as client:
        await write(databases[0])

        response = await client.post("/marks")

        assert response.status_code == 200
        await caught_up(*databases)
        assert (await client.get("/source")).json() == "primary"


# --------------------------------------------------------------------------------------- checks


async def test_a_replica_that_takes_writes_is_found(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    primary = Database("primary", "postgresql", url=shown(pair.primary))
    good = Database("replica", "postgresql", replica_of=primary, url=shown(pair.replica))
    bad = Database("copy", "postgresql", replica_of=primary, url=shown(pair.primary, "postgres"))
    borrowing = Database("borrowing", "postgresql", replica_of=primary)

    found = [each async for each in check([primary, good, bad, borrowing])]

    assert [(each.id, each.database) for each in found] == [("replica.W001", "copy")]


async def test_a_primary_that_takes_no_writes_is_found(pair: Pair) -> None:
    class Base(DeclarativeBase):
        pass

    wrong = Database("primary", "postgresql", base=Base, url=shown(pair.replica))

    assert "database.W016" in [each.id async for each in check([wrong], deploy=True)]


@pytest.mark.parametrize("dialect", ["mysql", "sqlite"])
def test_a_replica_on_another_engine_is_refused(dialect: Dialect) -> None:
    primary = Database("primary", dialect)

    with pytest.raises(ValueError, match="replica: only a PostgreSQL is a replica here"):
        Database("replica", dialect, replica_of=primary)
    assert primary.replicas == []
