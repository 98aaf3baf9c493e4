"""The first steps, taken as their page writes them."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from copier import run_update
from rendering import ROOT, commit_all, git
from running import manage, run

PAGE = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def begin(template: Path, folder: Path) -> Path:
    """Render the service by the page's own lines, with tools that are where pip puts them."""
    git(folder, "clone", "--quiet", str(template), "template")
    tools = folder / "template" / ".tools" / "bin"
    tools.mkdir(parents=True)
    shutil.copy(ROOT / ".gitignore", folder / "template" / ".git" / "info" / "exclude")
    for name in ("copier", "uv"):
        (tools / name).symlink_to(Path(sys.executable).with_name(name))
    lines = "".join(blocks("console")[:2]).splitlines()[1:]
    script = "\n".join(lines).replace("uv lock", "uv --version")  # That would ask PyPI.
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = run(folder / "template", "bash", "-euc", script, variables=variables)
    assert done.returncode == 0, done.stdout
    return folder / "orders"


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
    folder = begin(template_repository, tmp_path)
    column, fields, test = blocks("python")
    succeeds(folder, "uv run manage.py migrate")  # As runserver does.

    insert(folder / "src/orders/items/models.py", "    quantity: Mapped[int]\n", column.strip())
    create, read = fields.splitlines()
    insert(folder / "src/orders/items/schemas.py", "    quantity: Quantity = 0\n", create)
    insert(folder / "src/orders/items/schemas.py", "    quantity: int\n", read)
    said = succeeds(folder, 'uv run manage.py makemigrations "add price"')
    assert said.splitlines()[:2] == [
        "primary: wrote migrations/primary/0002_add_price.py",
        "primary:   add column items.price",
    ]
    assert "add price" in succeeds(folder, "uv run manage.py migrate")
    assert "0 findings" in succeeds(folder, "uv run manage.py check")
    tests = folder / "tests" / "test_items.py"
    tests.write_text(f"{tests.read_text()}\n\n{test}")
    assert " passed" in succeeds(folder, "uv run pytest")
    ruff = [Path(sys.executable).with_name("ruff")]
    linted = run(folder, *ruff, "check", ".")
    assert linted.returncode == 0, linted.stdout

    commit_all(folder)
    databases = re.findall(r"--data 'databases=(\[.*\])'", PAGE)[0]
    run_update(folder, defaults=True, overwrite=True, quiet=True, data={"databases": databases})
    added = folder / "src/orders/databases/audit.py"
    assert "AuditSession" in added.read_text()
    assert "price" in (folder / "src/orders/items/models.py").read_text()

    commit_all(folder)
    migrate, *delete = blocks("console")[-1].splitlines()
    assert "downgraded from 0001" in succeeds(folder, migrate)
    for command in delete:
        assert run(folder, "bash", "-c", command).returncode == 0
    assert run(folder, *ruff, "check", ".").returncode == 0
    assert "0 findings" in succeeds(folder, "uv run manage.py check")
    assert "2 passed" in succeeds(folder, "uv run pytest")
    assert "included its router" in succeeds(folder, "uv run manage.py startapp invoices")
    linted = run(folder, *ruff, "check", ".")
    assert linted.returncode == 0, linted.stdout
