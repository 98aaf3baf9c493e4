"""A fleet of services, from all releases and variants, is updated by one command."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from owner import ANCHOR, edit
from releases import ROOT, git, listed
from rendering import Renderer, commit_all
from running import environment, running
from test_install import OWN, UV, find_python
from updating import HEAD, cases, copy
from variants import curated

pytestmark = pytest.mark.timeout(900)

SIZE = int(os.environ.get("FLEET", "3"))
"""Services; each takes some 7 s of a processor, so `FLEET=12` is for whoever changes updates.

It also has them tested by their own tests.
"""

STAND_IN = """\
#!/bin/sh
case "$1" in
  lock) echo locked > uv.lock ;;
  run) shift && exec "$@" ;;
esac
"""
GH = '#!/bin/sh\necho "$@" >> "$ASKED"\n[ ! -e "$ASKED.fails" ]\n'
NOTHING = "#!/bin/sh\n"
REQUESTS = {"github": "pr create --fill --draft\n", "gitlab": "merge_request.create\n"}
SMALL = {"databases": [{"name": "primary", "engine": "sqlite"}], "containers": False, "ci": "none"}
EDITED = "src/my_service/dbkit/__init__.py"
GONE = "src/my_service/dbkit/migrations.py"
"""A file that 0.1.0 had and later releases have not."""
GITLAB = {
    "TEMPLATE_TOKEN": "t0ken",
    "CI_SERVER_HOST": "gitlab.example.com",
    "CI_PROJECT_PATH": "shop/orders",
    "GITLAB_USER_NAME": "Ann",
    "GITLAB_USER_EMAIL": "ann@example.com",
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with this Python's commands, and stand-ins for uv, pip and gh.

    These would ask PyPI and GitHub; below, the real uv updates a fleet.
    """
    folder = tmp_path_factory.mktemp("bin")
    for name, text in {"uv": STAND_IN, "gh": GH, "pip": NOTHING, "pipx": NOTHING}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "ASKED": str(folder / "asked")}


