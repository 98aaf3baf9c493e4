"""`manage.py startapp`: what it writes is the example, under names that can be."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from alembic.util import CommandError
from dbkit import Database
from dbkit.commands import features
from dbkit.commands.command_line import message_of
from fastapi.dependencies.utils import multipart_not_installed_error
from rendering import ROOT, Renderer
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

EXAMPLE = {
    "models": "src/my_service/items/models.py",
    "schemas": "src/my_service/items/schemas.py",
    "router": "src/my_service/items/router.py",
    "tests": "tests/test_items.py",
    "migration": "migrations/primary/0001_create_items.py",
}
FACTORY = """\
from fastapi import FastAPI

from .dbkit import install


def make() -> FastAPI:
    app = FastAPI()
    install(app, databases)
    return app
"""
PLAIN = """\
from fastapi import FastAPI

from .databases import databases
from .dbkit import install
from .zebras import router

app = FastAPI()
install(
    app,
    databases,
)
app.include_router(router)
"""


class Base(DeclarativeBase):
    """With a table."""


class Chair(Base):
    """It takes a name."""

    __tablename__ = "chairs"

    id: Mapped[int] = mapped_column(primary_key=True)


def without_docstrings(text: str) -> str:
    return re.sub(r'^ *""".*"""$', "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("kind", EXAMPLE)
def test_what_is_written_is_the_example(kind: str, render: Renderer) -> None:
    """Copy what the example has learned to `commands/feature/`, but for the docstrings."""
    example = (render().path / EXAMPLE[kind]).read_text()
    ours = (features.FOLDER / f"{kind}.txt").read_text()

    assert without_docstrings(ours) == without_docstrings(example)
    assert {path.stem for path in features.FOLDER.iterdir()} == EXAMPLE.keys()


@pytest.mark.parametrize(
    ("name", "model", "fault"),
    [
        ("Orders", None, "'Orders' is no name; write it as order_lines"),
        ("order-lines", None, "'order-lines' is no name"),
        ("orders_", None, "'orders_' is no name"),
        ("1orders", None, "'1orders' is no name"),
        ("../orders", None, "'../orders' is no name"),
        ("movies", "movie", "'movie' is no name; write it as order_lines, and its model OrderLine"),
        ("import", None, "import is a keyword of Python"),
        ("classes", None, "class is a keyword of Python; say for instance startapp dbkit_classes"),
        ("matches", None, "match is a keyword of Python"),
        ("inputs", None, "input is a name of Python's own"),
        ("clients", None, "client is a name that the generated code uses for something else"),
        ("paths", None, "Path is a name that the generated code uses for something else"),
        ("primaries", None, "primary is a name that the generated code uses"),
        ("chairs", None, "primary has a table chairs already"),
        ("orders", None, "dbkit.databases.primary has no Base, which the code would import"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, model: str | None, fault: str) -> None:
    database = Database("primary", "sqlite", base=Base)

    with pytest.raises(CommandError, match=f"^{re.escape(fault)}"):
        next(features.write(database, name, model, "main:app"))


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *(("orders", "order"), ("order_lines", "order_line"), ("boxes", "box")),
        *(("categories", "category"), ("addresses", "address"), ("branches", "branch")),
        *(("invoices", "invoice"), ("houses", "house"), ("bus", "bus"), ("stock", "stock")),
    ],
)
def test_a_model_is_named_in_the_singular(plural: str, singular: str) -> None:
    assert features.singular(plural) == singular


def test_a_router_is_included_where_it_is_plain_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "package", lambda: tmp_path)
    shutil.copy(ROOT / "template" / "ruff.toml", tmp_path)
    (tmp_path / "plain_main.py").write_text(PLAIN)
    (tmp_path / "made_main.py").write_text(FACTORY)

    included = features.register("orders", "plain_main", "app")
    printed = features.register("orders", "made_main", "app")

    assert included == "included its router in plain_main.py"
    _, imports, after = (tmp_path / "plain_main.py").read_text().split("\n\n")
    assert imports.splitlines() == [
        "from .databases import databases",
        "from .dbkit import install",
        "from .orders.router import router as orders_router",
        "from .zebras import router",
    ]
    assert after.endswith("router)\napp.include_router(orders_router)\n")
    assert (tmp_path / "made_main.py").read_text() == FACTORY
    assert printed.splitlines()[2:] == [
        "    from .orders.router import router as orders_router",
        "    app.include_router(orders_router)",
    ]


def test_a_package_that_a_route_needs_is_named() -> None:
    """FastAPI says it at the import of the router, as a `RuntimeError`."""
    missing = RuntimeError(multipart_not_installed_error)

    assert message_of(missing).endswith("needs a package: uv add python-multipart")
    assert message_of(RuntimeError("else")) == ""
