"""A fleet of services, from all releases and variants, is updated by one command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from owner import edit
from releases import ROOT, git, listed
from rendering import commit_all
from updating import HEAD, copy
from variants import curated

pytestmark = pytest.mark.timeout(900)

SIZE = int(os.environ.get("FLEET", "3"))
"""Services; each takes some 7 s of a processor, so `FLEET=12` is for whoever changes updates."""

UV = """\
#!/bin/sh
case "$1" in
  lock) echo locked > uv.lock ;;
  run) shift && exec "$@" ;;
esac
"""
GH = '#!/bin/sh\necho "$@" >> "$GH_LOG"\n'


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with this Python's commands, and stand-ins for uv and gh.

    uv would ask PyPI, and gh GitHub.
    """
    folder = tmp_path_factory.mktemp("bin")
    for name, text in {"uv": UV, "gh": GH}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "GH_LOG": str(folder / "gh.log")}


@pytest.fixture(scope="module")
def remotes(history: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the bare repositories of services that their owners have edited."""
    folder = tmp_path_factory.mktemp("remotes")
    found: list[Path] = []
    cases = [(release, variant) for variant in curated() for release in listed()]
    for release, variant in cases * SIZE:
        service = folder / f"service-{len(found) + 1}"
        try:
            copy(history, service, variant.answers, release.tag)
        except ValueError:
            continue  # That release does not know what this variant asks for.
        commit_all(service)
        edit(service)
        commit_all(service)
        git(folder, "clone", "--quiet", "--bare", service.name, f"{service.name}.git")
        shutil.rmtree(service)
        found.append(folder / f"{service.name}.git")
        if len(found) == SIZE:
            break
    return found


def fleet(folder: Path, tools: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as docs/updating.md says."""
    command = [sys.executable, ROOT / "fleet" / "fleet.py", *arguments]
    return subprocess.run(
        command, cwd=folder, env=tools, check=False, capture_output=True, text=True
    )


def test_all_are_updated_without_conflict(
    remotes: list[Path], tools: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "services.txt").write_text("".join(f"{path}\n" for path in remotes))

    told = fleet(tmp_path, tools, "report", "services.txt")
    options = ["--test", "uv run python -m compileall -q src", "--request", "gh pr create --fill"]
    done = fleet(tmp_path, tools, "update", "services.txt", *options)

    assert told.stdout.count(f", behind {HEAD[1:]}\n") == SIZE, told.stdout
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(f" to {HEAD}, ") == SIZE
    assert done.stdout.endswith(f"{SIZE} of {SIZE} are fine.\n")
    for remote in remotes:
        assert git(remote, "show", f"template-{HEAD}:uv.lock") == "locked\n"
    assert Path(tools["GH_LOG"]).read_text() == "pr create --fill\n" * SIZE


def test_service_that_somebody_must_look_at_is_named(
    history: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    service = copy(history, tmp_path / "orders", {}, listed()[0].tag)
    commit_all(service)
    (tmp_path / "empty").mkdir()
    commit_all(tmp_path / "empty")
    (tmp_path / "services.txt").write_text(f"{service}\n{tmp_path / 'empty'}\n")

    done = fleet(tmp_path, tools, "report", "services.txt")

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"orders: {listed()[0].version}, behind {HEAD[1:]}",
        f"LOOK: {tmp_path / 'empty'}: no .copier-answers.yml: not made from a template",
        "1 of 2 are fine.",
    ]


def test_workflow_opens_a_pull_request_once(
    history: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    """Run its script as it is written, on a clone whose service was never updated."""
    newest = copy(history, tmp_path / "newest", {})
    workflow = yaml.safe_load((newest / ".github" / "workflows" / "template.yml").read_text())
    script = workflow["jobs"]["update"]["steps"][-1]["run"]
    service = copy(history, tmp_path / "orders", {}, listed()[0].tag)
    commit_all(service)
    git(tmp_path, "clone", "--quiet", "--bare", "orders", "orders.git")
    environment = tools | {"GH_LOG": str(tmp_path / "gh.log")}

    for number in range(2):
        clone = tmp_path / f"clone-{number}"
        git(tmp_path, "clone", "--quiet", "orders.git", clone.name)
        command = ["bash", "-e", "-c", script]
        done = subprocess.run(
            command, cwd=clone, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    branch = f"template-{HEAD}"
    assert git(tmp_path / "orders.git", "branch", "--list", branch).strip() == branch
    assert git(tmp_path / "orders.git", "show", f"{branch}:uv.lock") == "locked\n"
    assert (tmp_path / "gh.log").read_text() == "pr create --fill\n"
