"""Who is to blame for an error, and what the log has of it: real statements on each engine.

A client is blamed (409, 422) for what a value of its request can have caused, and for nothing else.
"""

import datetime as dt
import enum
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dbkit import TYPES, Database, Databases, install
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from mariadb import MariaDB, MySQL
from sqlalchemy import Enum, ForeignKey, SmallInteger, String, Uuid, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SECRET = "hunter2"  # noqa: S105 -- what must not be shown


HASHES = "".join(sha256(bytes([n])).hexdigest() for n in range(100))
"""What is not compressed to fit into an index."""


class Mood(enum.Enum):
    """The database knows the first one only."""

    GOOD = "good"
    BAD = "bad"


class Base(DeclarativeBase):
    """Of the tables below."""

    type_annotation_map = TYPES


class Pet(Base):
    """A row with a column of each kind that can be wrong."""

    __tablename__ = "pets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(9), unique=True)
    age: Mapped[int | None] = mapped_column(SmallInteger)
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, name="mood"))
    born: Mapped[dt.datetime | None]
    tag: Mapped[UUID | None] = mapped_column(Uuid)
    parent: Mapped[int | None] = mapped_column(ForeignKey("pets.id"))


MOOD = {
    "postgresql": "mood",
    "mysql": "enum('GOOD')",
    "sqlite": "varchar(9) CONSTRAINT mood CHECK (mood = 'GOOD')",
}
MOMENT = {"postgresql": "timestamptz", "mysql": "datetime(6)", "sqlite": "datetime"}
TAG = {"postgresql": "uuid", "mysql": "char(32)", "sqlite": "char(32)"}


def schema(dialect: str) -> list[str]:
    """Write the table as an older migration made it."""
    return [
        *(["CREATE TYPE mood AS ENUM ('GOOD')"] if dialect == "postgresql" else []),
        (
            "CREATE TABLE pets (id bigint PRIMARY KEY, name varchar(9) NOT NULL,"
            f" age smallint, mood {MOOD[dialect]}, born {MOMENT[dialect]} NULL, tag {TAG[dialect]},"
            " parent bigint, CONSTRAINT uq_pets_name UNIQUE (name),"
            " CONSTRAINT ck_pets_age CHECK (age >= 0),"
            " CONSTRAINT fk_pets_parent FOREIGN KEY (parent) REFERENCES pets (id))"
        ),
        f"INSERT INTO pets (id, name) VALUES (1, '{SECRET}')",  # noqa: S608 -- ours
    ]


Statement = tuple[Any, Mapping[str, Any]]


def pet(**values: Any) -> Statement:
    """Insert a pet."""
    return insert(Pet), {"id": 2, "name": "Rex", **values}


def written(sql: str, **values: Any) -> Statement:
    """Run what somebody wrote by hand."""
    return text(sql), values


OURS, CONFLICT, WRONG = 500, 409, 422

