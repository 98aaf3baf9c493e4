"""The stories of docs/updating.md, run as they are written."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from releases import ROOT, git, listed
from rendering import commit_all
from running import run
from updating import copy

SQLITE: dict[str, Any] = {"name": "primary", "engine": "sqlite"}
UV = """\
#!/bin/sh
case "$1 $2" in
  lock*) touch uv.lock ;;
  *.py) shift && exec python "$@" ;;
  *) shift && exec "$@" ;;
esac
"""
MAIN = '''\
"""Orders, by hand."""

from fastapi import FastAPI

app = FastAPI()
'''


def story(title: str) -> str:
    """Read the commands of a story."""
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    section = text.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert blocks
    return "set -e\n" + "".join(blocks)


def tell(title: str, folder: Path, **variables: str) -> None:
    """Run a story in a service; uv, which would ask PyPI, is this environment."""
    tools = folder.with_name("bin")
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables |= {"PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p anyio"}

    done = run(folder, "bash", "-c", story(title), variables=variables)

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

    tell("A database gets another name", folder)

    assert not (folder / "src" / "orders" / "databases" / "audit.py").exists()


def test_from_sqlite_to_postgresql(history: Path, tmp_path: Path) -> None:
    folder = orders(history, tmp_path / "orders", SQLITE)

    tell("From SQLite to PostgreSQL", folder)

    declared = (folder / "src" / "orders" / "databases" / "primary.py").read_text()
    assert '"postgresql"' in declared


def test_a_service_that_was_started_by_hand_takes_the_kit(history: Path, tmp_path: Path) -> None:
    folder = tmp_path / "orders"
    (folder / "src" / "orders").mkdir(parents=True)
    (folder / "src" / "orders" / "__init__.py").touch()
    (folder / "src" / "orders" / "main.py").write_text(MAIN)
    (folder / "README.md").write_text("# Orders\n")
    commit_all(folder)

    tell("A service that was started by hand takes the kit", folder, TEMPLATE=str(history))

    assert (folder / "README.md").read_text() == "# Orders\n"
