"""The first steps, taken as their page writes them."""

import re
import sys
from pathlib import Path

import pytest
from copier import run_copy, run_update
from rendering import ROOT, commit_all
from running import manage, run

PAGE = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def insert(path: Path, after: str, line: str) -> None:
    text = path.read_text()
    assert text.count(after) == 1, f"{path.name} has no single {after!r}"
    path.write_text(text.replace(after, f"{after}    {line}\n"))


def succeeds(folder: Path, command: str) -> str:
    """Run a command of the page, in the environment of this repository."""
    assert command in PAGE
    name, *arguments = re.findall(r'"[^"]*"|\S+', command.removeprefix("uv run "))
    arguments = [each.strip('"') for each in arguments]
    if name == "manage.py":
        done = manage(folder, *arguments)
    else:
        flags = ["-q", "-p", "no:cacheprovider", "-p", "anyio"]
        variables = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = run(folder, sys.executable, "-m", name, *arguments, *flags, variables=variables)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.timeout(300)
def test_each_step_works_as_it_is_written(template_repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    answers = {"project_name": "Orders"}
    run_copy(str(template_repository), folder, defaults=True, data=answers, quiet=True)
    commit_all(folder)
    column, fields, test = python_blocks()
    succeeds(folder, "uv run manage.py migrate")  # As runserver does.

    insert(folder / "src/orders/items/models.py", "    quantity: Mapped[int]\n", column.strip())
    create, read = fields.splitlines()
    insert(folder / "src/orders/items/schemas.py", "    quantity: Quantity = 0\n", create)
    insert(folder / "src/orders/items/schemas.py", "    quantity: int\n", read)
    said = succeeds(folder, 'uv run manage.py makemigrations "add price"')
    assert re.fullmatch(r"primary: wrote migrations/primary/\w+_add_price\.py\n", said)
    assert "add price" in succeeds(folder, "uv run manage.py migrate")
    assert "0 findings" in succeeds(folder, "uv run manage.py check")
    tests = folder / "tests" / "test_items.py"
    tests.write_text(f"{tests.read_text()}\n\n{test}")
    assert " passed" in succeeds(folder, "uv run pytest")
    linted = run(folder, Path(sys.executable).with_name("ruff"), "check", "--no-cache", ".")
    assert linted.returncode == 0, linted.stdout

    commit_all(folder)
    databases = re.findall(r"--data 'databases=(\[.*\])'", PAGE)[0]
    run_update(folder, defaults=True, overwrite=True, quiet=True, data={"databases": databases})
    added = folder / "src/orders/databases/audit.py"
    assert "AuditSession" in added.read_text()
    assert "price" in (folder / "src/orders/items/models.py").read_text()
