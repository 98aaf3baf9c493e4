"""The edits of a service's owner: what stands between two updates in a real repository.

They are made to files as 0.1.0 had them, whose paths never change, and use every public name of
the kit. Made to a fresh render of a later version, they say what an update must lead to.
"""

import re
import shutil
from pathlib import Path

ANCHOR = "# The template writes above this line, you below.\n"

MODELS = '''\
"""Tables of the shelves."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from ..databases.{first} import Base


class Shelf(Base):
    """A shelf in a warehouse."""

    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(20), unique=True)
'''
ROUTER = '''\
"""Routes of the shelves."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from ..databases.{first} import {prefix}Session, {first}
from ..dbkit import (
    Database,
    DatabaseError,
    DatabaseSettings,
    NotConfigured,
    NotOpen,
    PoolClosed,
    PoolOverloaded,
    PoolTimeout,
    Problem,
    Unreachable,
    problem,
)
from .models import Shelf

router = APIRouter(prefix="/shelves")


@router.post("/{label}", status_code=201)
async def create(label: str, session: {prefix}Session) -> int:
    """Create a shelf; a label that is taken is a 409 of the kit."""
    shelf = Shelf(label=label)
    session.add(shelf)
    await session.flush()
    return shelf.id


@router.get("/count", response_model=int, responses={503: {"model": Problem}})
async def count() -> Any:
    """Count the shelves, outside the request's session."""

    async def work(session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(Shelf)) or 0

    try:
        return await {first}.run_transaction(work, attempts=2)
    except (PoolClosed, PoolOverloaded, PoolTimeout, Unreachable) as error:
        return answer(error)


def answer(error: DatabaseError) -> Response:
    """Say that the shelves are out of reach."""
    return problem(503, f"no shelves of {error.database}", retry_after=error.retry_after)


def describe(database: Database) -> str:
    """Describe a database, whether the service runs or not."""
    try:
        settings: DatabaseSettings = database.settings
    except NotOpen:
        try:
            settings = database.read_settings()
        except NotConfigured as error:
            return ", ".join(error.faults)
    return f"{database.name}: {settings.pool_size} to {settings.max_connections} connections"
'''
MIGRATION = '''\
"""create shelves, drop the example."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade the schema."""
    op.drop_table("items")
    op.create_table(
        "shelves",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("label", sa.String(length=20), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shelves")),
        sa.UniqueConstraint("label", name=op.f("uq_shelves_label")),
    )
'''
MIGRATION_OF_OTHERS = '''\
"""drop the example."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Upgrade the schema."""
    op.drop_table("notes")
'''
TESTS = '''\
"""Shelves."""

import asyncio
from pathlib import Path

import pytest
import typer
from fastapi import FastAPI
from httpx import AsyncClient, Client
from sqlalchemy import text

from {package}.databases import databases as declared
from {package}.databases.{first} import {first}
from {package}.dbkit import Databases, commands, testing
from {package}.shelves.models import Shelf
from {package}.shelves.router import describe


async def test_create(client: AsyncClient, assert_checkouts: testing.Counting) -> None:
    with assert_checkouts(1, "{first}"):
        assert (await client.post("/shelves/a1")).status_code == 201
    assert (await client.post("/shelves/a1")).status_code == 409


async def test_count(
    client: AsyncClient, add_rows: testing.AddRows, assert_statements: testing.Counting
) -> None:
    await add_rows(Shelf(label="a1"), Shelf(label="a2"))
    with assert_statements(1):
        assert (await client.get("/shelves/count")).json() == 2


def test_count_without_async(sync_client: Client) -> None:
    assert sync_client.get("/shelves/count").json() == 0


@pytest.mark.committed("{first}")
async def test_of_several_at_once_one_commits(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post("/shelves/a1") for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]


async def test_out_of_reach(
    client: AsyncClient,
    pool_exhausted: testing.PoolExhausted,
    database_down: testing.DatabaseDown,
    slow_database: testing.SlowDatabase,
) -> None:
    async with pool_exhausted("{first}"):
        assert (await client.get("/shelves/count")).status_code == 503
    async with database_down("{first}"):
        assert (await client.get("/shelves/count")).status_code == 503
    with slow_database("{first}", 0.01):
        assert (await client.get("/shelves/count")).status_code == 200


@pytest.mark.committed("{first}")
async def test_databases(databases: Databases, running_app: FastAPI) -> None:
    assert databases is declared is running_app.state.databases
    assert list(databases)[0] == "{first}"
    assert databases["{first}"] is {first}
    assert {first}.is_open
    assert describe({first}) == "{first}: 7 to 9 connections"
    async with {first}.session() as session, {first}.engine.connect() as connection:
        assert session.bind is {first}.engine
        assert await connection.scalar(text("SELECT 1")) == 1


def test_a_command_of_ours() -> None:
    cli = commands.manage(declared, app="{package}.main:app", root=Path.cwd())
    assert isinstance(cli, typer.Typer)
'''
RUFF = """\
extend = "../../../ruff.toml"
line-length = 90
"""
OURS_EVERYWHERE = "# Ours, and here first.\n"


