"""Services that their owners have edited are updated from every release, without conflict."""

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dbkit.commands import template_version
from owner import ANCHOR
from plumbum import local
from releases import ROOT, Release, git, listed
from rendering import Renderer, commit_all
from running import manage, run, running
from test_install import UV
from updating import (
    CONFLICT,
    HEAD,
    Owned,
    Tree,
    answers_of,
    cases,
    copy,
    faults,
    is_yours,
    own,
    owner_of,
    owners,
    pattern,
    tree,
    update,
)
from variants import Variant, curated

BIN = Path(sys.executable).parent
PATH = os.pathsep.join([str(BIN), os.environ["PATH"]])
VARIANTS = list(curated())


def releases_for(number: int, variant: Variant) -> list[Release]:
    """Choose which a variant is updated from: the newest, and of the older ones one, in turn.

    The first is updated from each.
    """
    older = [release for release, _ in cases([variant])]
    newest = older.pop()
    return [*(older[number % len(older) :][:1] if number and older else older), newest]


CASES = [
    pytest.param(release, variant, id=f"{release.version}-{variant.name}")
    for number, variant in enumerate(VARIANTS)
    for release in releases_for(number, variant)
]


def chosen(name: str) -> Variant:
    """Return a curated variant."""
    return next(each for each in VARIANTS if each.name == name)


def started(
    history: Path, release: Release, variant: Variant, render: Renderer, folder: Path
) -> Owned:
    """Render a service from a release, and have its owner edit it.

    Where later versions have files of the owner's, this owner has some of that name already.
    """
    copy(history, folder, variant.answers, release.tag)
    later = tree(render(**variant.answers).path).keys() - tree(folder).keys()
    return own(folder, {name for name in later if is_yours(name)})


@pytest.mark.parametrize(("release", "variant"), CASES)
def test_update_keeps_what_is_the_owners_and_renews_the_rest(
    history: Path, release: Release, variant: Variant, render: Renderer, tmp_path: Path
) -> None:
    service = started(history, release, variant, render, tmp_path / "service")

    update(service.folder)

    assert faults(service, render(**answers_of(service.folder)).path) == []
    assert f"_commit: {HEAD}\n" in (service.folder / ".copier-answers.yml").read_text()


