"""The asking: what is accepted, what is refused and how, and what an update does with answers."""

import ast
import builtins
import datetime
import json
import keyword
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copier
import jinja2
import pytest
from copier import run_copy, run_recopy, run_update
from copier.errors import UserMessageError
from dbkit.commands.checks import check_template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import SandboxedEnvironment
from rendering import ROOT, Renderer, commit_all, git
from variants import VARIANTS, Variant

Check = Callable[..., list[str]]

COPIER = Path(sys.executable).with_name("copier")
COMPUTED = (
    "{{ {'package': package, 'distribution': distribution, 'dbs': dbs, 'engines': engines}"
    " | to_json }}"
)
PRIMARY = {"name": "primary", "engine": "postgresql"}
AUDIT = {"name": "audit", "engine": "sqlite"}

# A stand-in for the service, small and of each class of files, so that the promises about updates
# do not depend on what the real files say.
SERVICE = {
    "manage.py": "",
    "README.md.jinja": "# {{ project_name }}\n",
    "LICENSE.jinja": "{{ licence }}\n",
    "ruff.toml": "line-length = 100\n",
    "migrations/{{ dbs[0].name }}/0001_items.py": "",
    "tests/test_items.py": "",
    "src/{{ package }}/__init__.py": "",
    "src/{{ package }}/main.py": "",
    "src/{{ package }}/settings.py": "",
    "src/{{ package }}/items/models.py": "",
    "src/{{ package }}/notes/models.py": "",
    "src/{{ package }}/dbkit/pool.py": "",
    "src/{{ package }}/dbkit/items/page.py": "",
    "src/{{ package }}/databases/__init__.py.jinja": "{{ dbs | join(' ', 'name') }}\n",
    "src/{{ package }}/databases/{% yield db from dbs %}{{ db.name }}{% endyield %}.py.jinja": (
        "{{ db.class_prefix }}\n"
    ),
}
OWNED = [
    "LICENSE",
    "README.md",
    "manage.py",
    "migrations/primary/0001_items.py",
    "src/orders/__init__.py",
    "src/orders/databases/primary.py",
    "src/orders/items/models.py",
    "src/orders/main.py",
    "src/orders/notes/models.py",
    "src/orders/settings.py",
    "tests/test_items.py",
]