def edit(service: Path) -> None:
    """Make the owner's edits in a rendered service."""
    package = next(service.glob("src/*"))
    declared = (package / "databases" / "__init__.py").read_text(encoding="utf-8")
    first, *others = re.findall(r"^    (\w+),$", declared, re.MULTILINE)
    (prefix,) = re.findall(
        r"^(\w+)Session = ", (package / "databases" / f"{first}.py").read_text(), re.MULTILINE
    )

    def filled(text: str) -> str:
        for name, value in {"package": package.name, "first": first, "prefix": prefix}.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    delete_example(service, package)
    (package / "shelves").mkdir()
    (package / "shelves" / "__init__.py").write_text('"""Shelves."""\n')
    (package / "shelves" / "models.py").write_text(filled(MODELS))
    (package / "shelves" / "router.py").write_text(filled(ROUTER))
    (package / "shelves" / "ruff.toml").write_text(RUFF)
    (service / ".ruff.toml").write_text('extend = "ruff.toml"\n')
    (service / "tests" / "test_shelves.py").write_text(filled(TESTS))
    (service / "migrations" / first / "0002_shelves.py").write_text(MIGRATION)
    for name in others:
        if (history := service / "migrations" / name).is_dir():  # A replica has none.
            (history / "0002_drop_notes.py").write_text(MIGRATION_OF_OTHERS)
    edit_main(package / "main.py")
    tune(package / "databases" / f"{first}.py")
    (service / "README.md").write_text("# Warehouse\n\nAsk Ann, then Bo.\n")
    extend(service)


def delete_example(service: Path, package: Path) -> None:
    """Delete the example and its tests."""
    for folder in (package / "items", package / "notes", service / "tests" / "notes"):
        shutil.rmtree(folder, ignore_errors=True)
    for test in (service / "tests").glob("test_*.py"):
        if re.search(r"\bItem\b|/items", test.read_text(encoding="utf-8")):
            test.unlink()


def edit_main(path: Path) -> None:
    """Replace the example's routes by ours, and add a route."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not re.search(r"_router\b", line)]
    text = "".join(kept)
    assert "include_router" not in text
    text = re.sub(  # Up to 0.4.0 it had the first of these.
        r"from \.dbkit import (?:DATABASE_RESPONSES, )?install\n",
        "from .dbkit import DATABASE_RESPONSES, install\n"
        "from .shelves.router import router as shelves_router\n",
        text,
    )
    path.write_text(
        text + "app.include_router(shelves_router, responses=DATABASE_RESPONSES)\n"
        "\n\n"
        '@app.get("/")\n'
        "async def hello() -> str:\n"
        '    """Greet."""\n'
        '    return "hello"\n'
    )


def tune(path: Path) -> None:
    """Change the pool of a database."""
    text = re.sub(r"    pool_size=\d+,\n", "", path.read_text())
    tuned = "    pool_size=7,\n    max_overflow=2,\n    pool_timeout=2.5,\n)\n"
    path.write_text(text.replace("\n)\n", f"\n{tuned}", 1))


def extend(service: Path) -> None:
    """Add to the files that are shared, below their anchors."""
    path = service / "pyproject.toml"
    before, dependencies, development, tools = re.split(f"(?<={ANCHOR})", path.read_text())
    path.write_text(
        f'{before}    "tenacity>=9",\n{dependencies}    "freezegun>=1.5",\n'
        f"{development}\n[tool.coverage.run]\nbranch = true\n{tools}"
    )
    for name, added in {
        ".gitignore": "*.csv\n",
        ".env.example": "# Where the shelves are.\nWAREHOUSE=north\n",
    }.items():
        with (service / name).open("a") as file:
            file.write(added)
