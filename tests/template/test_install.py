"""A service as its owner has it: installed from PyPI by uv, on each Python that we support."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from rendering import ROOT, Renderer
from running import copy_of, is_alive, run, running, wait_until, write_and_read

UV = Path(sys.executable).with_name("uv")
# No uv of another project, and none of this repository's packages on the path.
OWN = {"PYTHONPATH": "", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
# Downloads take what they take.
pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

# Our CI has these, so that there they are never skipped.
IN_CI = {"3.11", "3.13"}


def find_python(version: str) -> str:
    """Find an interpreter, also one of pyenv's that is not on the path; or skip the test."""
    candidates = [f"python{version}"]
    if shim := shutil.which(f"python{version}"):  # pyenv's folders are beside its shims.
        found = Path(shim).parents[1].glob(f"versions/{version}.*/bin/python{version}")
        candidates += map(str, sorted(found))
    for candidate in candidates:
        try:
            # pyenv's shims are on the path and fail.
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    assert "CI" not in os.environ or version not in IN_CI, f"no Python {version} in CI"
    pytest.skip(f"there is no Python {version} on this machine")


@pytest.mark.parametrize(
    ("version", "engine"), [("3.11", "postgresql"), ("3.12", "sqlite"), ("3.13", "postgresql")]
)
def test_owner_installs_tests_and_runs_it(
    render: Renderer, tmp_path: Path, version: str, engine: str
) -> None:
    python = find_python(version)
    service = render(
        python_version=version, databases=[{"name": "primary", "engine": engine}], ci="none"
    )
    folder = copy_of(service, tmp_path)

    for command in (
        ["sync", "--python", python],
        ["run", "python", "-c", f"import sys; assert sys.version.startswith('{version}.')"],
        ["run", "pytest", "-q"],
        ["run", "manage.py", "migrate"],
        ["run", "manage.py", "check", "--fail-level", "warning"],
    ):
        done = run(folder, UV, *command, variables=OWN)
        assert done.returncode == 0, f"uv {command[0]} {command[1]}:\n{done.stdout}"

    with running(folder, (UV, "run", "manage.py"), **OWN) as process:
        servers = process.servers
        assert bool(servers) == (engine == "postgresql")
        write_and_read(process.client, ["primary"])
        assert process.stop() == 0, process.log
    for server in servers:
        wait_until(lambda server=server: not is_alive(server), "the embedded server has stopped")


def test_pytest_asyncio_does_as_well_once_it_is_set_as_documented(
    render: Renderer, tmp_path: Path
) -> None:
    databases = [{"name": "primary", "engine": "sqlite"}]
    folder = copy_of(render(databases=databases, ci="none"), tmp_path)
    documented = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    settings = dedent(documented.partition("  ```toml\n")[2].partition("  ```\n")[0])
    assert "asyncio_mode" in settings
    pyproject = folder / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('anyio_mode = "auto"\n', settings))

    done = run(folder, UV, "run", "--with", "pytest-asyncio", "pytest", "-q", variables=OWN)

    assert done.returncode == 0, done.stdout


def test_production_needs_neither_the_tools_nor_an_embedded_server(
    render: Renderer, tmp_path: Path
) -> None:
    folder = copy_of(render(), tmp_path)
    synced = run(folder, UV, "sync", "--no-dev", "--python", sys.executable, variables=OWN)
    assert synced.returncode == 0, synced.stdout

    done = run(folder, UV, "run", "--no-dev", "manage.py", "check", variables=OWN)

    assert done.returncode == 1
    assert "DATABASE_URL" in done.stdout
    assert "Traceback" not in done.stdout