@pytest.fixture(scope="module")
def remotes(history: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the bare repositories of services that their owners have edited."""
    folder = tmp_path_factory.mktemp("remotes")
    found: list[Path] = []
    for release, variant in cases(list(curated()))[:SIZE]:
        service = folder / f"service-{len(found) + 1}"
        copy(history, service, variant.answers, release.tag)
        commit_all(service)
        edit(service)
        commit_all(service)
        git(folder, "clone", "--quiet", "--bare", service.name, f"{service.name}.git")
        shutil.rmtree(service)
        found.append(folder / f"{service.name}.git")
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
    paths = [os.path.relpath(path, tmp_path) for path in remotes]
    (tmp_path / "services.txt").write_text("".join(f"{path}\n" for path in paths))

    told = fleet(tmp_path, tools, "report", "services.txt")
    options = ["--test", "uv run python -m compileall -q src", "--request", "gh pr create --fill"]
    done = fleet(tmp_path, tools, "update", "services.txt", *options)

    assert told.stdout.count(f", behind {HEAD[1:]}\n") == SIZE, told.stdout
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(f" to {HEAD}, ") == SIZE
    assert done.stdout.endswith(f"{SIZE} of {SIZE} are fine.\n")
    for remote in remotes:
        assert git(remote, "show", f"template-{HEAD}:uv.lock") == "locked\n"
    (tmp_path / "services.txt").write_text(f"{paths[0]}\n")
    again = fleet(tmp_path, tools, "update", "services.txt", *options)
    assert f"and there is a branch template-{HEAD} already\n1 of 1 are fine.\n" in again.stdout
    assert Path(tools["ASKED"]).read_text() == "pr create --fill\n" * SIZE


def test_service_that_somebody_must_look_at_is_named(
    history: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    service = copy(history, tmp_path / "orders", {}, listed()[0].tag)
    commit_all(service)
    (tmp_path / "empty").mkdir()
    commit_all(tmp_path / "empty")
    (tmp_path / "services.txt").write_text(f"# Ours.\n{service}\n\n{tmp_path / 'empty'}\n")

    done = fleet(tmp_path, tools, "report", "services.txt")

    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"orders: {listed()[0].version}, behind {HEAD[1:]}",
        "LOOK: empty: no .copier-answers.yml: not made from a template",
        "1 of 2 are fine.",
    ]


def test_services_of_one_name_are_refused(tools: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "services.txt").write_text("git@one.example:orders.git\n../two/orders\n")

    done = fleet(tmp_path, tools, "report", "services.txt")

    assert done.returncode == 2
    assert "more than one is called orders: list them apart" in done.stderr


def test_program_that_is_missing_is_named(tools: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "services.txt").write_text(f"{tmp_path}\n")

    done = fleet(tmp_path, tools | {"PATH": str(tmp_path)}, "report", "services.txt")

    said = f"LOOK: {tmp_path.name}: git: No such file or directory\n0 of 1 are fine.\n"
    assert done.stdout == said


HOSTILE = """\
[core]
attributesFile = {folder}/attributes
autocrlf = true
excludesFile = {folder}/excludes
fsmonitor = {folder}/hooks/prepare-commit-msg
hooksPath = {folder}/hooks
quotePath = false
safecrlf = true
[apply]
whitespace = error
[init]
defaultBranch = main
templateDir = {folder}/template
[status]
showUntrackedFiles = no
[user]
name = Test
email = test@example.com
"""


def hostile(folder: Path) -> str:
    """Write settings of Git with which Copier alone loses lines, and return where they are."""
    (folder / "template" / "info").mkdir(parents=True)
    (folder / "template" / "info" / "exclude").write_text("*.toml\n")
    hook = folder / "hooks" / "prepare-commit-msg"
    hook.parent.mkdir()
    hook.write_text('#!/bin/sh\n! grep "^dumb commit" "$1"\n')  # Only Copier writes that.
    hook.chmod(0o755)
    (folder / "attributes").write_text("*.toml -diff\n* -text\n")
    (folder / "excludes").write_text(".env*\n")
    (folder / "gitconfig").write_text(HOSTILE.format(folder=folder))
    return str(folder / "gitconfig")


@pytest.fixture
def orders(history: Path, tmp_path: Path) -> Path:
    """Return the bare repository of a service of the first release, edited, with odd files."""
    service = copy(history, tmp_path / "work", SMALL, listed()[0].tag)
    commit_all(service)
    edit(service)
    (service / "docs").mkdir()
    (service / "docs" / "ångström.md").write_text("Ours. \n")
    commit_all(service)
    git(tmp_path, "clone", "--quiet", "--bare", "work", "orders.git")
    (tmp_path / "services.txt").write_text("orders.git\n")
    return tmp_path / "orders.git"


@pytest.mark.weekly
def test_settings_of_git_lose_nothing(orders: Path, tools: dict[str, str], tmp_path: Path) -> None:
    tools = tools | {"GIT_CONFIG_GLOBAL": hostile(tmp_path / "git")}
    careless = f"import sys; sys.path.insert(0, {str(ROOT / 'fleet')!r}); import fleet; "
    careless += "fleet.SETTINGS.clear(); fleet.SETTINGS['core.quotePath'] = 'true'; "
    careless += "fleet.SETTINGS['core.hooksPath'] = '/dev/null'; "
    careless += "sys.exit(fleet.main(['update', 'services.txt']))"
    command = [sys.executable, "-c", careless]

    alone = subprocess.run(
        command, cwd=tmp_path, env=tools, check=False, capture_output=True, text=True
    )
    done = fleet(tmp_path, tools, "update", "services.txt", "--request", "true")

    assert alone.returncode == 1
    assert alone.stdout.startswith(f"LOOK: orders: v0.1.0 to {HEAD}, lost: .env.example: ")
    assert done.returncode == 0, done.stdout
    added = git(orders, "show", f"template-{HEAD}:.env.example").partition(ANCHOR)[2]
    assert added == "# Where the shelves are.\nWAREHOUSE=north\n"
    assert "tenacity" in git(orders, "show", f"template-{HEAD}:pyproject.toml")


@pytest.mark.weekly
def test_request_that_failed_is_made_by_the_next_run(
    orders: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    tools = tools | {"ASKED": str(tmp_path / "asked")}
    options = ["update", "services.txt", "--request", "gh pr create"]
    hook = refuse_pushes(orders)

    refused = fleet(tmp_path, tools, *options)
    hook.unlink()
    (tmp_path / "asked.fails").touch()
    failed = fleet(tmp_path, tools, *options)
    (tmp_path / "asked.fails").unlink()
    done = fleet(tmp_path, tools, *options)

    assert re.match("LOOK: orders: .*no pushes on Fridays", refused.stdout), refused.stdout
    assert failed.stdout.startswith(f"LOOK: orders: v0.1.0 to {HEAD}, gh pr create: ")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "asked").read_text() == "pr create\n" * 2


def test_changed_file_that_an_update_deletes_is_lost(
    history: Path, tools: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git shows no conflict in it, and among many files nobody sees it."""
    monkeypatch.setenv("PATH", tools["PATH"])
    monkeypatch.syspath_prepend(str(ROOT / "fleet"))  # pyright: ignore[reportUnknownMemberType]  # pytest does not type it.
    dropped = importlib.import_module("fleet").dropped
    service = copy(history, tmp_path / "orders", SMALL, listed()[0].tag)
    (service / GONE).write_text("# Ours.\n")
    (service / EDITED).write_text("\0")  # Git does not merge it.
    commit_all(service)

    before = dropped(service, listed()[0].tag)
    for name in (GONE, "ruff.toml"):
        (service / name).unlink()
    (service / EDITED).write_text("# Theirs.\n")
    after = dropped(service, listed()[0].tag)

    assert before == []
    assert after == [f"{EDITED}, changed and overwritten", f"{GONE}, changed and deleted"]
    assert git(service, "worktree", "list", "--porcelain").count("worktree ") == 1


PLANTED = {
    "fine": "v0.3.0 to {head}, ",
    "current": "{head}, nothing to update",
    "asked": "v0.2.0 to {head}, and there is a branch template-{head} already",
    "conflict": f"LOOK: v0.3.0 to {{head}}, conflicts: {EDITED}",
    "binary": f"LOOK: v0.2.0 to {{head}}, lost: {EDITED}, changed and overwritten",
    "moved": f"LOOK: v0.1.0 to {{head}}, lost: {GONE}, changed and deleted",
    "broken": "LOOK: v0.1.0 to {head}, python -m compileall -q src: ",
    "stopped": "LOOK: copier update: ",
    "elsewhere": "LOOK: copier update: ",
    "refused": "LOOK: git push: no pushes on Fridays",
    "unasked": "LOOK: v0.2.0 to {head}, sh -c ",
    "by-hand": "LOOK: no .copier-answers.yml: not made from a template",
    "unborn": "LOOK: no .copier-answers.yml: not made from a template",
    "nowhere": "LOOK: git clone ",
}
"""Fourteen services, each with its own failure or none, and what the script must say of it."""


CHANGES = {
    "conflict": (EDITED, ".+", "# Ours.\n"),
    "binary": (EDITED, ".+", "\0"),
    "moved": (GONE, ".+", "# Ours.\n"),
    "broken": ("src/my_service/main.py", ".+", "def\n"),
    "stopped": (".copier-answers.yml", "'3.11'", "'3.5'"),
    "elsewhere": (".copier-answers.yml", "(?<=_src_path: )[^\n]+", "/nowhere"),
}


def plant(name: str, history: Path, folder: Path) -> None:
    """Make the bare repository of a service of `PLANTED`."""
    if name in {"unborn", "nowhere"}:
        git(folder, "init", "--quiet", "--bare", f"{name.replace('nowhere', 'gone')}.git")
        return
    found = re.search(r"v[\d.]+(?= to)", PLANTED[name])
    ref = HEAD if name == "current" else found[0] if found else listed()[-1].tag
    service = copy(history, folder / "work" / name, SMALL, ref)
    commit_all(service)
    if name in CHANGES:
        path, old, new = CHANGES[name]
        text = (service / path).read_text()
        (service / path).write_text(re.sub(old, new, text, count=1, flags=re.DOTALL))
    elif name == "by-hand":
        (service / ".copier-answers.yml").unlink()
    commit_all(service)
    if name == "asked":
        git(service, "branch", f"template-{HEAD}")
    git(folder, "clone", "--quiet", "--bare", str(service), f"{name}.git")
    if name == "refused":
        refuse_pushes(folder / f"{name}.git")


def refuse_pushes(remote: Path) -> Path:
    """Have a remote refuse what is pushed; return the hook that does it."""
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no pushes on Fridays\nexit 1\n")
    hook.chmod(0o755)
    return hook


@pytest.mark.skipif("FLEET" not in os.environ, reason="takes minutes, so it runs with FLEET=12")
def test_report_of_planted_failures_is_true(
    history: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    for name in PLANTED:
        plant(name, history, tmp_path)
    (tmp_path / "services.txt").write_text("".join(f"{name}.git\n" for name in PLANTED))
    tests = ["--test", "python -m compileall -q src"]
    request = ["--request", "sh -c '[ ${PWD##*/} != unasked ]'"]

    done = fleet(tmp_path, tools, "update", "services.txt", *tests, *request)

    *said, count = done.stdout.splitlines()
    truth = [
        re.sub("^(LOOK: )?", rf"\g<0>{name}: ", text.format(head=HEAD))
        for name, text in PLANTED.items()
    ]
    assert [pair for pair in zip(truth, said, strict=True) if not pair[1].startswith(pair[0])] == []
    assert (count, done.returncode) == ("3 of 14 are fine.", 1)
    pushed = {
        name
        for name in PLANTED
        if name != "nowhere"
        and git(tmp_path / f"{name}.git", "branch", "--list", f"template-{HEAD}")
    }
    assert pushed == {"fine", "asked"}


def script_of(service: Path) -> str:
    """Read what the job runs that looks for a new release of the template."""
    if (service / ".gitlab-ci.yml").exists():
        jobs = yaml.safe_load((service / ".gitlab-ci.yml").read_text())
        return "\n".join(jobs["template"]["script"])
    workflow = yaml.safe_load((service / ".github" / "workflows" / "template.yml").read_text())
    steps = workflow["jobs"]["update"]["steps"]
    return "\n".join(each["run"] for each in steps if "run" in each)


@pytest.mark.parametrize("ci", ["github", pytest.param("gitlab", marks=pytest.mark.weekly)])
def test_job_opens_a_request_once(
    ci: str, history: Path, render: Renderer, tools: dict[str, str], tmp_path: Path
) -> None:
    """Run its script as it is written, on clones whose service was never updated.

    The owner of the one on GitHub has written into two files of the template's; one of them goes.
    """
    script = script_of(render(ci=ci).path)
    service = copy(history, tmp_path / "orders", {"ci": ci}, listed()[0].tag)
    if ci == "github":
        for name in (EDITED, GONE):
            (service / name).write_text("# Ours.\n")
    commit_all(service)
    git(tmp_path, "clone", "--quiet", "--bare", "orders", "orders.git")
    remote = tmp_path / "orders.git"
    git(remote, "config", "receive.advertisePushOptions", "true")
    hook = remote / "hooks" / "post-receive"
    hook.write_text(
        '#!/bin/sh\n[ -z "$GIT_PUSH_OPTION_0" ] || echo $GIT_PUSH_OPTION_0 >> "$ASKED"\n'
    )
    hook.chmod(0o755)
    variables = GITLAB | {
        "ASKED": str(tmp_path / "asked"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://template:t0ken@gitlab.example.com/shop/orders.git",
    }

    for number in range(2):
        clone = tmp_path / f"clone-{number}"
        git(tmp_path, "clone", "--quiet", "--depth=1", remote.as_uri(), clone.name)
        command = ["bash", "-e", "-c", script]
        done = subprocess.run(
            command, cwd=clone, env=tools | variables, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    branch = f"template-{HEAD}"
    assert git(remote, "branch", "--list", branch).strip() == branch
    assert git(remote, "show", f"{branch}:uv.lock") == "locked\n"
    assert (tmp_path / "asked").read_text() == REQUESTS[ci]
    message = git(remote, "log", "-1", "--format=%B", branch)
    assert message.startswith(
        f"build: update to {HEAD} of the template\n\n"
        + (f"Conflicts: {EDITED}\n{GONE}: changed here, and deleted\n\n" if ci == "github" else "")
        + f"Updating to template version {HEAD[1:]}\n"
    )
    assert "\nAction needed since 0.2.0:\n\n* A `datetime` column " in message
    assert "\nThen: uv lock && uv run manage.py check" in message


@pytest.mark.skipif("FLEET" not in os.environ, reason="takes minutes, so it runs with FLEET=12")
def test_all_are_green(remotes: list[Path], tmp_path: Path) -> None:
    """By the real uv, from PyPI: what each service depends on is locked, installed and run."""
    (tmp_path / "services.txt").write_text("".join(f"{path}\n" for path in remotes))
    for remote in remotes:  # A test above has pushed, and what is there is not tested again.
        git(remote, "update-ref", "-d", f"refs/heads/template-{HEAD}")
    python = shutil.which(find_python("3.13"))  # as one of them asks
    folders = [str(UV.parent), os.environ["PATH"], str(Path(str(python)).parent)]
    variables = OWN | {"PATH": os.pathsep.join(folders)}
    commands = ["pytest", "manage.py migrate", "manage.py check --fail-level warning"]
    tests = [word for each in commands for word in ("--test", f"uv run {each}")]

    done = fleet(tmp_path, environment(**variables), "update", "services.txt", *tests)

    assert done.stdout.endswith(f"{SIZE} of {SIZE} are fine.\n"), done.stdout
    assert done.stdout.count(" files\n") == SIZE, done.stdout
    for remote in remotes:
        command = (UV, "run", "manage.py")
        with running(tmp_path / "fleet" / remote.stem, command, **variables) as served:
            assert served.client.get("/").json() == "hello"
            assert served.stop() == 0, served.log
