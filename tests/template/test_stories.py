"""The stories of docs/updating.md, run as they are written."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from owner import edit
from releases import ROOT, git, listed
from rendering import commit_all
from running import run
from updating import HEAD, copy, update

SQLITE: dict[str, Any] = {"name": "primary", "engine": "sqlite"}
UV = """\
#!/bin/sh
case "$1 $2" in
  lock* | add*) touch uv.lock ;;
  *.py) shift && exec python "$@" ;;
  *) shift && exec "$@" ;;
esac
"""
BY_HAND = {
    "README.md": "# App\n",
    "Dockerfile": "FROM python:3.13\n",
    "docker-compose.yml": "services: {}\n",
    ".gitignore": "__pycache__/\n.postgres/\n",
    "pyproject.toml": """\
[project]
name = "app"
version = "1"
""",
    "alembic.ini": "[alembic]\nscript_location = alembic\n",
    "alembic/env.py": "",
    "alembic/versions/4f1e2d3c_orders.py": '''\
"""orders"""

import sqlalchemy as sa
from alembic import op

revision = "4f1e2d3c"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )


def downgrade() -> None:
    op.drop_table("orders")
''',
    "app/__init__.py": "",
    "app/models.py": '''\
"""Tables."""

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of the tables."""


class Order(Base):
    """An order."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(20), unique=True)
''',
    "app/db.py": '''\
"""Sessions, by hand."""

import os

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

engine = create_async_engine(os.environ.get("DATABASE_URL", "postgresql+asyncpg://"))


async def get_db():
    async with AsyncSession(engine) as session:
        yield session
''',
    "app/main.py": '''\
"""Orders, by hand."""

from fastapi import Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from .db import get_db
from .models import Order

app = FastAPI()


@app.post("/orders/{number}", status_code=201)
async def create(number: str, db: AsyncSession = Depends(get_db)) -> int:
    order = Order(number=number)
    db.add(order)
    await db.commit()
    await db.refresh(order)
    return order.id


@app.get("/orders")
async def read(db: AsyncSession = Depends(get_db)) -> list[str]:
    return list(await db.scalars(select(Order.number).order_by(Order.number)))
''',
    "tests/conftest.py": "",
    "tests/test_orders.py": """\
from app.db import get_db
from app.models import Order
from sqlalchemy import select


async def test_orders(client, db):
    order = Order(number="a1")
    db.add(order)
    await db.flush()
    assert (await client.get("/orders")).json() == ["a1"]
    assert (await client.post("/orders/a2")).json() == order.id + 1
    assert len((await db.scalars(select(Order))).all()) == 2


async def test_override(client, running_app, db):
    running_app.dependency_overrides[get_db] = lambda: db
    assert (await client.get("/orders")).json() == []
""",
}
"""A service that nobody rendered."""
MADE = b"""
    CREATE TABLE orders (id SERIAL PRIMARY KEY, number VARCHAR(20) NOT NULL UNIQUE);
    CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('4f1e2d3c'); INSERT INTO orders (number) VALUES ('a1')
"""
"""What is in its production."""


def story(title: str) -> str:
    """Read a story."""
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    return text.partition(f"\n### {title}\n")[2].partition("\n### ")[0]


def commands(text: str) -> str:
    """Read the commands of a story."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    return "set -e\n" + "".join(blocks)


def tell(title: str, folder: Path, **variables: str) -> None:
    """Run a story of docs/updating.md in a service."""
    carry_out(story(title), folder, **variables)


def carry_out(text: str, folder: Path, **variables: str) -> None:
    """Run the commands of a text in a service; uv, which would ask PyPI, is this environment."""
    tools = folder.with_name("bin")
    tools.mkdir(exist_ok=True)
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables |= {"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p anyio"}

    done = run(folder, "bash", "-c", commands(text), variables=variables)

    assert done.returncode == 0, done.stdout
    assert git(folder, "diff", "--name-only", "--diff-filter=U") == ""


def orders(history: Path, folder: Path, *databases: dict[str, Any]) -> Path:
    """Render and commit a service called Orders, from the first release."""
    answers = {"project_name": "Orders", "databases": list(databases)}
    copy(history, folder, answers, listed()[0].tag)
    commit_all(folder)
    return folder


def test_a_database_gets_another_name(history: Path, tmp_path: Path) -> None:
    audit = {"name": "audit", "engine": "sqlite"}
    folder = orders(history, tmp_path / "orders", SQLITE, audit)
    edit(folder)
    commit_all(folder)

    tell("A database gets another name", folder)

    assert [path.name for path in folder.glob("src/orders/databases/[aj]*.py")] == ["journal.py"]
    assert "audit" not in git(folder, "grep", "-i", "journal")


def test_the_service_gets_another_name(history: Path, tmp_path: Path) -> None:
    folder = orders(history, tmp_path / "orders", SQLITE)
    edit(folder)
    commit_all(folder)

    tell("The service gets another name", folder)

    assert [path.name for path in (folder / "src").iterdir()] == ["web_shop"]
    assert 'name = "web-shop"' in (folder / "pyproject.toml").read_text()


