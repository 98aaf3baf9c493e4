"""System checks: stable ids, a text and a hint for each finding."""

from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from dbkit import Database, Databases, session_from
from dbkit.commands import migrations
from dbkit.commands.checks import Finding, check, check_scopes, check_sources, check_variables
from dbkit.settings.urls import Dialect
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import URL, Column, ForeignKey, String, Text, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def declare(name: str, *, url: str, dialect: Dialect = "postgresql") -> Database:
    class Base(DeclarativeBase):
        pass

    class Thing(Base):  # pyright: ignore[reportUnusedClass] -- its table is in the metadata
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)

    return Database(name, dialect, base=Base, url=url)


@pytest.fixture
def url(database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work in an empty folder, beside an empty database."""
    monkeypatch.chdir(tmp_path)
    return database_url.render_as_string(hide_password=False)


async def findings(*databases: Database) -> list[Finding]:
    return [finding async for finding in check(databases)]


async def test_a_migrated_database_has_no_findings(url: str) -> None:
    database = declare("orders", url=url)
    await migrations.make(database, "create things")
    await migrations.migrate(database)

    assert await findings(database) == []


async def test_every_fault_of_the_settings_is_an_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DATABASE_POOL_SIZE", "many")
    monkeypatch.setenv("ORDERS_DATABASE_POOLSIZE", "3")

    found = await findings(declare("orders", url=url))

    assert [(each.id, each.database, each.text.partition(":")[0]) for each in found] == [
        ("database.E001", "orders", "ORDERS_DATABASE_POOLSIZE"),
        ("database.E001", "orders", "ORDERS_DATABASE_POOL_SIZE"),
    ]
    assert all(each.is_error for each in found)


async def test_a_server_that_is_down_is_an_error_and_the_next_database_is_checked(
    url: str,
) -> None:
    down = declare("orders", url="postgresql://user:s3cret@127.0.0.1:1/name")
    up = declare("analytics", url=url)

    found = await findings(down, up)

    assert [(each.id, each.database) for each in found] == [
        ("database.E002", "orders"),
        ("database.E002", "analytics"),
    ]
    assert found[0].text == (
        "cannot connect to postgresql://user:***@127.0.0.1:1/name: nothing listens there;"
        " check ORDERS_DATABASE_URL"
    )
    assert found[1].text == (
        "no folder migrations/analytics; run `manage.py makemigrations --database analytics`"
    )


async def test_one_database_for_two_histories_is_an_error_however_it_is_written(
    url: str, database_url: URL
) -> None:
    again = database_url.set(host="localhost", query={"sslmode": "disable"})
    other = declare("analytics", url=again.render_as_string(hide_password=False))

    found = await findings(declare("orders", url=url), other)

    assert found[-1] == Finding(
        "database.E003",
        "analytics",
        "is the same database as orders: their migrations would mix",
        "set ANALYTICS_DATABASE_URL to a database of its own, or to a search_path of its own",
    )


async def test_schemas_of_one_database_are_databases_of_their_own(url: str) -> None:
    """What counts is where migrations are noted, also in a schema that is not there yet."""
    orders = declare("orders", url=url)
    await migrations.make(orders)
    await migrations.migrate(orders)
    async with orders.open(), orders.engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA analytics"))

    found = await findings(
        orders,
        declare("analytics", url=f"{url}?search_path=analytics"),
        declare("audit", url=f"{url}?search_path=audit"),
        declare("again", url=f"{url}?options=-c%20search_path%3Danalytics"),
        declare("shared", url=f"{url}?search_path=analytics,public"),
    )

    same = [(each.database, each.text) for each in found if each.id == "database.E003"]
    assert same == [
        ("again", "is the same database as analytics: their migrations would mix"),
        ("shared", "is the same database as orders: their migrations would mix"),
    ]


async def test_one_file_for_two_histories_is_an_error(url: str, tmp_path: Path) -> None:
    found = await findings(
        declare("orders", url="sqlite:///one.sqlite3", dialect="sqlite"),
        declare("audit", url=f"sqlite:///{tmp_path}/one.sqlite3", dialect="sqlite"),
    )

    assert [(each.id, each.database) for each in found][-1] == ("database.E003", "audit")


async def test_a_database_that_somebody_else_migrates_may_be_the_same(url: str) -> None:
    reports = Database("reports", "postgresql", url=url)

    assert "database.E003" not in {
        each.id for each in await findings(declare("orders", url=url), reports)
    }


async def test_hosts_in_the_query_tell_databases_apart(url: str) -> None:
    found = await findings(
        declare("orders", url="postgresql://u@/n?host=/nowhere/one"),
        declare("analytics", url="postgresql://u@/n?host=/nowhere/two"),
    )

    assert {each.id for each in found} == {"database.E002"}


async def test_a_pending_migration_is_a_warning_with_its_command(url: str) -> None:
    database = declare("orders", url=url)
    path = await migrations.make(database, "create things")
    assert path is not None
    (migration,) = await migrations.history(database)

    assert await findings(database) == [
        Finding(
            "database.W001",
            "orders",
            f"migrations not applied: 1, from {migration.revision} on",
            "run `manage.py migrate --database orders`",
        )
    ]


async def test_models_without_a_migration_are_a_warning_with_its_command(url: str) -> None:
    database = declare("orders", url=url)
    await migrations.make(database, "nothing yet", empty=True)
    await migrations.migrate(database)

    assert await findings(database) == [
        Finding(
            "database.W002",
            "orders",
            "the models ask for what no migration makes: add table things",
            "run `manage.py makemigrations --database orders`",
        )
    ]


async def test_what_the_models_ask_for_is_said_by_table_and_column(url: str) -> None:
    database = declare("orders", url=url)
    assert database.base is not None
    things = database.base.metadata.tables["things"]
    things.append_column(Column("size", String(20), nullable=False, server_default="L", index=True))
    things.append_column(Column("colour", Text, unique=True))
    things.append_column(Column("part_of", ForeignKey("things.id", name="fk_things")))
    await migrations.make(database, "nothing yet", empty=True)
    await migrations.migrate(database)
    async with migrations.connect(database) as connection:
        await connection.execute(text("CREATE TABLE things (id serial PRIMARY KEY, size text)"))
        await connection.execute(text("CREATE TABLE remains (id integer)"))
        await connection.commit()

    changes = [
        "add column things.colour",
        "add column things.part_of",
        "modify type of things.size from TEXT to VARCHAR(20)",
        "modify nullable of things.size from True to False",
        "modify default of things.size from None to L",
        "add index ix_things_size of things",
        "add constraint (unnamed) of things",
        "add fk fk_things of things",
    ]
    assert (await migrations.compare(database)).changes == changes
    found, left = await findings(database)
    assert found.text == (
        f"the models ask for what no migration makes: {', '.join(changes[:5])}, 3 more"
    )
    assert (left.id, left.text) == (
        "migrations.W012",
        "neither the models nor a migration name table remains",
    )


@pytest.mark.parametrize("eager", ["auto", False, True])
async def test_columns_that_a_write_leaves_unread_are_a_warning(
    url: str, eager: Literal["auto", True, False]
) -> None:
    class Base(DeclarativeBase):
        __mapper_args__: ClassVar[Any] = {"eager_defaults": eager}

    class Thing(Base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)
        made: Mapped[datetime] = mapped_column(server_default=func.now())
        changed: Mapped[datetime] = mapped_column(onupdate=func.now())
        counted: Mapped[int] = mapped_column(onupdate=lambda: 1)

    assert Thing
    database = Database("orders", "postgresql", base=Base, url=url)
    found = [each async for each in check([database]) if each.id == "models.W001"]

    columns = {"auto": "things.changed", False: "things.changed, things.made", True: None}[eager]
    assert [each.text.rpartition(": ")[2] for each in found] == [each for each in [columns] if each]


def test_a_variable_with_a_misspelt_prefix_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANALITICS_DATABASE_URL", "postgresql://user:s3cret@h/n")
    monkeypatch.setenv("ANALYTICS_DATABASE_PORT", "tcp://10.0.0.1:5432")
    databases = Databases(
        Database("primary", "postgresql", env_prefix="DATABASE_"),
        Database("analytics", "postgresql"),
    )

    assert check_variables(databases) == [
        Finding(
            "database.W003",
            "analytics",
            "ANALITICS_DATABASE_URL is no setting",
            "did you mean ANALYTICS_DATABASE_URL?",
        )
    ]


OWN = """
engine = create_async_engine("sqlite+aiosqlite://")


async def add(session: AsyncSession, items: list[str]) -> None:
    await session.commit()


class Repository:
    async def add(self) -> None:
        await self.session.commit()


async def by_itself() -> None:
    async with AsyncSession(engine) as session:
        await session.commit()
"""


def test_what_the_kit_does_already_is_found_in_the_services_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app" / "items").mkdir(parents=True)
    (tmp_path / "app" / "items" / "own.py").write_text(OWN)
    (tmp_path / "app" / "old.py").write_bytes(b"print 'no Python of this version'\xff")

    found = list(check_sources(tmp_path / "app"))

    assert [(each.id, each.text.rpartition(": ")[2]) for each in found] == [
        ("application.W002", "app/items/own.py:2"),
        ("application.W003", "app/items/own.py:6, app/items/own.py:11"),
    ]


def test_sessions_that_are_committed_after_the_response_are_found_wherever_their_routes_are() -> (
    None
):
    database = Database("primary", "sqlite", url="sqlite:///shop")
    router, items = APIRouter(prefix="/shop"), APIRouter(prefix="/items")
    app, mounted = FastAPI(), FastAPI()
    for each in (app, items, mounted):
        late, in_time = Depends(database.request_session), session_from(database)
        each.add_api_route("/late", lambda: None, dependencies=[late])
        each.add_api_route("/in-time", lambda: None, dependencies=[in_time])
    router.include_router(items)
    app.include_router(router)
    app.mount("/v1", mounted)

    (found,) = check_scopes(app)

    assert found.id == "application.W004"
    assert found.text.endswith(": /late, /shop/items/late, /v1/late")
