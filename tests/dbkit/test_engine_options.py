"""What a service adds to its engines: SQLAlchemy's arguments, the setup of each connection."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dbkit import Database, NotConfigured
from dbkit.commands.checks import check
from mariadb import Server
from pooler import pgbouncer
from sqlalchemy import JSON, URL, literal, select, text

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(database_url: URL) -> str:
    return database_url.render_as_string(hide_password=False)


@pytest.fixture(params=["mariadb", "mysql"])
def mysql_url(request: pytest.FixtureRequest) -> str:
    """Make a database on each of both servers."""
    server: Server = request.getfixturevalue(request.param)
    return server.new_database().render_as_string(hide_password=False)


async def floats(connection: Any) -> None:
    """Have asyncpg return numeric as float."""
    await connection.set_type_codec(
        "numeric", schema="pg_catalog", encoder=str, decoder=float, format="text"
    )


async def test_each_connection_is_set_up_before_its_first_use(url: str) -> None:
    database = Database(
        "primary", "postgresql", url=url, on_connect=floats, pool_size=3, min_ready=3
    )

    async with database.open():
        held = [await database.engine.connect() for _ in range(3)]
        found = [await each.scalar(text("SELECT 1.5::numeric")) for each in held]
        for each in held:
            await each.close()
        read = await database.reader.scalar(text("SELECT 1.5::numeric"))
        written = await database.execute(text("SELECT 1.5::numeric"))

        assert [*found, read, written.scalar_one()] == [1.5] * 5
        assert {type(each) for each in [*found, read]} == {float}
        assert database.probe.is_up


async def test_without_a_function_nothing_is_set_up(url: str) -> None:
    async with Database("primary", "postgresql", url=url).open() as database:
        assert type(await database.reader.scalar(text("SELECT 1.5::numeric"))) is Decimal


async def test_sqlite_is_set_up_too(tmp_path: Path) -> None:
    async def shout(connection: Any) -> None:
        await connection.create_function("shout", 1, str.upper)

    url = f"sqlite:///{tmp_path / 'file.sqlite3'}"
    async with Database("primary", "sqlite", url=url, on_connect=shout).open() as database:
        async with database.session() as session:
            assert await session.scalar(text("SELECT shout('a')")) == "A"
        assert await database.reader.scalar(text("SELECT shout('b')")) == "B"


async def test_mysql_is_set_up_and_in_no_transaction(mysql_url: str) -> None:
    async def greet(connection: Any) -> None:
        async with connection.cursor() as cursor:
            await cursor.execute("SET @greeting = 'hello'")
            await cursor.execute("SELECT count(*) FROM information_schema.tables")

    database = Database("primary", "mysql", url=mysql_url, on_connect=greet)
    async with database.open():
        assert await database.reader.scalar(text("SELECT @greeting")) == "hello"
        async with database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            assert not driver.get_transaction_status()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELECT nothing", 'column "nothing" does not exist'),
        ("BEGIN", "on_connect left a transaction open"),
    ],
)
async def test_a_setup_that_fails_leaves_no_connection(
    url: str, database_url: URL, statement: str, said: str
) -> None:
    async def fail(connection: Any) -> None:
        await connection.execute(statement)

    database = Database("primary", "postgresql", url=url, on_connect=fail, min_ready=0)
    watching = Database("other", "postgresql", url=url)
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    async with watching.open() as other, database.open():
        with pytest.raises(Exception, match=said):
            await database.reader.scalar(text("SELECT 1"))
        assert not database.probe.is_up
        # The other's probe and reader.
        assert await other.reader.scalar(text(count)) == 2

    found = [each async for each in check([database]) if each.id == "database.E005"]
    assert [each.text for each in found] == [f"on_connect fails: {said}"]


async def test_what_a_caller_sets_does_not_outlast_the_setup(url: str) -> None:
    async def choose(connection: Any) -> None:
        await connection.execute("SET search_path = chosen")

    database = Database("primary", "postgresql", url=url, on_connect=choose, pool_size=1)

    async with database.open():
        for _ in range(2):
            async with database.session() as session:
                assert await session.scalar(text("SHOW search_path")) == "chosen"
                await session.execute(text("SET search_path = another"))
        async with database.driver_connection() as driver:
            assert await driver.fetchval("SHOW search_path") == "chosen"
            await driver.execute("RESET ALL")
        assert await database.reader.scalar(text("SHOW search_path")) == "chosen"


async def test_a_type_is_registered_once_its_extension_is_there(url: str) -> None:
    async def register(connection: Any) -> None:  # As pgvector.asyncpg.register_vector does.
        await connection.set_type_codec(
            "vector", schema="public", encoder=str, decoder=json.loads, format="text"
        )

    database = Database("primary", "postgresql", url=url, on_connect=register)

    before = [each.text async for each in check([database]) if each.id == "database.E005"]
    async with Database("plain", "postgresql", url=url).open() as plain:
        await plain.execute(text("CREATE EXTENSION vector"))
    after = [each.text async for each in check([database]) if each.id == "database.E005"]

    assert (before, after) == (["on_connect fails: unknown type: public.vector"], [])
    async with database.open():
        assert await database.reader.scalar(text("SELECT '[1,2]'::vector")) == [1, 2]


async def test_a_replica_has_what_its_primary_has(url: str) -> None:
    primary = Database(
        "primary",
        "postgresql",
        url=url,
        on_connect=floats,
        engine_options={"json_serializer": json.dumps},
        server_settings={"search_path": "app,public"},
    )
    replica = Database("replica", "postgresql", replica_of=primary, url=url)

    assert replica.on_connect is primary.on_connect
    assert replica.engine_options == primary.engine_options
    assert replica.read_settings({}).server_settings == {"search_path": "app,public"}
    async with primary.open(), replica.open():
        assert await replica.reader.scalar(text("SHOW search_path")) == "app,public"


async def test_options_are_those_of_the_engine(url: str) -> None:
    def serialize(_: object) -> str:
        return '{"by": "ours"}'

    database = Database(
        "primary",
        "postgresql",
        url=url,
        engine_options={
            "json_serializer": serialize,
            "query_cache_size": 7,
            "connect_args": {"statement_cache_size": 8},
        },
    )

    async with database.open(), database.session() as session:
        assert await session.scalar(select(literal({"by": "us"}, JSON))) == {"by": "ours"}


@pytest.mark.parametrize(
    ("dialect", "options", "said"),
    [
        (
            "postgresql",
            {"pool_size": 5},
            (
                "engine_options may not hold pool_size: declare pool_size= beside engine_options,"
                " or set ORDERS_DATABASE_POOL_SIZE"
            ),
        ),
        ("postgresql", {"pool_pre_ping": True}, "the pool pings what was unused for PING_AFTER"),
        ("postgresql", {"poolclass": None}, "may not hold poolclass: the kit has its own"),
        ("mysql", {"isolation_level": "SERIALIZABLE"}, "or transaction_isolation"),
        (
            "postgresql",
            {"execution_options": {"isolation_level": "AUTOCOMMIT"}},
            "execution_options may not hold isolation_level: set default_transaction_isolation",
        ),
        ("postgresql", {"connect_args": {"timeout": 3}}, "connect_args may not hold timeout: set"),
    ],
)
def test_what_the_kit_sets_itself_is_refused_with_the_way(
    dialect: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Database("orders", dialect, engine_options=options)


SETTINGS = r"-c search_path=app,public -c work_mem=5MB -c orders.note=two\ words"


@pytest.mark.parametrize("where", ["variable", "url", "declared"])
async def test_settings_of_the_server_hold_on_every_connection(
    url: str, database_url: URL, where: str
) -> None:
    declared: Any = {"url": url}
    variables: dict[str, str] = {}
    if where == "url":
        with_options = database_url.update_query_dict({"options": SETTINGS})
        declared = {"url": with_options.render_as_string(hide_password=False)}
    elif where == "variable":
        variables = {"PRIMARY_DATABASE_SERVER_SETTINGS": SETTINGS}
    else:
        declared["server_settings"] = {
            "search_path": "app,public",
            "work_mem": "5MB",
            "orders.note": "two words",
        }
    database = Database("primary", "postgresql", **declared)

    async with database.open(database.read_settings(variables)):
        for setting, value in (
            ("search_path", "app,public"),
            ("work_mem", "5MB"),
            ("orders.note", "two words"),
            ("statement_timeout", "30s"),
        ):
            assert await database.reader.scalar(text(f"SHOW {setting}")) == value


async def test_the_name_of_the_application_is_as_set(url: str, database_url: URL) -> None:
    named = database_url.update_query_dict({"application_name": "orders-web"})
    url = named.render_as_string(hide_password=False)

    async with Database("primary", "postgresql", url=url).open() as database:
        assert await database.reader.scalar(text("SHOW application_name")) == "orders-web"


@pytest.mark.parametrize("setting", ["serch_path=app", "work_mem=much"])
async def test_a_setting_that_the_server_refuses_names_its_variable(url: str, setting: str) -> None:
    database = Database("primary", "postgresql", url=url)
    settings = database.read_settings({"PRIMARY_DATABASE_SERVER_SETTINGS": setting})

    async with database.open(settings):
        with pytest.raises(Exception, match="check PRIMARY_DATABASE_SERVER_SETTINGS"):
            await database.reader.scalar(text("SELECT 1"))


async def test_sqlite_takes_pragmas_and_refuses_those_that_there_are_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'file.sqlite3'}"
    database = Database("primary", "sqlite", url=url)
    settings = database.read_settings({"PRIMARY_DATABASE_SERVER_SETTINGS": "cache_size=-5000"})
    async with database.open(settings):
        assert await database.reader.scalar(text("PRAGMA cache_size")) == -5000

    settings = database.read_settings({"PRIMARY_DATABASE_SERVER_SETTINGS": "cash_size=5"})
    async with database.open(settings):
        with pytest.raises(Exception, match="there is no PRAGMA cash_size"):
            await database.reader.scalar(text("SELECT 1"))


async def test_mysql_takes_variables_of_a_session(mysql_url: str) -> None:
    settings = "group_concat_max_len=4321 character_set_results=utf8mb4"
    database = Database("primary", "mysql", url=mysql_url)

    async with database.open(
        database.read_settings({"PRIMARY_DATABASE_SERVER_SETTINGS": settings})
    ):
        assert await database.reader.scalar(text("SELECT @@group_concat_max_len")) == 4321
        assert await database.reader.scalar(text("SELECT @@time_zone")) == "+00:00"


async def test_behind_pgbouncer_only_what_it_tracks_can_be_set(
    postgres: Any, database_url: URL
) -> None:
    with pgbouncer(postgres.url("")) as pooler:
        url = pooler.set(database=database_url.database).render_as_string(hide_password=False)
        database = Database("primary", "postgresql", url=url, pgbouncer=True)

        settings = database.read_settings(
            {"PRIMARY_DATABASE_SERVER_SETTINGS": "timezone=Asia/Tokyo application_name=web"}
        )
        async with database.open(settings):
            assert await database.reader.scalar(text("SHOW timezone")) == "Asia/Tokyo"
        with pytest.raises(NotConfigured) as caught:
            database.read_settings({"PRIMARY_DATABASE_SERVER_SETTINGS": "search_path=app"})

    assert caught.value.faults == (
        (
            "PRIMARY_DATABASE_SERVER_SETTINGS: search_path cannot be set with"
            " PRIMARY_DATABASE_PGBOUNCER=true: the next transaction may be on another connection to"
            " the server; ALTER ROLE ... SET search_path = ... holds for all"
        ),
    )