# What is run, the status where the request has input, and where it is a GET that has none.
CASES: dict[str, tuple[Statement, int, int]] = {
    "unique": (pet(name=SECRET), CONFLICT, OURS),
    "foreign_key": (pet(parent=77), CONFLICT, OURS),
    "check": (pet(age=-7), WRONG, OURS),
    "null": (written("INSERT INTO pets (id, name) VALUES (2, :name)", name=None), WRONG, OURS),
    "too_large": (pet(id=2**70), WRONG, OURS),
    "surrogate": (pet(name="\ud800"), WRONG, OURS),
    "naive": (pet(born=dt.datetime(2026, 1, 1)), WRONG, OURS),  # noqa: DTZ001 -- the case
}
POSTGRESQL: dict[str, tuple[Statement, int, int]] = {
    "too_long": (pet(name=SECRET * 2), WRONG, OURS),
    "out_of_range": (pet(age=2**15), WRONG, OURS),
    "nul": (pet(name="\0"), WRONG, OURS),
    "no_uuid": (written("SELECT CAST(:it AS uuid)", it=SECRET), WRONG, OURS),
    "label_of_the_client": (pet(mood=SECRET), WRONG, OURS),
    "cast_of_a_value": (
        (select(func.to_date(func.concat("", SECRET), "YYYY")), {}),
        WRONG,
        OURS,
    ),
    # What no input is made into.
    "text_for_a_number": (pet(id="7"), OURS, OURS),
    "number_for_a_text": (pet(name=7), OURS, OURS),
    "undefined_type": (written("SELECT :it", it=7), OURS, OURS),
    # What is computed, or stored.
    "division": (written("SELECT 1 / CAST(:n AS int)", n=0), OURS, OURS),
    "cast_of_what_is_stored": (
        written("SELECT CAST(name AS int) FROM pets WHERE id = :id", id=1),
        OURS,
        OURS,
    ),
    "no_parameters": (written(f"SELECT CAST('{SECRET}' AS int)"), OURS, OURS),
    "field_too_long": (written("SELECT repeat('x', 1100000000)"), OURS, OURS),
    # What a migration lacks.
    "label_of_the_model": (pet(mood=Mood.BAD), OURS, OURS),
    "column_of_the_database": ((insert(Pet), {"id": 2, "name": "Rex"}), OURS, OURS),
    # Limits.
    "index_row": (written("INSERT INTO words VALUES (:it)", it=HASHES), WRONG, OURS),
    "too_many": ((select(Pet.id).where(Pet.id.in_(range(40_000))), {}), WRONG, OURS),
}
MYSQL: dict[str, tuple[Statement, int, int]] = {
    "too_long": (pet(name=SECRET * 2), WRONG, OURS),
    "out_of_range": (pet(age=2**15), WRONG, OURS),
    "not_a_number": (pet(id=float("nan")), WRONG, OURS),
    "no_number": (
        written("INSERT INTO pets (id, name) VALUES (:id, 'Rex')", id=SECRET),
        WRONG,
        OURS,
    ),
    "label_of_the_client": (pet(mood=SECRET), WRONG, OURS),
    "division": (
        written("INSERT INTO pets (id, name) SELECT 1 / :n, 'Rex'", n=0),
        OURS,
        OURS,
    ),
    "cast_of_what_is_stored": (
        written("INSERT INTO pets (id, name) SELECT CAST(name AS int), 'Rex' FROM pets"),
        OURS,
        OURS,
    ),
    "label_of_the_model": (pet(mood=Mood.BAD), OURS, OURS),
    "column_of_the_database": ((insert(Pet), {"id": 2, "name": "Rex"}), OURS, OURS),
}
SQLITE: dict[str, tuple[Statement, int, int]] = {
    "object": (written("SELECT :it", it=Base), OURS, OURS),
    "too_many": ((select(Pet.id).where(Pet.id.in_(range(300_000))), {}), WRONG, OURS),
}
EACH = {"postgresql": POSTGRESQL, "mysql": MYSQL, "sqlite": SQLITE}
PREPARED = {
    "column_of_the_database": [
        "ALTER TABLE pets ADD COLUMN owner varchar(9) DEFAULT 'me' NOT NULL",
        "ALTER TABLE pets ALTER COLUMN owner DROP DEFAULT",
    ],
    "index_row": ["CREATE TABLE words (word text PRIMARY KEY)"],
}


class Service:
    """An application whose routes run one case each, with and without input."""

    def __init__(self, database: Database) -> None:
        self.database = database
        databases = Databases(database)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
            async with databases.open():
                yield

        self.app = FastAPI(lifespan=lifespan)
        install(self.app, databases)
        transport = ASGITransport(self.app, raise_app_exceptions=False)
        self.client = AsyncClient(transport=transport, base_url="http://test")
        for name, (statement, _, _) in (CASES | EACH[database.dialect]).items():
            self.add_route(name, *statement)

    def add_route(self, name: str, statement: Any, values: Mapping[str, Any]) -> None:
        """Add two routes that run a statement: one that has input, and one that has none."""

        async def fail() -> None:
            async with self.database.session() as session:
                await session.execute(statement, values)

        async def fail_for(key: int) -> None:
            await fail()

        self.app.add_api_route(f"/{name}", fail)
        self.app.add_api_route(f"/{name}/{{key}}", fail_for, methods=["GET", "POST"])