def write_template(folder: Path, questions: Path, files: dict[str, str]) -> Path:
    """Make a template of the real questions and other files."""
    folder.mkdir()
    shutil.copy(questions / "copier.yml", folder)
    shutil.copy(questions / "CHANGELOG.md", folder)
    shutil.copytree(questions / "includes", folder / "includes")
    answers_file = "{{_copier_conf.answers_file}}.jinja"
    (folder / "template").mkdir()
    shutil.copy(questions / "template" / answers_file, folder / "template")
    for name, text in files.items():
        path = folder / "template" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def questions(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a template of the real questions, whose one file prints the computed answers."""
    folder = tmp_path_factory.mktemp("questions") / "template"
    return write_template(folder, template, {"computed.json.jinja": COMPUTED})


@pytest.fixture(scope="module")
def check(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Return the validators of copier.yml, in the environment in which Copier runs them.

    Copier turns an error inside a validator into its message; here it is raised.
    """
    folder = tmp_path_factory.mktemp("check")
    worker = run_copy(str(questions), folder, defaults=True, quiet=True)
    validators = {
        name: worker.jinja_env.from_string(question["validator"])
        for name, question in worker.template.questions_data.items()
        if "validator" in question
    }

    def check_answer(name: str, answer: Any, recorded: Any = None) -> list[str]:
        conf: dict[str, Any] = {"data": {}, "dst_path": folder, "overwrite": False}
        computed = {"package": "my_service", "source": "src"}
        context = {"recorded": recorded or {}, "_copier_conf": conf, **computed}
        context |= {name: answer}
        text = validators[name].render(context)
        return text.strip().splitlines()

    return check_answer


@pytest.fixture
def compute(questions: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return the function that gives the computed answers of some answers."""

    def compute_answers(**answers: Any) -> dict[str, Any]:
        folder = tmp_path / "service"
        shutil.rmtree(folder, ignore_errors=True)
        run_copy(str(questions), folder, data=answers, defaults=True, quiet=True)
        return json.loads((folder / "computed.json").read_text())

    return compute_answers


# ------------------------------------------------------------------------------ the easy answers


def test_defaults_give_one_postgresql_database(render: Renderer) -> None:
    answers = render().answers

    assert answers["databases"] == [{"name": "primary", "engine": "postgresql"}]
    assert answers["python_version"] == "3.11"
    assert answers["licence"] == "proprietary"


def test_main_engine_seeds_the_databases(questions: Path, tmp_path: Path) -> None:
    run_copy(str(questions), tmp_path, {"main_engine": "sqlite"}, defaults=True, quiet=True)

    computed = json.loads((tmp_path / "computed.json").read_text())
    assert [db["engine"] for db in computed["dbs"]] == ["sqlite"]


def test_main_replica_seeds_the_databases(questions: Path, tmp_path: Path) -> None:
    run_copy(str(questions), tmp_path, {"main_replica": True}, defaults=True, quiet=True)

    computed = json.loads((tmp_path / "computed.json").read_text())
    assert [(db["name"], db["replica_of"]) for db in computed["dbs"]] == [
        ("primary", None),
        ("replica", "primary"),
    ]
    assert "main_replica" not in (tmp_path / ".copier-answers.yml").read_text()


@pytest.mark.parametrize(
    ("replica", "fault"),
    [
        ({"replica_of": "analytics"}, 'there is no database "analytics" above it in the list'),
        ({"replica_of": "replica"}, 'there is no database "replica" above it in the list'),
        ({"replica_of": True}, "true is not a name"),
        (
            {"replica_of": None},
            "nothing is not a name; leave the key out for a database that is no replica",
        ),
        ({"replica_of": "first"}, "first is a replica itself"),
        ({"replica_of": "audit"}, "audit is on another engine"),
        (
            {"engine": "sqlite", "replica_of": "audit"},
            "SQLite has no replicas here; postgresql has",
        ),
    ],
)
def test_a_replica_is_of_a_database_above_it(
    check: Check, replica: dict[str, Any], fault: str
) -> None:
    first = {"name": "first", "engine": "postgresql", "replica_of": "primary"}
    item = {"name": "replica", "engine": "postgresql"} | replica

    assert check("databases", [PRIMARY, AUDIT, first, item]) == [
        f'item 4 ("replica"), replica_of: {fault}'
    ]
    assert check("databases", [PRIMARY, AUDIT, first]) == []


def test_answers_file_holds_only_what_was_asked(questions: Path, tmp_path: Path) -> None:
    run_copy(
        str(questions),
        tmp_path / "order-service",
        {"databases": [{"name": "primary", "engine": "sqlite", "pool_size": 5}, AUDIT]},
        defaults=True,
        quiet=True,
    )

    assert (tmp_path / "order-service" / ".copier-answers.yml").read_text() == (
        "# Written by Copier: change it with `copier update`, never by hand.\n"
        f"_src_path: {questions}\n"
        "databases:\n"
        "- name: primary\n"
        "  engine: sqlite\n"
        "  pool_size: 5\n"
        "- name: audit\n"
        "  engine: sqlite\n"
        "project_name: Order Service\n"
        "description: A service on FastAPI and SQLAlchemy\n"
        "python_version: '3.11'\n"
        "ci: github\n"
        "containers: true\n"
        "licence: proprietary\n"
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_answers_of_each_variant_are_accepted(check: Check, variant: Variant) -> None:
    for name, answer in variant.answers.items():
        if name in {"project_name", "description", "databases", "containers"}:
            assert check(name, answer) == []


def test_variants_are_printed_as_a_matrix() -> None:
    command = [sys.executable, "tests/support/variants.py"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    matrix = json.loads(printed)["include"]
    assert matrix[0] == {"variant": "default", "python": "3.11"}
    names = [row["variant"] for row in matrix]
    assert sorted(names) == sorted({variant.name for variant in VARIANTS})


def test_the_command_needs_no_trust(template_repository: Path, tmp_path: Path) -> None:
    """Copy with `copier copy --data-file databases.yml`, whose four databases read so."""
    data = tmp_path / "databases.yml"
    data.write_text(
        """\
project_name: Order Service
python_version: 3.12
ci: gitlab
databases:
  - name: primary
    engine: postgresql
    pool_size: 20
  - name: analytics
    engine: postgresql
  - name: audit
    engine: sqlite
  - name: cache
    engine: sqlite
"""
    )
    command = [COPIER, "copy", "--defaults", "--data-file", data, template_repository, "orders"]

    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(
        "Order Service is in orders: package order_service, primary on postgresql, "
        "analytics on postgresql, audit on sqlite, cache on sqlite.\n"
        "\n"
        "Next:\n"
        "  cd orders\n"
        "  uv lock && git init -b main && git add ."
        ' && git commit -m "chore: start from fastapi-pools"\n'
        "  uv run manage.py runserver\n"
        "\n"
        "Others cannot update this service: `.copier-answers.yml` has the template's path on this"
        " machine.\n"
        "If it is for more than a look, set `_src_path` there to the URL of the template's"
        " repository.\n"
        "\n"
    )
    recorded = (tmp_path / "orders" / ".copier-answers.yml").read_text()
    assert "_commit: v1.0.0\n" in recorded
    assert "python_version: '3.12'\n" in recorded
    assert "ci: gitlab\n" in recorded
    assert "  pool_size: 20\n- name: analytics\n" in recorded


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("/srv/template", True),
        ("~/template", True),
        ("../template", True),
        ("template", True),
        ("file:///srv/template", True),
        ("git+file:///srv/template", True),
        ("C:\\template", True),
        ("https://git.example/team/template.git", False),
        ("git+https://git.example/team/template", False),
        ("git@git.example:team/template.git", False),
        ("ssh://git@git.example/team/template", False),
        ("gh:team/template", False),
    ],
)
def test_a_path_of_this_machine_is_told_from_a_url(
    source: str, local: bool, tmp_path: Path
) -> None:
    filters = "jinja2_ansible_filters.AnsibleCoreFiltersExtension"  # As Copier has them.
    loader = jinja2.FileSystemLoader(ROOT)
    environment = SandboxedEnvironment(loader=loader, extensions=[filters])
    macros: Any = environment.get_template("includes/updates.jinja").module
    (tmp_path / ".copier-answers.yml").write_text(f"_src_path: {source}\n")

    assert bool(macros.on_this_machine(source)) == local
    assert [each.id for each in check_template(tmp_path)] == ["template.W001"] * local


def test_the_command_with_defaults_names_the_service_after_its_folder(
    template_repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "services" / "order-service"
    folder.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    command = [COPIER, "copy", "--defaults", template_repository, "."]

    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "Order Service is in .: package order_service, primary on postgresql." in done.stderr
    # It is part of a repository already.
    assert "\n  uv lock && git add . && git commit " in done.stderr
    assert "cd " not in done.stderr
    assert "project_name: Order Service\n" in (folder / ".copier-answers.yml").read_text()


def test_the_question_explains_what_copier_says_of_no_yaml() -> None:
    """A comma that is missing never reaches our validator."""
    said = '"Invalid input"'
    (copiers,) = Path(str(copier.__file__)).parent.glob("_user_data.py")

    assert f"return {said}" in copiers.read_text(encoding="utf-8")
    assert f"{said} below means that" in (ROOT / "copier.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("orders", "Orders"),
        ("order_archive.api", "Order Archive Api"),
        ("myAPI", "MyAPI"),
        ("test", "My Service"),
        ("订单", "My Service"),
        ('a"b', "My Service"),
        ("x" * 70, "My Service"),
    ],
)
def test_default_name_comes_from_the_folder(
    questions: Path, tmp_path: Path, folder: str, name: str
) -> None:
    worker = run_copy(str(questions), tmp_path / folder, defaults=True, quiet=True)

    assert worker.answers.combined["project_name"] == name


# --------------------------------------------------------------------------- names of the service


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("Order Service", "order_service"),
        ("order-service", "order_service"),
        ("Café Bestellung", "cafe_bestellung"),
        ("Cafe\u0301 Bestellung", "cafe_bestellung"),
        ("Łódź Ærø Þór İzmir Việt ﬁn ĳs ðı", "lodz_aero_thor_izmir_viet_fin_ijs_di"),
        ("STRAẞE ÉTÉ", "strasse_ete"),
        ("Tom's & Jerry\u2019s R&D", "toms_jerrys_r_d"),
        ("订单 service", "service"),
        ("3d printers", "service_3d_printers"),
        ("2024", "service_2024"),
        ("__init__  api", "init_api"),
        ("class service", "class_service"),
        ("🍋 lemon", "lemon"),
    ],
)
def test_human_names_give_a_package(
    check: Check, compute: Callable[..., dict[str, Any]], name: str, package: str
) -> None:
    assert check("project_name", name) == []
    computed = compute(project_name=name)

    assert computed["package"] == package
    assert computed["distribution"] == package.replace("_", "-")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "it is empty; say for instance Order Service"),
        (" \n", "it is empty; say for instance Order Service"),
        ("two\nlines", "it holds a line break or another control character"),
        ("bell\x07", "it holds a line break or another control character"),
        ("zero\u200bwidth", "it holds an invisible character"),
        ("half a \ud83c pair", "it holds an invisible character"),
        ('the "best" shop', "it holds a double quote or a backslash; use “ ” or a slash"),
        ("back\\slash", "it holds a double quote or a backslash; use “ ” or a slash"),
        ("Orders ", "it begins or ends with a space"),
        ("订" * 29 + " abc", "it is 62 columns wide; 60 is the limit"),
        ("***", "no package can be named after it: it holds no letter from a to z and no digit"),
        ("订单", "no package can be named after it: it holds no letter from a to z and no digit"),
        (
            "x " * 20 + "xx",
            "its package would be " + "x_" * 20 + "xx, which has 42 characters; 40 is the limit",
        ),
    ],
)
def test_names_that_give_no_package_are_refused(check: Check, name: str, fault: str) -> None:
    assert check("project_name", name) == [fault]


@pytest.mark.parametrize(
    ("name", "package", "what"),
    [
        ("Match", "match", "a keyword of Python"),
        ("JSON", "json", "a module of Python itself"),
        ("FastAPI", "fastapi", "which the service or its tools install"),
        ("Tests", "tests", "a folder or a module that the service has already"),
        ("Aux", "aux", "which Windows refuses as the name of a file"),
    ],
)
def test_names_of_packages_that_are_taken_are_refused(
    check: Check, name: str, package: str, what: str
) -> None:
    advice = f"say for instance {name} service"

    assert check("project_name", name) == [f"its package would be {package}, {what}; {advice}"]
    assert check("project_name", f"{name} service") == []


def test_names_of_what_python_and_the_service_use_are_taken(check: Check) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    dependencies = [re.split(r"[\[<>=]", requirement)[0] for requirement in declared]
    words = [*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, *dependencies]

    free = [word for word in words if word.strip("_") and not check("project_name", word)]

    # A leading underscore is no part of a package's name: `_thread` gives thread.
    assert [word for word in free if not word.startswith("_") and word.islower()] == []


@pytest.mark.parametrize(
    "name", ["distribution", "dbs", "engines", "package", "paths", "recorded", "source"]
)
def test_computed_answers_cannot_be_given(questions: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}': It is .*; leave it out"):
        run_copy(str(questions), tmp_path, {name: "x"}, defaults=True, quiet=True)

    assert list(tmp_path.iterdir()) == []


def test_misspelt_questions_are_named(questions: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"license": "MIT", "database": []}

    with pytest.raises(ValueError, match="no question license: it is licence\n"):
        run_copy(str(questions), tmp_path, data, defaults=True, quiet=True)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "answer", "fault"),
    [
        ("containers", "maybe", "'containers': it is neither true nor false"),
        ("python_version", "3.10", "'python_version': '3.10' is not in"),
        ("ci", "jenkins", "'ci': 'jenkins' is not in ['github', 'gitlab', 'none']"),
        ("licence", "GPL", "'licence': 'GPL' is not in ['proprietary', 'MIT', 'Apache-2.0']"),
        (
            "main_engine",
            "oracle",
            "'main_engine': 'oracle' is not in ['postgresql', 'mysql', 'sqlite']",
        ),
        ("description", "a\nb", "'description': it holds a line break"),
        (
            "adopt",
            "src",
            "'adopt': there is no __init__.py in src/test_answers_off_the_menu_are",
        ),
    ],
)
def test_answers_off_the_menu_are_refused(
    questions: Path, tmp_path: Path, name: str, answer: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        run_copy(str(questions), tmp_path, {name: answer}, defaults=True, quiet=True)

    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------- the databases


def test_every_fault_of_the_databases_is_named_and_nothing_is_written(
    template_repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.yml").write_text(
        """\
databases:
  - {name: class, engine: oracle, pool: 5}
  - {name: no, engine: mariadb, pool_size: true}
  - analytics
  - {name: order_1, engine: sqlite, replica_of: primary}
  - {name: order1, engine: sqlite, pool_size: 101}
  - {name: order1, engine: sqlite}
  - {pool_size: "5"}
"""
    )
    command = [COPIER, "copy", "--defaults", "--data-file", "data.yml", template_repository, "new"]

    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr.partition("ValueError: ")[2] == (
        """\
Validation error for question 'databases': \
item 1 ("class"): there is no key "pool"; \
the keys are name, engine, pool_size, replica_of
item 1 ("class"), name: class is a keyword of Python
item 1 ("class"), engine: "oracle" is not an engine; postgresql, mysql or sqlite
item 2, name: false is not a name; YAML reads yes, no, on and off as true and false, \
so write them in quotes
item 2, engine: mariadb is called mysql here
item 2, pool_size: true is not a whole number from 1 to 100
item 3: it is "analytics", not a mapping, e.g. {name: primary, engine: postgresql}
item 4 ("order_1"), replica_of: there is no database "primary" above it in the list
item 5 ("order1"), name: its session would be Order1Session, as that of item 4 ("order_1")
item 5 ("order1"), pool_size: 101 is not a whole number from 1 to 100
item 6 ("order1"), name: item 5 has the same name
item 7, name: it is missing
item 7, engine: it is missing; postgresql, mysql or sqlite
item 7, pool_size: "5" is not a whole number from 1 to 100
"""
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "data.yml"]


@pytest.mark.parametrize(
    ("databases", "fault"),
    [
        ([], "the list is empty; a service has at least one database, e.g. "),
        (None, "it is nothing, not a list of databases, e.g. "),
        ({"primary": {"engine": "sqlite"}}, "it is a mapping, not a list of databases, e.g. "),
        ("primary", 'it is "primary", not a list of databases, e.g. '),
    ],
)
def test_databases_are_a_list(check: Check, databases: object, fault: str) -> None:
    example = "[{name: primary, engine: postgresql}]"

    assert check("databases", databases) == [fault + example]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (12, "12 is not a name; names begin with a letter"),
        (None, "nothing is not a name"),
        (["a"], "a list is not a name"),
        (datetime.date(2026, 1, 1), "a date is not a name"),
        ("a" * 25, f'"{"a" * 25}" has 25 characters; 24 is the limit'),
        ("a" * 41, f'"{"a" * 40}"... has 41 characters; 24 is the limit'),
        ("match", "match is a keyword of Python"),
        ("user", "user is a word of SQL that would need quotes everywhere"),
        ("list", "list would hide Python's own list"),
        ("template0", "template0 is a name that database servers keep for themselves"),
        ("aux", "aux is refused by Windows as the name of a file"),
        ("dbkit", "dbkit is the name of something else in the service"),
        ("items", "items is the name of something else in the service"),
        (
            "database",
            "database says database twice in DATABASE_DATABASE_URL; leave the word out",
        ),
        (
            "my_databases",
            "my_databases says database twice in MY_DATABASES_DATABASE_URL; leave the word out",
        ),
        (
            "a_database_b",
            "a_database_b says database twice in A_DATABASE_B_DATABASE_URL; leave the word out",
        ),
        ("test", "TEST_DATABASE_URL is the variable of a test server"),
        ("orders_test", "ORDERS_TEST_DATABASE_URL is the variable of a test server"),
    ],
)
def test_names_that_cannot_be_used_are_refused(check: Check, name: object, fault: str) -> None:
    at = "item 1"
    if isinstance(name, str):
        at += f" ({json.dumps(name[:40], ensure_ascii=False)}{'...' if len(name) > 40 else ''})"

    assert check("databases", [{"name": name, "engine": "sqlite"}]) == [f"{at}, name: {fault}"]


def test_names_of_what_python_has_are_taken(check: Check) -> None:
    words = [*keyword.kwlist, *keyword.softkwlist, *dir(builtins)]

    names = [word for word in words if re.fullmatch("[a-z]+", word)]
    free = [name for name in names if not check("databases", [{"name": name, "engine": "sqlite"}])]

    assert sorted(free) == []


@pytest.mark.parametrize(
    "name",
    ["", "Orders", "order-archive", "a__b", "a_", "_a", "1a", "é", "a b", "a\n", "x\u202ey"],
)
def test_names_are_words_joined_by_underscores(check: Check, name: str) -> None:
    (fault,) = check("databases", [{"name": name, "engine": "sqlite"}])

    assert fault.endswith(
        " is not a name: lower-case letters and digits, words joined by single underscores, "
        "a letter first, e.g. order_archive"
    )


@pytest.mark.parametrize(
    "name", ["primary", "orders", "order_archive", "a", "a" * 24, "staging", "db2", "postgres_main"]
)
def test_good_names_are_accepted(check: Check, name: str) -> None:
    assert check("databases", [{"name": name, "engine": "postgresql"}]) == []


def test_names_beside_a_database_in_a_rendered_module_are_taken(
    check: Check, render: Renderer
) -> None:
    service = render(databases=[{"name": "zeta", "engine": "sqlite"}, AUDIT])
    beside: set[str] = set()

    for path in service.path.rglob("*.py"):
        module = ast.parse(path.read_text())
        names = bound_names(module)
        if "zeta" in names and "dbkit" not in path.parts:
            beside |= names
            for node in ast.walk(module):
                if isinstance(node, ast.AsyncFunctionDef) and "zeta" in names_in(node, ast.Load):
                    beside |= names_in(node, ast.Store) | {arg.arg for arg in node.args.args}

    free = [
        name
        for name in beside - {"zeta", "audit"}
        if re.fullmatch("[a-z0-9_]+", name)
        and not check("databases", [{"name": name, "engine": "sqlite"}])
    ]
    assert sorted(free) == []


def test_a_name_that_only_the_example_hides_does_not_stop_an_update(check: Check) -> None:
    databases = [{"name": "testing", "engine": "sqlite"}]

    assert check("databases", databases) == [
        'item 1 ("testing"), name: testing is the name of something else in the service'
    ]
    assert check("databases", databases, {"databases": databases}) == []


def names_in(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Return the variables that are read, or set, in a part of a module."""
    found = (each for each in ast.walk(node) if isinstance(each, ast.Name))
    return {each.id for each in found if isinstance(each.ctx, context)}


def bound_names(module: ast.Module) -> set[str]:
    """Return the names that a module imports, defines or assigns at its top level."""
    names: set[str] = set()
    for node in module.body:
        match node:
            case ast.Import(aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                names.add(name)
            case ast.Assign(targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case _:
                pass
    return names


@pytest.mark.parametrize(
    ("size", "fault"),
    [
        (0, "0 is not a whole number from 1 to 100"),
        (-5, "-5 is not a whole number from 1 to 100"),
        (2.5, "2.5 is not a whole number from 1 to 100"),
        (False, "false is not a whole number from 1 to 100"),
        pytest.param(16**9000, "a huge number is not a whole number from 1 to 100", id="huge"),
        (None, "nothing is not a whole number from 1 to 100; leave the key out for the default"),
    ],
)
def test_pool_sizes_are_whole_numbers(check: Check, size: object, fault: str) -> None:
    assert check("databases", [PRIMARY | {"pool_size": size}]) == [
        f'item 1 ("primary"), pool_size: {fault}'
    ]
    assert check("databases", [PRIMARY | {"pool_size": 1}, AUDIT | {"pool_size": 100}]) == []


@pytest.mark.parametrize("engine", ["mariadb", "oracle", "PostgreSQL", True, None, []])
def test_other_engines_are_refused(check: Check, engine: object) -> None:
    (fault,) = check("databases", [{"name": "primary", "engine": engine}])

    assert re.fullmatch(
        r'item 1 \("primary"\), engine: .+ is (called mysql here|not an engine; .+ or sqlite)',
        fault,
    )


def test_databases_are_computed_with_every_key(compute: Callable[..., dict[str, Any]]) -> None:
    computed = compute(
        databases=[
            PRIMARY | {"pool_size": 20},
            {"name": "order_archive", "engine": "postgresql"},
            AUDIT,
        ]
    )

    assert computed["engines"] == ["postgresql", "sqlite"]
    expected = [
        {
            "name": "primary",
            "engine": "postgresql",
            "pool_size": 20,
            "first": True,
            "env_prefix": "DATABASE_",
            "class_prefix": "Primary",
        },
        {
            "name": "order_archive",
            "engine": "postgresql",
            "pool_size": None,
            "first": False,
            "env_prefix": "ORDER_ARCHIVE_DATABASE_",
            "class_prefix": "OrderArchive",
        },
        {
            "name": "audit",
            "engine": "sqlite",
            "pool_size": None,
            "first": False,
            "env_prefix": "AUDIT_DATABASE_",
            "class_prefix": "Audit",
        },
    ]
    found = [
        {key: db[key] for key in keys} for db, keys in zip(computed["dbs"], expected, strict=True)
    ]
    assert found == expected


# --------------------------------------------------------------------------------- any answer

quick = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50) | st.dates()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=5,
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True) | st.sampled_from(
    ["primary", "order_1", "order1", "class", "no"]
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        "name": names | values,
        "engine": st.sampled_from(["postgresql", "sqlite", "mysql"]) | values,
        "pool_size": st.integers(-1, 102) | values,
        "replica_of": names,
        "extra": values,
    },
)
FAULT = re.compile(
    r"(the list is empty|it is .+, not a list of databases), e\.g\. .+"
    r"|the list is empty; .+"
    r'|item \d+( \(".*"(\.\.\.)?\))?(, (name|engine|pool_size|replica_of))?: .+'
)


@quick
@given(st.lists(near_misses | values, max_size=4) | values)
def test_any_databases_are_sound_or_refused_by_item(check: Check, databases: Any) -> None:
    faults = check("databases", databases)

    assert [fault for fault in faults if not FAULT.fullmatch(fault)] == []
    if not faults:
        taken = [db["name"] for db in databases]
        assert all(name.isidentifier() and not keyword.iskeyword(name) for name in taken)
        assert len(set(taken)) == len(taken) >= 1
        assert {db["engine"] for db in databases} <= {"postgresql", "sqlite"}
        assert {type(db.get("pool_size", 1)) for db in databases} == {int}


@quick
@given(st.text(max_size=70))
def test_any_line_is_refused_or_survives_its_quotes(check: Check, text: str) -> None:
    faults = check("description", text)

    assert len(faults) <= 1
    if not faults:
        assert tomllib.loads(f'text = "{text}"') == {"text": text}
        assert ast.literal_eval(f'"{text}"') == text
        assert len(f"# {text}".splitlines()) == 1


@quick
@given(st.text(max_size=50) | st.from_regex(r"[A-Za-z0-9 _.é-]{1,45}", fullmatch=True))
def test_any_name_is_refused_or_gives_a_package(check: Check, name: str) -> None:
    faults = check("project_name", name)

    assert len(faults) <= 1
    assert not any("Error" in fault for fault in faults)


@settings(deadline=None, max_examples=15)
@given(
    project_name=st.text(max_size=30) | st.sampled_from(["Orders", "3 Öre"]),
    databases=st.lists(near_misses, min_size=1, max_size=3) | st.just([PRIMARY]),
)
def test_any_answers_give_a_whole_service_or_nothing(
    questions: Path, tmp_path_factory: pytest.TempPathFactory, project_name: str, databases: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    data: dict[str, Any] = {"project_name": project_name, "databases": databases}

    try:
        run_copy(str(questions), folder, data, defaults=True, quiet=True)
    except ValueError as error:
        assert re.match(  # noqa: PT017
            "Validation error for question '(project_name|databases)': ", str(error)
        )
        assert list(folder.iterdir()) == []
    else:
        computed = json.loads((folder / "computed.json").read_text())
        assert computed["package"].isidentifier()
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", computed["distribution"])
        assert [db["name"] for db in computed["dbs"]] == [db["name"] for db in databases]


# ---------------------------------------------------------------------------------------- updates


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """Return a repository of the questions and the stand-in service, tagged v1.0.0."""
    folder = write_template(tmp_path / "template", template, SERVICE)
    commit_all(folder, tag="v1.0.0")
    return folder


def copy_orders(
    repository: Path, folder: Path, databases: list[dict[str, str]], **answers: Any
) -> Path:
    """Render and commit a service called orders."""
    data: dict[str, Any] = {"project_name": "Orders", "databases": databases, **answers}
    run_copy(str(repository), folder, data, defaults=True, quiet=True)
    commit_all(folder)
    return folder


def update(folder: Path, databases: list[dict[str, str]] | None = None) -> None:
    data = {} if databases is None else {"databases": databases}
    run_update(folder, data, defaults=True, overwrite=True, quiet=True)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_that_needs_trust_is_declared(questions: Path, tmp_path: Path) -> None:
    worker = run_copy(str(questions), tmp_path, defaults=True, quiet=True)

    assert worker.template.tasks == []
    assert worker.template.jinja_extensions == ()
    assert "migrations" not in worker.template.config_data


# No answer is the default, which a lost answer would fall back to.
ANSWERS: dict[str, Any] = {
    "project_name": "Orders",
    "description": "Takes the orders of all the shops that we have",
    "python_version": "3.12",
    "databases": [{"name": "orders", "engine": "sqlite"}],
    "ci": "gitlab",
    "licence": "MIT",
}
LATER_REFUSALS = {
    "project_name": (
        ("includes/project.jinja", "package | length > 40", "package | length > 5"),
        "its package would be orders, which has 6 characters",
    ),
    "description": (
        ("copier.yml", 'shop", 80', 'shop", 40'),
        "'description': it is 46 columns wide; 40 is the limit",
    ),
    "python_version": (
        ("copier.yml", '"3.11", "3.12"', '"3.11"'),
        "Invalid choice for 'python_version': '3.12' is not in",
    ),
    "databases": (
        ("includes/databases.jinja", "name | length > 24", "name | length > 5"),
        'item 1 ("orders"), name: "orders" has 6 characters',
    ),
    "ci": (("copier.yml", ": gitlab", ": codeberg"), "Invalid choice for 'ci': 'gitlab'"),
    "licence": (("copier.yml", "MIT: MIT", "ISC: ISC"), "Invalid choice for 'licence': 'MIT'"),
}


@pytest.mark.parametrize("question", LATER_REFUSALS)
def test_recorded_answer_that_is_refused_later_stops_the_update(
    repository: Path, tmp_path: Path, question: str
) -> None:
    (path, old, new), fault = LATER_REFUSALS[question]
    folder = tmp_path / "[orders] *?"  # A name that a pattern of files would not find.
    run_copy(str(repository), folder, ANSWERS, defaults=True, quiet=True)
    commit_all(folder)
    edit(repository / path, old, new)
    edit(repository / "template" / "ruff.toml", "100", "120")
    commit_all(repository, tag="v2.0.0")

    with pytest.raises(ValueError, match=re.escape(fault)):
        update(folder)

    assert git(folder, "status", "--porcelain", "--ignored") == ""


def test_stopped_update_goes_on_with_a_new_answer(repository: Path, tmp_path: Path) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    edit(repository / "includes" / "databases.jinja", "name | length > 24", "name | length > 6")
    commit_all(repository, tag="v2.0.0")
    with pytest.raises(ValueError, match="has 7 characters"):
        update(folder)

    update(folder, [{"name": "orders", "engine": "postgresql"}])

    assert "- name: orders\n" in (folder / ".copier-answers.yml").read_text()


def test_update_to_another_engine_waits_until_the_owners_file_is_out_of_the_way(
    repository: Path, tmp_path: Path
) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [AUDIT])
    databases = [PRIMARY, AUDIT | {"engine": "postgresql"}]
    fault = (
        'item 2 ("audit"), engine: it was sqlite, as your src/orders/databases/audit.py says; '
        "delete that file, commit, and update again: it comes back for postgresql"
    )

    with pytest.raises(ValueError, match=re.escape(fault)):
        update(folder, databases)

    assert git(folder, "status", "--porcelain") == ""
    (folder / "src" / "orders" / "databases" / "audit.py").unlink()
    commit_all(folder)
    update(folder, databases)
    assert git(folder, "status", "--porcelain", "--untracked-files=all").splitlines() == [
        " M .copier-answers.yml",
        " M src/orders/databases/__init__.py",
        "?? src/orders/databases/audit.py",
        "?? src/orders/databases/primary.py",
    ]


SALES: dict[str, Any] = {"name": "sales", "engine": "postgresql"}
READ: dict[str, Any] = {"name": "read", "engine": "postgresql"}
HELD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another first database": (
        {"databases": [SALES, PRIMARY, READ | {"replica_of": "primary"}]},
        [
            'item 1 ("sales"): as the first it would be given DATABASE_URL, but your src/orders/',
            'databases/sales.py does not say `env_prefix="DATABASE_"`; keep primary first, or',
            'item 2 ("primary"): it was the first, and your src/orders/databases/primary.py says',
        ],
    ),
    "first database left out": (
        {"databases": [SALES]},
        ['item 1 ("sales"): as the first it would be given DATABASE_URL'],
    ),
    "no longer a replica": (
        {"databases": [PRIMARY, READ, SALES]},
        ["replica_of: your src/orders/databases/read.py says `replica_of=primary`; delete"],
    ),
    "replica now": (
        {
            "databases": [
                PRIMARY,
                READ | {"replica_of": "primary"},
                SALES | {"replica_of": "primary"},
            ]
        },
        ["sales.py does not say `replica_of=primary`; delete"],
    ),
    "another licence": (
        {"licence": "Apache-2.0"},
        ["your LICENSE was written for MIT; delete that file, commit, and update again: it comes"],
    ),
    "no licence": (
        {"licence": "proprietary"},
        ["your LICENSE was written for MIT; delete that file, commit, and update again"],
    ),
}


