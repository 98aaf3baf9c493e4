"""The recipes of docs/recipes.md, run as they are written, on each engine."""

import re
import sys
from pathlib import Path

import pytest
from rendering import ROOT, Renderer
from running import copy_of, manage, run

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

NOTEBOOK = """
import ast, asyncio, types
loop = asyncio.new_event_loop()
def cell(text):
    code = compile(text, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if (waiting := types.FunctionType(code, globals())()) is not None:
        loop.run_until_complete(waiting)
"""
LOOK = """
from sqlalchemy import text
print(await primary.reader.scalar(text("SELECT 41 + 1")))
"""


def blocks(title: str) -> list[tuple[str, str]]:
    """Read the blocks of a recipe, each with the file that it goes into."""
    _, _, text = PAGE.partition(f"\n### {title}\n")
    found = re.findall(
        r'^```\w+ title="([^"]+)"\n(.*?)^```', re.split(r"\n##", text)[0], re.MULTILINE | re.DOTALL
    )
    assert found, title
    return found


def write(folder: Path, title: str) -> None:
    """Follow a recipe in a service."""
    for name, text in blocks(title):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        before, guard, after = (file.read_text() if file.exists() else "").partition(
            "\nif __name__"
        )
        file.write_text(f"{before}\n{text}\n{guard}{after}")


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def service(render: Renderer, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Render a service on each engine."""
    databases = [{"name": "primary", "engine": request.param}]
    return copy_of(render(project_name="Orders", databases=databases), tmp_path)


def test_commands_scripts_notebooks_and_the_shell(service: Path) -> None:
    write(service, "A command of your own")
    write(service, "A script")
    first, last = (text for _, text in blocks("A notebook"))
    notebook = NOTEBOOK + "".join(
        f"cell({text!r})\n" for text in (first, LOOK, last, "print(primary)")
    )

    seeded = manage(service, "seed", "--count", "3")
    assert seeded.stdout == "primary: upgraded to 0001: create items.\n"
    elsewhere = {"PYTHONPATH": str(service / "src")}
    script = service / "scripts" / "prices.py"
    assert run(Path("/"), sys.executable, script, variables=elsewhere).stdout == "3\n"
    (service / "notebooks").mkdir()
    said = run(service / "notebooks", sys.executable, "-c", notebook, variables=elsewhere)
    assert said.stdout.startswith("42\n<Database primary (")
    assert said.stdout.endswith(", not open)>\n")


PLANTED = """

import threading

from orders.databases.primary import primary


async def test_without_a_copy(client: AsyncClient) -> None:
    await client.post("/stock/lamp")


@pytest.mark.committed
async def test_leak(client: AsyncClient) -> None:
    primary.sync.engine.connect()  # leaks
    KEPT.append(primary.sync.engine.connect())


KEPT = []


@pytest.mark.committed
async def test_after_the_leak(client: AsyncClient) -> None:
    assert (await client.get("/items")).json()["items"] == []
"""


def test_routes_that_are_def_and_their_tests(service: Path) -> None:
    (service / "src/orders/stock").mkdir()
    write(service, "A route that is def")

    passed = run(service, sys.executable, "-m", "pytest", "-q", "-p", "no:randomly")
    assert passed.returncode == 0, passed.stdout
    test = service / "tests" / "test_stock.py"
    test.write_text(test.read_text() + PLANTED)
    failed = run(service, sys.executable, "-m", "pytest", "-q", str(test))

    assert ' test with @pytest.mark.committed("primary"), or ask for the fixture sync_' in (
        failed.stdout
    )
    assert "primary: a connection was not returned; it was taken at\n" in failed.stdout
    assert "test_stock.py:" in failed.stdout
    assert "1 failed, 4 passed, 1 error" in failed.stdout, failed.stdout