@pytest.fixture(params=["postgresql", "mariadb", "mysql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    dialect = "mysql" if request.param == "mariadb" else request.param
    url = f"sqlite:///{tmp_path / 'pets.sqlite3'}"
    if request.param == "postgresql":
        found = request.getfixturevalue("database_url")
        url = found.render_as_string(hide_password=False)
    elif dialect == "mysql":
        server: MariaDB | MySQL = request.getfixturevalue(request.param)
        url = server.new_database().render_as_string(hide_password=False)
    return Database("pets", dialect, base=Base, url=url)


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Service]:
    service = Service(database)
    async with service.app.router.lifespan_context(service.app), service.client:
        async with service.database.session() as session:
            for statement in schema(database.dialect):
                await session.execute(text(statement))
        yield service


async def test_a_client_is_blamed_for_what_its_input_can_have_caused(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbkit")
    wrong: list[Any] = []
    for name, (_, with_input, without) in (CASES | EACH[service.database.dialect]).items():
        if name in PREPARED:
            async with service.database.session() as session:
                for statement in PREPARED[name]:
                    await session.execute(text(statement))
        caplog.clear()
        found = [
            (await service.client.post(f"/{name}/1")).status_code,
            (await service.client.get(f"/{name}/1")).status_code,
            (await service.client.get(f"/{name}")).status_code,
        ]
        if found != [with_input, with_input, without]:
            wrong.append((name, found, with_input, without))
        logged = [each for each in caplog.records if each.name == "dbkit.exception_handlers"]
        assert len(logged) == 3, name
        assert all(SECRET not in each.getMessage() + str(vars(each)) for each in logged)
        assert all("test_failures.py:" in each.getMessage() for each in logged)
    assert wrong == []


async def test_what_a_migration_would_make_is_named_as_missing(database: Database) -> None:
    async def notes(statement: Any) -> str:
        with pytest.raises(DBAPIError) as caught:
            await database.reader.execute(statement)
        return "".join(getattr(caught.value, "__notes__", ()))

    async with database.open():
        assert "makemigrations --database pets" in await notes(select(Pet))
        async with database.session() as session:
            await session.execute(text("CREATE TABLE pets (id bigint PRIMARY KEY)"))
        assert "makemigrations --database pets" in await notes(select(Pet))
        assert await notes(text("SELECT nothing FROM pets")) == ""
        assert await notes(text("SELECT id FROM elsewhere")) == ""


@pytest.fixture(params=["mariadb", "mysql"])
def small_packets(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: MariaDB | MySQL = request.getfixturevalue(request.param)
    ((before,),) = server.run("SELECT @@GLOBAL.max_allowed_packet")
    server.run(f"SET GLOBAL max_allowed_packet = {2 << 20}")
    url = server.new_database().render_as_string(hide_password=False)
    yield Database("pets", "mysql", url=url, pool_size=1)
    server.run(f"SET GLOBAL max_allowed_packet = {before}")


async def test_what_no_packet_holds_is_422_and_keeps_its_connection(
    small_packets: Database,
) -> None:
    service = Service(small_packets)
    add = text("INSERT INTO words VALUES (:word)")
    for name, size in (("fits", 3 << 19), ("does_not", 3 << 20), ("escaped", 3 << 19)):
        service.add_route(name, add, {"word": ("'" if name == "escaped" else "x") * size})
    async with service.app.router.lifespan_context(service.app), service.client:
        async with small_packets.session() as session:
            await session.execute(text("CREATE TABLE words (word longtext)"))
        before = await small_packets.reader.scalar(text("SELECT connection_id()"))
        for name, status in (("fits", 200), ("does_not", 422), ("escaped", 422)):
            response = await service.client.post(f"/{name}/1")
            assert (name, response.status_code) == (name, status)
        assert response.json()["detail"][0]["msg"] == "a value is too large"
        assert await small_packets.reader.scalar(text("SELECT connection_id()")) == before