@pytest.mark.parametrize("change", HELD)
def test_update_waits_until_files_that_hold_another_answer_are_out_of_the_way(
    repository: Path, tmp_path: Path, change: str
) -> None:
    answers, faults = HELD[change]
    databases = [PRIMARY, READ | {"replica_of": "primary"}, SALES]
    folder = copy_orders(repository, tmp_path / "orders", databases, licence="MIT")
    (folder / "LICENSE").write_text("MIT\n")
    commit_all(folder)

    with pytest.raises(ValueError) as stopped:  # noqa: PT011 -- what it says is compared
        run_update(folder, answers, defaults=True, overwrite=True, quiet=True)

    assert [each for each in faults if each not in str(stopped.value)] == [], stopped.value
    assert git(folder, "status", "--porcelain", "--ignored") == ""


def test_database_left_out_with_its_file_gone_does_not_stop_the_update(
    repository: Path, tmp_path: Path
) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY, SALES])
    for name in ("primary", "sales"):
        (folder / "src" / "orders" / "databases" / f"{name}.py").unlink()
    commit_all(folder)

    update(folder, [SALES])

    assert (folder / "src" / "orders" / "databases" / "sales.py").exists()


def test_update_to_another_name_waits_until_the_package_is_renamed(
    repository: Path, tmp_path: Path
) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    fault = (
        "its package would be store, and the service's is orders; "
        "first delete src/orders/dbkit and src/orders/databases/__init__.py, which come back,"
        " rename src/orders and its imports, and commit"
    )

    with pytest.raises(ValueError, match=re.escape(fault)):
        run_update(folder, {"project_name": "Store"}, defaults=True, overwrite=True, quiet=True)

    assert git(folder, "status", "--porcelain") == ""


