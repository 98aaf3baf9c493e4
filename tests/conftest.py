"""Fixtures of the whole suite: the template as it stands, and services rendered from it."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from jinja2 import Environment
from mariadb import MariaDB, MySQL
from pytest_copie.plugin import Copie
from rendering import ROOT, Renderer, commit_all
from updating import write_history
from xdist.scheduler import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]  # It has none.

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- where Linux has a tmpfs
LONGEST = [
    *("test_updates.py", "test_testing.py", "test_commands.py", "test_stories.py"),
    *("test_install.py", "test_fleet.py", "test_quality.py", "test_faults.py"),
    *("test_questions.py", "test_outage.py", "test_openapi.py", "test_page_in_browser.py"),
    *("test_first_steps.py", "test_embedded.py", "test_migrations.py", "test_health.py"),
    *("test_recipes.py", "test_makemigrations.py", "test_catalogue.py"),
    *("test_transactions.py", "test_transaction_machine.py"),
]
VARIANTS = ["test_boot.py", "test_own.py"]


# Thousands of files are written and removed, a quarter of the time on a disk: use memory if there
# is room for all of them, and programs may be run from it.
if (
    SHARED_MEMORY.is_dir()
    and shutil.disk_usage(SHARED_MEMORY).free > 8 << 30
    and not os.statvfs(SHARED_MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ.setdefault("TMPDIR", str(SHARED_MEMORY))
    tempfile.tempdir = None  # Whoever has asked before has the disk's.

# A shell ignores Ctrl-C for what it runs in the background, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Scheduler(LoadScopeScheduling):
    """Sends all tests of a file, or of a variant, to one worker: they share what they start."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return test.partition("[")[2] if file.rpartition("/")[2] in VARIANTS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    """Use it in place of `--dist=loadgroup`, which pytest 9.2 leaves without effect (xdist 3.8)."""
    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files and end with what is short, so that no worker waits for long."""
    order = {name: number for number, name in enumerate(LONGEST, -len(LONGEST))}
    order |= dict.fromkeys(VARIANTS, 1)
    items.sort(key=lambda item: order.get(item.path.name, 0))
    if "WEEKLY" not in os.environ:
        skip = pytest.mark.skip(reason="it runs once a week, and with WEEKLY=1")
        for item in items:
            if item.get_closest_marker("weekly"):
                item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def one_worker(
    request: pytest.FixtureRequest, worker_id: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Notice when a file goes to several workers: each would start all that its tests share."""
    if worker_id == "master" or request.path.name in VARIANTS:
        return
    claim = tmp_path_factory.getbasetemp().parent / request.path.name  # The workers share it.
    with suppress(FileExistsError):
        claim.symlink_to(worker_id)
    assert claim.readlink().name == worker_id, "the scheduler of tests/conftest.py is not used"


@pytest.fixture(scope="session", autouse=True)
def hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the settings of this machine's user out: Copier's defaults, Git's name and hooks."""
    folder = tmp_path_factory.mktemp("home")
    copier_settings = folder / "copier.yml"
    copier_settings.write_text("{}\n")  # An empty file is not a valid one.
    git_settings = folder / "gitconfig"
    git_settings.write_text(
        "[user]\nname = Test\nemail = test@example.com\n[init]\ndefaultBranch = main\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPIER_SETTINGS_PATH", str(copier_settings))
        patch.setenv("GIT_CONFIG_GLOBAL", str(git_settings))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Compile each text of a template once: a third of the time of a render goes there."""
    compiled: dict[object, Any] = {}
    compile_text: Any = Environment.compile

    def compile_once(
        environment: Environment, source: str, name: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        # Copier makes an environment for each render; they compile alike.
        key = (source, name)
        if key in compiled:
            environment.preprocess(source)  # It forgets the last `yield`.
        else:
            compiled[key] = compile_text(environment, source, name, *rest, **options)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", compile_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def modes_are_on_the_disk() -> Iterator[None]:
    """Have Copier start no Git for each file that it writes, a third of the time of an update.

    It asks whether Git takes a file's mode from the disk, as it does here, and then does nothing.
    """

    def nothing(*_: object) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("copier._main.Worker._sync_git_index_executable_bit", nothing)
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the template as it stands, without its repository: read only.

    Copier clones a repository, warns when it is dirty and records a commit that exists nowhere.
    """
    folder = tmp_path_factory.mktemp("template") / "fastapi-pools"
    ignored = shutil.ignore_patterns("__pycache__", ".ruff_cache", ".pytest_cache", ".venv")
    folder.mkdir()
    shutil.copy(ROOT / "copier.yml", folder)
    shutil.copy(ROOT / "CHANGELOG.md", folder)
    for name in ("includes", "template"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture(scope="session")
def template_repository(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same in a repository of its own, committed and tagged v1.0.0: read only."""
    folder = tmp_path_factory.mktemp("repository") / "fastapi-pools"
    shutil.copytree(template, folder)
    commit_all(folder, tag="v1.0.0")
    return folder


@pytest.fixture(scope="session")
def history(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of all releases and of the template as it stands: read only."""
    return write_history(tmp_path_factory.mktemp("history") / "fastapi-pools", template)


@pytest.fixture(scope="session")
def render(copie_session: Copie, template: Path) -> Renderer:
    """Return the function that renders services: `render(ci="none").path`."""
    return Renderer(copie_session, template)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Run a MariaDB, one for each worker that needs one."""
    with TemporaryDirectory(dir=memory()) as folder, MariaDB(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQL]:
    """Run a MySQL, one for each worker that needs one."""
    with TemporaryDirectory(dir=memory()) as folder, MySQL(Path(folder)).running() as server:
        yield server


def memory() -> Path | None:
    """Return where there is a folder in memory, with room for a server."""
    room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1 << 30
    return SHARED_MEMORY if room else None