def test_updated_service_works_and_has_nothing_to_update(
    history: Path, render: Renderer, tmp_path: Path
) -> None:
    """Its owner's code uses every public name of the kit: it is typed, tested and served."""
    variant = chosen("four-databases")
    service = started(history, listed()[0], variant, render, tmp_path / "service")
    update(service.folder)
    commit_all(service.folder)

    update(service.folder)

    assert git(service.folder, "status", "--porcelain") == ""
    # Its kit is that of every service, which has been checked.
    change("pyrightconfig.json", '"include"', '"exclude": ["src/*/dbkit"], "include"')(
        service.folder
    )
    pyright = run(service.folder, BIN / "pyright", "--pythonpath", sys.executable)
    assert pyright.returncode == 0, pyright.stdout
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "anyio"]
    tests = run(service.folder, *pytest_, variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert tests.returncode == 0, tests.stdout
    with running(service.folder) as served:
        assert served.client.post("/shelves/a1").status_code == 201
        assert served.client.get("/shelves/count").json() == 1
        assert served.client.get("/").json() == "hello"
        check = manage(service.folder, "check", "--fail-level", "warning")
        assert check.returncode == 0, check.stdout


def test_check_says_whether_the_template_has_a_newer_release(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    answers = tmp_path / ".copier-answers.yml"
    for commit, source, said in [
        (listed()[0].tag, history, f"0.1.0; {HEAD[1:]} is out: copier update --defaults"),
        ("v0.2.0-3-g1a2b3c", f"git+{history.as_uri()}", f"0.2.0; {HEAD[1:]} is out: copier"),
        (HEAD, f"'{history}'", f"{HEAD[1:]}, the newest release"),
        (HEAD, tmp_path / "nothing", f"{HEAD[1:]}; its newest release is unknown: the template"),
    ]:
        answers.write_text(f"_commit: {commit}\n_src_path: {source}\n")
        assert (template_version.describe(tmp_path) or "").startswith(f"template {said}")

    monkeypatch.setenv("CI", "true")
    assert template_version.describe(tmp_path) is None
    monkeypatch.delenv("CI")
    answers.write_text("ci: none\n")  # It was rendered from a folder, of no release.
    assert template_version.describe(tmp_path) is None
    answers.unlink()
    assert template_version.describe(tmp_path) is None


# ------------------------------------------------------------------------- what updates ask for

# Code of an owner to which each command of these actions points.
TO_DO = """\
    except IntegrityError:
session.execute(text("COMMIT"))
session.execute(text("SELECT 1; SELECT 2"))
session.execute(text(f"alter table items add {column}"))
{"expr": 'sum by (http_route) (rate(x{http_route="GET /items"}[5m]))'}
sa.Enum("a", "b")
Database("sales", "mysql")
from ..dbkit.usage import Holder
"""


def actions() -> list[str]:
    """List what the changelog asks of owners, since the first release."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    news = changelog.partition("\n## 0.3.0,")[0]
    earlier = (ROOT / "includes" / "earlier_actions.md").read_text(encoding="utf-8")
    sections = re.findall(
        r"^### Action needed\n(.*?)(?=^##|\Z)", f"{news}\n{earlier}", re.MULTILINE | re.DOTALL
    )
    return [
        action for each in sections for action in re.split(r"^\* ", each, flags=re.MULTILINE)[1:]
    ]


def test_each_action_names_the_check_or_the_command_that_finds_it() -> None:
    finds = r"`(grep |sed |gh |uv run ruff|manage\.py makemigrations|\w+\.[EW]\d{3}`)"

    assert [action for action in actions() if not re.search(finds, action)] == []


def test_commands_of_actions_find_what_is_left_to_do(
    history: Path, render: Renderer, tmp_path: Path
) -> None:
    commands = [each for action in actions() for each in re.findall(r"`(grep [^`\n]+)`", action)]
    answers = chosen("four-databases").answers
    old = copy(history, tmp_path / "old", answers, "v0.2.0")
    for folder in (next(old.glob("src/*/databases")), old / "migrations"):
        (folder / "to_do.py").write_text(TO_DO)
    (old / "deploy").mkdir(exist_ok=True)
    (old / "deploy" / "service.yaml").write_text("replicas: 2\n")

    def found(folder: Path) -> list[str]:
        return [each for each in commands if run(folder, "bash", "-c", each).stdout]

    assert len(commands) > 5
    assert found(old) == commands
    assert found(render(**answers).path) == []


KIT = "template/src/{{package}}/dbkit"


def is_module(name: str) -> bool:
    """Whether the kit has a module or package, e.g. "pool.usage"."""
    path = ROOT / KIT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_modules_that_have_moved_are_listed() -> None:
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    section = text.partition("## Modules that have moved")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    (release,) = [each for each in listed() if each.version == "0.3.0"]
    listing = git(ROOT, "ls-tree", "--name-only", release.commit, f"{KIT}/").splitlines()
    flat = {Path(path).stem for path in listing} - {"__init__", "alembic"}

    assert sorted(filter(lambda name: not is_module(name), flat - rows.keys())) == []
    assert rows.keys() <= flat
    now = [name for new in rows.values() for name in re.findall(r"[\w.]+", new)]
    assert [name for name in now if not is_module(name)] == []


# ----------------------------------------------------------------------------- recorded answers


def taken(release: Release | None = None) -> dict[str, set[str]]:
    """Read the tables of names that a release, or the template as it stands, takes for itself."""
    text = (ROOT / "includes" / "names.jinja").read_text(encoding="utf-8")
    if release is not None:
        text = git(ROOT, "show", f"{release.commit}:includes/names.jinja")
    tables = re.findall(r'{% set (\w+) = "(.*?)"', text, re.DOTALL)
    return {name: set(words.split()) for name, words in tables}


def refused_since(release: Release, *tables: str) -> list[str]:
    """List the names that a release allowed and the template as it stands refuses."""
    now, then = taken(), taken(release)
    refused = {name for table in tables for name in now[table]}
    return sorted(refused - {name for table in tables for name in then.get(table, ())})


def names_refused_since(release: Release) -> tuple[list[str], list[str]]:
    """List databases, and packages, that a release allowed and that are refused now."""
    tables = "python_keywords", "python_builtins", "sql_words", "server_databases"
    names = refused_since(release, *tables, "windows_devices", "service_names", "example_names")
    names += ["test_rows"] if release.number < (0, 3) else []
    return names, refused_since(release, "dependencies", "python_modules", "project_paths")


@pytest.mark.parametrize(
    "release",
    [release for release in listed() if any(names_refused_since(release))],
    ids=lambda release: release.version,
)
def test_names_that_a_release_allowed_are_kept(
    history: Path, tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, packages = names_refused_since(release)
    folder = copy(
        history,
        tmp_path / "service",
        {
            "project_name": (packages or ["orders"])[0],
            "databases": [{"name": each, "engine": "sqlite"} for each in ["primary", *names]],
        },
        release.tag,
    )
    service = own(folder, set())

    update(folder)

    assert answers_of(folder) == service.answers
    assert f"_commit: {HEAD}\n" in (folder / ".copier-answers.yml").read_text()
    monkeypatch.delenv("CI", raising=False)  # There it asks for no newest release.
    checked = manage(folder, "check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.endswith(f"\ntemplate {HEAD[1:]}, the newest release.\n")


def test_validators_that_depend_on_recorded_answers_are_run_in_updates() -> None:
    """Copier renders a service three times in an update, and only once beside its answers file.

    So each of these validators is run in updates by a test, above, in test_questions.py or in
    test_stories.py.
    """
    questions = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))

    assert {
        name
        for name, question in questions.items()
        if not name.startswith("_") and "recorded" in question.get("validator", "")
    } == {"project_name", "databases", "licence", "adopt"}


# ------------------------------------------------------------------------------------- ownership


@pytest.fixture(scope="session")
def files(render: Renderer) -> set[str]:
    """List the files of all curated variants."""
    return {name for variant in VARIANTS for name in tree(render(**variant.answers).path)}


def test_every_file_has_one_owner(files: set[str]) -> None:
    assert {owner_of(name) for name in files} == {"the template's", "shared", "yours"}


def test_every_path_that_has_an_owner_is_rendered(files: set[str]) -> None:
    unused = [path for path in owners() if not any(map(pattern(path).fullmatch, files))]

    assert unused == []


def test_shared_files_end_with_their_anchor(files: set[str], render: Renderer) -> None:
    service = tree(render().path)
    shared = [name for name in files if owner_of(name) == "shared"]

    assert [name for name in shared if not service[name].endswith(ANCHOR.encode())] == []


# ------------------------------------------------------------------------ shared files over time


SHARED = [path for path, owner in owners().items() if owner == "shared"]
STABLE_SINCE = (0, 3, 1)
"""Releases before this one changed, or moved, lines that owners' additions are found by."""


def context(text: str) -> list[list[str]]:
    """Return the lines by which Git finds what stands below each anchor."""
    lines = text.splitlines(keepends=True)
    return [
        lines[at - 2 : at + 1] for at, line in enumerate(lines) if line.strip() + "\n" == ANCHOR
    ]


def shared_faults(then: Tree, now: Tree) -> list[str]:
    """Say what an update would take owners' lines from: changes near anchors, and moved lines."""
    found: list[str] = []
    for name in SHARED:
        old, new = then[name].decode(), now[name].decode()
        if context(old) != context(new):
            found.append(f"{name}: other lines above an anchor")
        both = Counter(old.splitlines()) & Counter(new.splitlines())
        once = {line for line, count in both.items() if count == 1 and line.strip()}
        if [line for line in old.splitlines() if line in once] != [
            line for line in new.splitlines() if line in once
        ]:
            found.append(f"{name}: lines were moved")
    return found


def test_shared_files_only_grow_between_their_anchors(
    history: Path, render: Renderer, tmp_path: Path
) -> None:
    answers = chosen("four-databases").answers
    now = tree(render(**answers).path)

    for release in [each for each in listed() if each.number >= STABLE_SINCE]:
        then = tree(copy(history, tmp_path / release.version, answers, release.tag))
        found = set(shared_faults(then, now))
        if release.number < (0, 5):  # Since then the settings are in three groups.
            found -= {".env.example: lines were moved"}
        assert found == set(), release


def test_shared_files_that_change_near_an_anchor_or_move_lines_are_noticed(
    render: Renderer,
) -> None:
    now = tree(render(**chosen("four-databases").answers).path)

    def faults_of(old: str, new: str) -> list[str]:
        text = now["pyproject.toml"].decode()
        assert old in text
        return shared_faults(now, now | {"pyproject.toml": text.replace(old, new).encode()})

    assert faults_of("# three lines", "# some lines") == [
        "pyproject.toml: other lines above an anchor"
    ]
    moved = re.findall(r'    "(?:fastapi-offline|httpx)[^\n]*\n', now["pyproject.toml"].decode())
    assert faults_of("".join(moved), "".join(reversed(moved))) == [
        "pyproject.toml: lines were moved"
    ]
    assert faults_of("dev = [\n", 'dev = [\n    "new>=1",\n') == []


# Settings of Git that many have, and an update must not notice.
HABITS = """\
[color]
ui = always
[column]
ui = always
[commit]
gpgSign = true
verbose = true
[core]
abbrev = 4
autocrlf = true
editor = false
fileMode = false
ignoreCase = true
pager = false
untrackedCache = true
[diff]
algorithm = histogram
context = 0
external = false
mnemonicPrefix = true
noprefix = true
renames = copies
[feature]
manyFiles = true
[fetch]
prune = true
recurseSubmodules = true
[gpg]
program = false
[merge]
conflictStyle = zdiff3
tool = false
[pager]
diff-tree = true
status = true
[rerere]
autoUpdate = true
enabled = true
[safe]
bareRepository = explicit
directory = /nowhere
[status]
branch = true
short = true
[submodule]
recurse = true
[user]
useConfigOnly = true
"""
# What people change in the template's files: a pattern, what it becomes, and what must be kept.
CHANGED = {
    ".dockerignore": (r"\Z", "/ours\n", "/ours"),
    ".env.example": (r"# (DATABASE_POOL_SIZE=).*", r"\g<1>37", "DATABASE_POOL_SIZE=37"),
    ".github/workflows/ci.yml": (r"\Z", "      - run: make ours\n", "make ours"),
    ".gitignore": (r"\A", "/ours/\n", "/ours/"),
    "Dockerfile": (r"EXPOSE 8000", "EXPOSE 8000 9000", "EXPOSE 8000 9000"),
    "compose.yaml": (r"\nvolumes:", "\n  ours:\n    image: redis\n\nvolumes:", "image: redis"),
    "pyproject.toml": (r'version = "0.1.0"', 'version = "3.1.0"', 'version = "3.1.0"'),
    "pyrightconfig.json": (r'"manage.py"', '"manage.py", "ours"', '"ours"'),
    "ruff.toml": (r"line-length = 100", "line-length = 120", "line-length = 120"),
    "src/my_service/databases/__init__.py": (r"\Z", "# Ours.\n", "# Ours."),
    "src/my_service/dbkit/errors.py": (r"\Z", "# Ours.\n", "# Ours."),
}
ADDED = {"": ["pydantic-settings", "redis", "boto3"], "--dev": ["mypy", "polyfactory"]}


@pytest.mark.parametrize("release", listed(), ids=lambda release: release.version)
def test_habits_of_owners_lose_nothing(
    history: Path, render: Renderer, tmp_path: Path, release: Release
) -> None:
    """They use `uv add`, work on Windows, have settings of Git, and change the template's files.

    Before 0.3.0 `uv add` sorted into the template's lists, which may conflict with later lines.
    """
    answers = chosen("one-sqlite").answers | {"ci": "github", "containers": True}
    folder = copy(history, tmp_path / "service", answers, release.tag)
    then = tree(folder)
    for option, names in ADDED.items():
        add = run(folder, UV, "add", "--frozen", *option.split(), *names)
        assert add.returncode == 0, add.stdout
    for path, (old, new, _) in CHANGED.items():
        text = (folder / path).read_text(encoding="utf-8")
        assert re.search(old, text), path
        (folder / path).write_text(re.sub(old, new, text, count=1))
    (folder / ".gitattributes").write_text("* text=auto eol=lf\n")  # as docs/updating.md says
    commit_all(folder)
    git(folder, "rm", "-r", "--quiet", "--cached", ".")
    git(folder, "-c", "core.autocrlf=true", "reset", "--quiet", "--hard")
    (tmp_path / "gitconfig").write_text(HABITS)

    with local.env(GIT_CONFIG_GLOBAL=str(tmp_path / "gitconfig")):
        update(folder)

    after = tree(folder)
    dependencies = after["pyproject.toml"].decode()
    assert [
        name for names in ADDED.values() for name in names if f'"{name}"' not in dependencies
    ] == []
    assert [path for path, (*_, kept) in CHANGED.items() if kept not in after[path].decode()] == []
    assert [path for path in after if path.endswith(".rej")] == []
    unmerged = git(folder, "diff", "--name-only", "--diff-filter=U").splitlines()
    assert unmerged == [path for path, text in after.items() if CONFLICT.search(text)]
    now = tree(render(**answers).path)
    assert [path for path in unmerged if then[path] == now[path]] == []
    assert release.number < (0, 3) or "pyproject.toml" not in unmerged


# Settings with which Copier does not see what it could not merge, or a file at all.
OF_OWNERS = """\
[core]
excludesFile = {folder}/excludes
[init]
defaultBranch = main
templateDir = {folder}/template
[status]
showUntrackedFiles = no
[user]
name = Test
email = test@example.com
"""


def test_update_by_hand_under_settings_of_git(owned: Owned, history: Path, tmp_path: Path) -> None:
    """Lines below the anchors are kept, and a file that is left unmerged is named."""
    template = shutil.copytree(history, tmp_path / "template")
    service = owned.duplicate(tmp_path / "service", template).folder
    change("ruff.toml", "100", "90")(service)
    commit_all(service)
    change("template/ruff.toml", "100", "120")(template)
    change("template/.env.example.jinja", "# DATABASE_URL", "# Any.\n# DATABASE_URL")(template)
    change("template/pyproject.toml.jinja", '"alembic>=1.20', '"alembic>=1.21')(template)
    commit_all(template, tag="v100.0.0")
    (tmp_path / "git" / "template" / "info").mkdir(parents=True)
    (tmp_path / "git" / "template" / "info" / "exclude").write_text("*.toml\n")
    (tmp_path / "git" / "excludes").write_text(".env*\n*.env\ndbkit\npyrightconfig.json\n")
    (tmp_path / "gitconfig").write_text(OF_OWNERS.format(folder=tmp_path / "git"))
    variables = {"GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig")}

    # Copier has read the environment of this process already.
    done = run(service, BIN / "copier", "update", "--defaults", variables=variables)

    assert done.returncode == 0, done.stdout

    assert "WAREHOUSE=north\n" in (service / ".env.example").read_text()
    assert "# Any.\n" in (service / ".env.example").read_text()
    text = (service / "pyproject.toml").read_text()
    assert "tenacity" in text
    assert "freezegun" in text
    assert "alembic>=1.21" in text
    said = done.stdout.partition("NOT MERGED, and not shown by Git")[2]
    assert said.splitlines()[2:4] == ["* ruff.toml.rej", ""]

    git(service, "reset", "--quiet", "--hard")
    git(service, "clean", "--quiet", "--force", "-d")
    command = documented("GIT_CONFIG_GLOBAL=/dev/null")
    done = run(service, "bash", "-c", command, variables=variables | {"PATH": PATH})

    assert "NOT MERGED" not in done.stdout
    assert git(service, "diff", "--name-only", "--diff-filter=U") == "ruff.toml\n"


def documented(begin: str) -> str:
    """Return a block of commands of docs/updating.md."""
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    blocks: list[str] = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [each for each in blocks if each.startswith(begin)]
    return block


# -------------------------------------------------------------------------------------- mutations

Mutation = Callable[[Path], object]


def change(path: str, old: str, new: str) -> Mutation:
    """Change a file of the template."""

    def mutate(template: Path) -> None:
        text = (template / path).read_text()
        assert old in text
        (template / path).write_text(text.replace(old, new))

    return mutate


def add(path: str, text: str) -> Mutation:
    """Add to a file of the template, or add one."""

    def mutate(template: Path) -> None:
        (template / path).parent.mkdir(exist_ok=True)
        with (template / path).open("a") as file:
            file.write(text)

    return mutate


def move(path: str, to: str) -> Mutation:
    """Move a file of the template."""
    return lambda template: (template / path).rename(template / to)


def drop(path: str) -> Mutation:
    """Drop a file of the template."""
    return lambda template: (template / path).unlink()


def unlist(path: str) -> Mutation:
    """Have copier.yml no longer keep a file of the owner's."""
    return change("copier.yml", path, "/nothing")


PACKAGE = "template/src/{{package}}"
# What breaks owners, and the fault that it is noticed by.
MUTATIONS: dict[str, tuple[list[Mutation], str]] = {
    "owner's file moved": (
        [move(f"{PACKAGE}/main.py.jinja", f"{PACKAGE}/application.py.jinja")],
        "main.py: an owner of 0.1.0 had it",
    ),
    "owner's file changed, and no longer kept": (
        [
            unlist("/README.md"),
            change("template/README.md.jinja", "apply migrations", "apply them"),
        ],
        "README.md: conflict",
    ),
    "example no longer kept deleted": (
        [unlist("/src/*/items/")],
        "src/my_service/items/models.py: nobody asked for it",
    ),
    "new file where the owner may have one": (
        [add("template/tests/test_shelves.py", "# ours"), unlist("/tests/")],
        "tests/test_shelves.py: conflict",
    ),
    "line below an anchor": (
        [add("template/.gitignore", "*.log\n")],
        ".gitignore: conflict",
    ),
    "anchor dropped": (
        [change("template/.env.example.jinja", ANCHOR, "")],
        ".env.example: ",
    ),
    "template's file no longer renewed": (
        [
            change("copier.yml", "  - /LICENSE\n  - /migr", "  - /ruff.toml\n  - /migr"),
            change("template/ruff.toml", "100", "120"),
        ],
        "ruff.toml: not as expected",
    ),
    "file left out by an answer, at a path where it was": (
        [
            change(
                "copier.yml", '  - "~*"\n', '  - "{% if not containers %}/ruff.toml{% endif %}"\n'
            )
        ],
        "ruff.toml: nobody asked for it",
    ),
    "random text": (
        [
            add("template/ruff.toml", "# {{ range(99999) | random }}\n"),
            move("template/ruff.toml", "template/ruff.toml.jinja"),
        ],
        "ruff.toml: not as expected",
    ),
    "answer forgotten": (
        [change("copier.yml", "Where its tests run", "Where its tests run\n  when: false")],
        "answer ci: None was 'none'",
    ),
    "validator tightened": (
        [change("includes/databases.jinja", "name | length > 24", "name | length > 5")],
        "has 7 characters",
    ),
    "name taken, and not excused where there are no recorded answers": (
        [
            change("includes/names.jinja", 'service_names = "', 'service_names = " primary '),
            change("includes/updates.jinja", "conf.data.licence is defined", "false"),
        ],
        "primary is the name of something else",
    ),
}


@pytest.fixture(scope="module")
def owned(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Owned:
    """Return a small service of the newest version, edited by its owner: read only."""
    folder = tmp_path_factory.mktemp("owned") / "service"
    return own(copy(history, folder, chosen("sqlite-bare").answers, HEAD), set())


def faults_after(mutations: list[Mutation], owned: Owned, history: Path, folder: Path) -> list[str]:
    """Say what is wrong after an update to a mutated template."""
    template = shutil.copytree(history, folder / "template")
    service = owned.duplicate(folder / "service", template)
    for mutate in mutations:
        mutate(template)
    commit_all(template, tag="v100.0.0")
    try:
        update(service.folder)
        return faults(service, copy(template, folder / "fresh", answers_of(service.folder)))
    except ValueError as error:
        return [str(error)]


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_breaks_owners_is_noticed(
    owned: Owned, history: Path, tmp_path: Path, name: str
) -> None:
    mutations, fault = MUTATIONS[name]

    found = faults_after(mutations, owned, history, tmp_path)

    assert [each for each in found if fault in each] != [], found


def test_contributing_lists_what_breaks_owners() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed_there = re.findall(
        r"^\| (.*) \| `(.*)` \|$", text.partition("## What breaks owners")[2], re.MULTILINE
    )

    assert dict(listed_there) == {name: fault.strip() for name, (_, fault) in MUTATIONS.items()}


def test_changes_of_the_templates_files_are_conflicts_and_an_update_can_be_taken_back(
    owned: Owned, history: Path, tmp_path: Path
) -> None:
    template = shutil.copytree(history, tmp_path / "template")
    service = owned.duplicate(tmp_path / "service", template).folder
    change("ruff.toml", "100", "90")(service)
    drop("src/my_service/dbkit/__init__.py")(service)
    add("src/my_service/dbkit/errors.py", "# Ours.\n")(service)
    commit_all(service)
    change("template/ruff.toml", "100", "120")(template)
    add(f"{PACKAGE}/dbkit/__init__.py", "# More.\n")(template)
    move(f"{PACKAGE}/dbkit/errors.py", f"{PACKAGE}/dbkit/news.py")(template)
    add(f"{PACKAGE}/dbkit/news.py", "# New.\n")(template)
    unlist("/manage.py")(template)
    drop("template/manage.py.jinja")(template)  # It is the owner's, who keeps it.
    commit_all(template, tag="v100.0.0")
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    (listing,) = re.findall("`(git diff --name.*?)`", text)
    (taking_back,) = re.findall("`(git reset.*?)`", text)

    plain = documented("git worktree add --quiet --detach ../plain")
    ours = run(service, "bash", "-c", plain, variables={"PATH": PATH, "GIT_PAGER": "cat"}).stdout

    assert re.findall(r"^[+-].*", ours, re.MULTILINE) == [
        "--- b/src/my_service/dbkit/errors.py",
        "+++ a/src/my_service/dbkit/errors.py",
        "+# Ours.",
    ]

    preview = documented("git worktree add --quiet --detach ../preview")
    shown = run(service, "bash", "-c", preview, variables={"PATH": PATH, "GIT_PAGER": "cat"}).stdout

    assert "+_commit: v100.0.0\n" in shown
    assert "+# New.\n" in shown
    assert [each for each in ("plain", "preview") if (service.parent / each).exists()] == []
    assert git(service, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert git(service, "status", "--porcelain", "--ignored") == ""

    update(service)

    assert run(service, "bash", "-c", listing).stdout == "ruff.toml\n"
    assert not (service / "src/my_service/dbkit/__init__.py").exists()
    assert (service / "manage.py").exists()
    assert (service / "src/my_service/dbkit/news.py").exists()
    assert not (service / "src/my_service/dbkit/errors.py").exists()  # Git shows no conflict.
    run(service, "bash", "-c", taking_back)
    assert git(service, "status", "--porcelain") == ""


def test_another_answer_brings_its_files_once(owned: Owned, history: Path, tmp_path: Path) -> None:
    folder = owned.duplicate(tmp_path / "service", history).folder

    update(folder, ci="gitlab", containers=True, licence="MIT")

    added = tree(folder).keys() - owned.before.keys()
    assert added == {
        *(".dockerignore", "Dockerfile", "compose.yaml", ".gitlab-ci.yml", "renovate.json"),
        *("LICENSE", "deploy/migrate.yaml", "deploy/service.yaml", "deploy/volume.yaml"),
        *("deploy/monitoring/alerts.yaml", "deploy/monitoring/dashboard.json"),
    }
    for name in added:
        (folder / name).unlink()
    commit_all(folder)
    update(folder)
    assert tree(folder).keys() == owned.before.keys()


def test_another_engine_brings_its_files_of_the_kit_and_takes_them_away(
    history: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "service"
    only = [{"name": "primary", "engine": "postgresql"}]
    copy(history, folder, {"project_name": "Orders", "databases": only})
    files = {
        *("engines/sqlite.py", "testing/sqlite.py", "database/replicas.py"),
        "commands/checks/replicas.py",
    }

    def there() -> set[str]:
        return {name for name in files if (folder / "src/orders/dbkit" / name).exists()}

    assert not there()
    replica = {"name": "replica", "engine": "postgresql", "replica_of": "primary"}
    commit_all(folder)
    update(folder, databases=[*only, replica, {"name": "cache", "engine": "sqlite"}])
    assert there() == files
    commit_all(folder)
    update(folder, databases=only)
    assert not there()


def test_service_in_a_folder_of_a_repository_is_updated(
    history: Path, render: Renderer, tmp_path: Path
) -> None:
    """Beside other work that is not committed, and with files that trip Git and Copier up."""
    repository = tmp_path / "repository"
    folder = repository / "services" / "service"
    service = started(history, listed()[0], chosen("sqlite-bare"), render, folder)
    shutil.rmtree(folder / ".git")
    (folder / "latin.txt").write_bytes("Größe\n".encode("latin-1"))
    (folder / 'a "name" ä.txt').write_text("Ours.\n")
    (folder / "tracked.csv").write_text("Ours, and ignored by the owner's line.\n")
    (folder / "CLAUDE.md").symlink_to("README.md")
    (folder / "broken").symlink_to("nowhere")
    (folder / "manage.py").chmod(0o755)
    (repository / "other.txt").write_text("Committed.\n")
    commit_all(repository)
    git(folder, "add", "--force", "tracked.csv")
    commit_all(repository)
    (repository / "other.txt").write_text("Not committed.\n")
    odd = Owned(folder, tree(folder), service.answers)

    update(folder)

    assert faults(odd, render(**answers_of(folder)).path) == []
    assert (folder / "manage.py").stat().st_mode & 0o111
    assert [name for name in ("CLAUDE.md", "broken") if not (folder / name).is_symlink()] == []