def test_update_over_several_releases_is_as_good_as_each(repository: Path, tmp_path: Path) -> None:
    at_once = copy_orders(repository, tmp_path / "a" / "orders", [PRIMARY])
    in_steps = copy_orders(repository, tmp_path / "b" / "orders", [PRIMARY])
    kit = repository / "template" / "src" / "{{ package }}" / "dbkit"
    for number in range(2, 5):
        edit(repository / "template" / "ruff.toml", "100", f"100\n# {number}")
        (kit / f"new_{number}.py").touch()
        (kit / f"new_{number - 1}.py").unlink(missing_ok=True)
        commit_all(repository, tag=f"v{number}.0.0")
        update(in_steps)
        commit_all(in_steps)

    update(at_once)
    commit_all(at_once)

    assert git(at_once, "rev-parse", "HEAD^{tree}") == git(in_steps, "rev-parse", "HEAD^{tree}")
    assert (at_once / "src" / "orders" / "dbkit" / "new_4.py").exists()
    assert not (at_once / "src" / "orders" / "dbkit" / "new_3.py").exists()


def test_relative_path_of_the_template_is_recorded_in_full(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy_orders(Path(repository.name), tmp_path / "deep" / "orders", [PRIMARY])

    monkeypatch.chdir(folder)
    update(folder)

    assert f"_src_path: {repository}\n" in (folder / ".copier-answers.yml").read_text()


def test_update_of_a_dirty_tree_is_refused(repository: Path, tmp_path: Path) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    (folder / "ruff.toml").write_text("line-length = 90\n")

    with pytest.raises(UserMessageError, match="repository is dirty"):
        update(folder)


def test_update_that_adds_a_database_adds_its_file_and_no_example(
    repository: Path, tmp_path: Path
) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])

    update(folder, [PRIMARY, AUDIT])

    assert git(folder, "status", "--porcelain", "--untracked-files=all").splitlines() == [
        " M .copier-answers.yml",
        " M src/orders/databases/__init__.py",
        "?? src/orders/databases/audit.py",
    ]


