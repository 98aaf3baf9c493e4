"""Services that their owners have edited are updated from every release, without conflict."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from owner import ANCHOR
from releases import ROOT, Release, git, listed
from rendering import Renderer, commit_all
from running import manage, run, running
from updating import (
    HEAD,
    Owned,
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
    history: Path, tmp_path: Path, release: Release
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
    checked = manage(folder, "check")
    assert checked.returncode == 0, checked.stdout


def test_validators_that_depend_on_recorded_answers_are_run_in_updates() -> None:
    """Copier renders a service three times in an update, and only once beside its answers file.

    So each of these validators is run in updates by a test, above or in test_questions.py.
    """
    questions = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))

    assert {
        name
        for name, question in questions.items()
        if not name.startswith("_") and "recorded" in question.get("validator", "")
    } == {"project_name", "databases"}


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
        [unlist("/README.md"), change("template/README.md.jinja", "every day", "each day")],
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
    drop("src/my_service/dbkit/sizing.py")(service)
    commit_all(service)
    change("template/ruff.toml", "100", "120")(template)
    add(f"{PACKAGE}/dbkit/sizing.py", "# More.\n")(template)
    add(f"{PACKAGE}/dbkit/news.py", "# New.\n")(template)
    commit_all(template, tag="v100.0.0")
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    (listing,) = re.findall("`(git diff --name.*?)`", text)
    (taking_back,) = re.findall("`(git reset.*?)`", text)

    update(service)

    assert run(service, "bash", "-c", listing).stdout == "ruff.toml\n"
    assert not (service / "src/my_service/dbkit/sizing.py").exists()
    assert (service / "src/my_service/dbkit/news.py").exists()
    run(service, "bash", "-c", taking_back)
    assert git(service, "status", "--porcelain") == ""


def test_another_answer_brings_its_files_once(owned: Owned, history: Path, tmp_path: Path) -> None:
    folder = owned.duplicate(tmp_path / "service", history).folder

    update(folder, ci="gitlab", containers=True, licence="MIT")

    added = tree(folder).keys() - owned.before.keys()
    assert added == {
        *(".dockerignore", "Dockerfile", "compose.yaml", ".gitlab-ci.yml", "renovate.json"),
        *("LICENSE", "deploy/migrate.yaml", "deploy/service.yaml", "deploy/volume.yaml"),
    }
    for name in added:
        (folder / name).unlink()
    commit_all(folder)
    update(folder)
    assert tree(folder).keys() == owned.before.keys()


def test_service_in_a_folder_of_a_repository_is_updated(
    history: Path, render: Renderer, tmp_path: Path
) -> None:
    folder = tmp_path / "repository" / "services" / "service"
    service = started(history, listed()[0], chosen("sqlite-bare"), render, folder)
    shutil.rmtree(folder / ".git")
    commit_all(tmp_path / "repository")

    update(folder)

    assert faults(service, render(**answers_of(folder)).path) == []


def test_owners_keep_a_file_that_the_template_drops(
    owned: Owned, history: Path, tmp_path: Path
) -> None:
    mutations = [unlist("/manage.py"), drop("template/manage.py.jinja")]

    assert faults_after(mutations, owned, history, tmp_path) == []