def test_from_sqlite_to_postgresql(history: Path, tmp_path: Path) -> None:
    folder = orders(history, tmp_path / "orders", SQLITE)

    tell("From SQLite to PostgreSQL", folder)

    declared = (folder / "src" / "orders" / "databases" / "primary.py").read_text()
    assert '"postgresql"' in declared


def test_a_database_comes_and_another_goes(history: Path, tmp_path: Path) -> None:
    audit = {"name": "audit", "engine": "sqlite"}
    folder = orders(history, tmp_path / "orders", SQLITE, audit)
    edit(folder)
    commit_all(folder)

    tell("A database comes, and another goes", folder)

    assert [path.name for path in folder.glob("src/orders/databases/a*.py")] == ["archive.py"]


def test_a_file_that_only_new_services_have(history: Path, tmp_path: Path) -> None:
    folder = orders(history, tmp_path / "orders", SQLITE)
    edit(folder)
    commit_all(folder)
    update(folder)
    commit_all(folder)

    tell("A file that only new services have", folder)

    changed = git(folder, "status", "--porcelain").splitlines()
    assert changed[0] == "A  AGENTS.md"
    assert all(each.startswith("A  deploy/") for each in changed[1:])


def test_the_template_is_elsewhere(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fork, and was a relative path: what Copier says of that is in the story."""
    monkeypatch.chdir(history.parent)
    folder = orders(Path(history.name), tmp_path / "orders", SQLITE)
    copier = Path(sys.executable).with_name("copier")
    said = run(folder, copier, "check-update").stdout
    said += run(folder, copier, "update", "--defaults").stdout
    fork = tmp_path / "fork"
    git(tmp_path, "clone", "--quiet", "--no-tags", str(history), fork.name)
    commit_all(fork, tag=f"{HEAD}.post1")
    with pytest.raises(AssertionError) as failed:
        tell("The template is elsewhere", folder, TEMPLATE=str(fork))
    said += str(failed.value)
    git(folder, "reset", "--hard", "HEAD~")
    git(fork, "fetch", "--quiet", "--tags")

    tell("The template is elsewhere", folder, TEMPLATE=str(fork))

    for quoted in re.findall(r'"([A-Z][^"]+)"', story("The template is elsewhere")):
        assert quoted.replace("\n", " ") in said
    assert f"_commit: {HEAD}.post1\n" in (folder / ".copier-answers.yml").read_text()


def test_a_service_that_was_started_by_hand_takes_the_kit(history: Path, tmp_path: Path) -> None:
    """As docs/adopting.md says. Its orders stay where they are, and what is added comes to them."""
    folder = tmp_path / "app"
    for name, text in BY_HAND.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    commit_all(folder)
    page = (ROOT / "docs" / "adopting.md").read_text(encoding="utf-8")
    with EmbeddedPostgres(tmp_path / "postgres", settings=TEST_SETTINGS) as server:
        server.create_database("orders")
        url = server.url("orders")
        production = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(production) as connection:
            connection.execute(MADE)

        carry_out(page, folder, TEMPLATE=str(history), PRODUCTION=production)

        assert ask(folder, "post('/orders/a2')", DATABASE_URL=production).endswith("2\n")
        answer = ask(folder, "get('/orders')", DATABASE_URL=production)
        assert answer.endswith('["a1","a2"]\n'), answer
    taken = git(folder, "diff", "--name-status", "main", "kit").splitlines()
    assert {line.partition("\t")[0] for line in taken} == {"A"}
    commit_all(folder)
    assert git(folder, "diff", "--name-only", "--diff-filter=MD", "kit~", "--", *KEPT) == ""
    clone = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", str(history), clone.name)
    kit = clone / "includes" / "adopt" / "{{ source }}" / "{{package}}" / "dbkit"
    (kit / "errors.py").write_text("# new\n")
    commit_all(clone, tag=f"{HEAD}.post1")
    answers = folder / ".copier-answers.yml"
    answers.write_text(answers.read_text().replace(str(history), str(clone)))
    commit_all(folder)
    update(folder)
    changed = git(folder, "diff", "--name-only").splitlines()
    assert changed == [".copier-answers.yml", "app/dbkit/errors.py"]


KEPT = (
    *("README.md", "Dockerfile", "docker-compose.yml", ".gitignore"),
    *("app/models.py", "tests/test_orders.py"),
)
"""What nobody has touched."""


def ask(folder: Path, request: str, **variables: str) -> str:
    """Send a request to the application of a service; return its log and the answer's body."""
    script = (
        "from fastapi.testclient import TestClient; from app.main import app\n"
        f"with TestClient(app) as client: print(client.{request}.text)"
    )
    return run(folder, sys.executable, "-c", script, variables=variables).stdout