def test_update_that_takes_a_database_off_the_list_deletes_no_file(
    repository: Path, tmp_path: Path
) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY, AUDIT])

    update(folder, [PRIMARY])

    assert git(folder, "status", "--porcelain").splitlines() == [
        " M .copier-answers.yml",
        " M src/orders/databases/__init__.py",
    ]


def test_update_leaves_the_files_of_the_user_as_they_are(repository: Path, tmp_path: Path) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    for name in OWNED:
        (folder / name).write_text("mine\n")
    commit_all(folder)
    for path in (repository / "template").rglob("*"):
        if path.is_file() and "answers_file" not in path.name:
            path.write_text(path.read_text() + "theirs\n")
    commit_all(repository, tag="v2.0.0")

    update(folder)

    changed = git(folder, "diff", "--name-only").splitlines()
    assert changed == [
        ".copier-answers.yml",
        "ruff.toml",
        "src/orders/databases/__init__.py",
        "src/orders/dbkit/items/page.py",
        "src/orders/dbkit/pool.py",
    ]
    assert git(folder, "ls-files", "--others") == ""


def test_update_brings_back_no_example_that_was_deleted(repository: Path, tmp_path: Path) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    deleted = [name for name in OWNED if "databases/" not in name]
    for name in deleted:
        (folder / name).unlink()
    commit_all(folder)
    for name in SERVICE:
        path = repository / "template" / name
        path.write_text(path.read_text() + "theirs\n")
    commit_all(repository, tag="v2.0.0")

    update(folder)

    assert [name for name in deleted if (folder / name).exists()] == []


def test_recopy_keeps_the_files_of_the_user(repository: Path, tmp_path: Path) -> None:
    folder = copy_orders(repository, tmp_path / "orders", [PRIMARY])
    for name in OWNED:
        (folder / name).write_text("mine\n")

    run_recopy(folder, defaults=True, overwrite=True, quiet=True)

    assert [name for name in OWNED if (folder / name).read_text() != "mine\n"] == []
