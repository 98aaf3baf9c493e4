"""`manage.py inspectdb`: models for a database that is there already."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from alembic.util import CommandError
from conftest import KIT
from dbkit import Database
from dbkit.commands.inspectdb import inspect
from sqlalchemy import URL, select

LEGACY = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name varchar(80) NOT NULL,
    mood mood NOT NULL DEFAULT 'good',
    balance numeric(12, 2),
    tags text[],
    extra jsonb,
    seen timestamptz DEFAULT now(),
    UNIQUE (name)
);
CREATE TABLE orders (
    id uuid PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers ON DELETE CASCADE,
    "class" int CHECK ("class" > 0)
);
CREATE INDEX ON orders (customer_id);
CREATE VIEW named AS SELECT name FROM customers;
INSERT INTO customers (name, balance) VALUES ('Ada', 12.5);
"""

BASE = """
from sqlalchemy.orm import DeclarativeBase

class Base(DeclarativeBase):
    pass
"""


@pytest.fixture
async def legacy(database_url: URL) -> Database:
    """Declare a database that somebody else has made."""
    database = Database("legacy", "postgresql", url=database_url.render_as_string(False))
    async with database.open(), database.session() as session:
        connection = await session.connection()
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute(LEGACY)  # pyright: ignore[reportOptionalMemberAccess]
    return database


async def test_models_can_be_imported_and_read_what_is_there(
    legacy: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "databases").mkdir()
    (tmp_path / "databases" / "legacy.py").write_text(BASE)
    (tmp_path / "legacy_models.py").write_text(await inspect(legacy))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    models = import_module("legacy_models")

    async with legacy.open():
        found = await legacy.reader.scalars(select(models.Customers))
        (customer,) = found.all()
    assert (customer.name, customer.mood, customer.balance) == ("Ada", models.Mood.GOOD, 12.5)
    assert models.Orders.__table__.c["customer_id"].foreign_keys
    assert "named" in models.Base.metadata.tables


@pytest.mark.parametrize("command", ["check --ignore=INP001", "format --check"])
async def test_models_pass_the_services_linter(
    legacy: Database, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "models.py"
    path.write_text(await inspect(legacy))

    ruff = [sys.executable, "-m", "ruff", *command.split(), str(path)]
    config = ["--config", str(KIT.parents[1] / "ruff.toml"), "--no-cache"]
    done = subprocess.run([*ruff, *config], check=False, stdout=subprocess.PIPE)  # noqa: ASYNC221 -- it is short

    assert done.returncode == 0, done.stdout.decode()


async def test_only_the_tables_that_are_named(legacy: Database) -> None:
    models = await inspect(legacy, ["customers"])

    assert "class Customers(Base)" in models
    assert "class Orders(Base)" not in models


async def test_an_empty_database_has_no_models(database_url: URL) -> None:
    database = Database("legacy", "postgresql", url=database_url.render_as_string(False))

    with pytest.raises(CommandError, match="legacy: there are no tables"):
        await inspect(database)


async def test_without_sqlacodegen_it_says_how_to_run_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_nothing(_name: str) -> None:
        return None

    monkeypatch.setattr("dbkit.commands.inspectdb.find_spec", find_nothing)

    with pytest.raises(CommandError, match=r"uv run --with sqlacodegen manage\.py inspectdb"):
        await inspect(Database("legacy", "postgresql"))
