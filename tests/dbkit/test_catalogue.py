"""A catalogue of models goes through migrations, checks and sessions, on each engine."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalogue
import pytest
from conftest import KIT
from dbkit import Database
from dbkit.commands import migrations
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from dbkit.settings.urls import Dialect
from debian import find_postgresql
from sqlalchemy import inspect, text

ENGINES: dict[str, Dialect] = {
    "postgresql": "postgresql",
    "pgbouncer": "postgresql",
    "contrib": "postgresql",
    "mariadb": "mysql",
    "mysql": "mysql",
    "sqlite": "sqlite",
}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.weekly) if name == "pgbouncer" else name
        for name in ENGINES
    ]
)
def engine(request: pytest.FixtureRequest) -> str:
    """Name the engine: on `contrib`, PostgreSQL has its extensions; `pgbouncer` is before it."""
    return request.param


@pytest.fixture(scope="module")
def contrib(fast_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Run Debian's PostgreSQL, whose extensions the embedded one lacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDDED_POSTGRES_BIN", str(find_postgresql()))
        with EmbeddedPostgres(fast_directory / "debian", settings=TEST_SETTINGS) as server:
            server.create_database("shop")
            yield server


@pytest.fixture
def models(engine: str) -> catalogue.Catalogue:
    """Declare what the engine has."""
    if ENGINES[engine] == "postgresql":
        return catalogue.on_postgresql(contrib=engine == "contrib")
    return catalogue.on_each_engine(ENGINES[engine], expressions=engine != "mariadb")


@pytest.fixture
def database(
    engine: str,
    models: catalogue.Catalogue,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Database:
    """Declare an empty database, in a folder without migrations."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(KIT.parents[1] / "ruff.toml", tmp_path)  # As a service has it.
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path / 'shop.sqlite3'}"
    elif engine == "contrib":
        url = request.getfixturevalue("contrib").url("shop").render_as_string(hide_password=False)
    elif engine == "pgbouncer":
        direct = request.getfixturevalue("database_url")
        url = request.getfixturevalue("pooler").set(database=direct.database)
        url = url.render_as_string(hide_password=False)
    elif engine == "postgresql":
        url = request.getfixturevalue("database_url").render_as_string(hide_password=False)
    else:
        server: Any = request.getfixturevalue(engine)
        url = server.new_database().render_as_string(hide_password=False)
    pooled = engine == "pgbouncer"
    return Database("shop", ENGINES[engine], base=models.base, url=url, pgbouncer=pooled)


async def remains(database: Database) -> set[str]:
    """Name the tables and types that a database has."""
    async with database.open(), database.engine.connect() as connection:
        found = set(await connection.run_sync(lambda each: inspect(each).get_table_names()))
        if database.dialect == "postgresql":
            types = text(
                "SELECT typname FROM pg_type JOIN pg_namespace n ON n.oid = typnamespace"
                " WHERE typtype = 'e' AND nspname NOT LIKE 'pg\\_%'"
            )
            found |= set(await connection.scalars(types))
    return found


def ruff(*arguments: str | Path) -> None:
    """Run ruff as a service does."""
    command = [sys.executable, "-m", "ruff", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def pyright(folder: Path) -> None:
    """Check migrations as a service does, which is strict."""
    of_service = KIT.parents[1] / "pyrightconfig.json.jinja"
    config = json.loads(of_service.read_text().replace("{{ python_version }}", "3.11"))
    (folder / "pyrightconfig.json").write_text(json.dumps(config | {"include": ["migrations"]}))
    (folder / "src").mkdir()
    shutil.copy(str(catalogue.__file__), folder / "src")  # A migration imports a type of it.
    command = [Path(sys.executable).with_name("pyright"), "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_it_goes_up_down_and_up_again_and_nothing_differs(
    database: Database, models: catalogue.Catalogue, engine: str, tmp_path: Path
) -> None:
    said: list[str] = []
    path = await migrations.make(database, on_note=said.append)
    assert path is not None
    assert said[0] == "wrote migrations/shop/0001_create_animals.py"
    assert not [each for each in said if "migrations.W" in each]
    for arguments in (["check", "--ignore", "INP001"], ["format", "--check"]):
        await asyncio.to_thread(ruff, *arguments, path)
    if engine == "postgresql":  # It has most of the types.
        await asyncio.to_thread(pyright, tmp_path)

    await migrations.migrate(database)
    await migrations.migrate(database, "zero")
    assert await remains(database) == {"alembic_version"}
    await migrations.migrate(database)

    assert await migrations.compare(database) == migrations.Differences([], [], [], [])
    assert await migrations.make(database) is None
    await write_and_read(database, models)
    assert await migrations.make(database) is None


async def write_and_read(database: Database, models: catalogue.Catalogue) -> None:
    """Write all rows, and read them by a session and by a reader."""
    async with database.open():
        async with database.session() as session:
            written = [values(row) for row in models.rows]
            for row in models.rows:
                session.add(row)
                await session.flush()
            keys: list[Any] = [(type(row), inspect(row).identity) for row in models.rows]
        async with database.session() as session:
            read = [await session.get_one(kind, key) for kind, key in keys]
            for row, expected in zip(read, written, strict=True):
                assert values(row).items() >= expected.items()
        for (kind, key), expected in zip(keys, written, strict=True):
            row: Any = await database.reader.get(kind, key)
            assert values(row).items() >= expected.items()
        kind, key = keys[0]
        async with database.session() as session:
            first: Any = await session.get_one(kind, key)
            first.data["b"] = 2  # Seen as a change.
        async with database.session() as session:
            first = await session.get_one(kind, key)
            assert first.data == {"a": [1], "b": 2}
            assert (first.version, first.twice, first.is_paid) == (2, 6, True)
            assert first.updated_at is not None


def values(row: Any) -> dict[str, Any]:
    """Read the attributes of a row that were set in Python."""
    state: Any = inspect(row)
    names = {each.key for each in state.mapper.column_attrs}
    return {name: getattr(row, name) for name in names & state.dict.keys()}
