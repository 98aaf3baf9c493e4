"""Rendered files are as a careful person would leave them; no tool has anything to change."""

import ast
import json
import re
import shutil
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from dbkit import Databases
from dbkit.commands import command_line as commands
from dbkit.settings.database import DatabaseSettings
from dbkit.settings.service import ServiceSettings
from packaging.specifiers import SpecifierSet
from rendering import ROOT, Renderer, Service
from running import run
from settings_table import GROUPS
from variants import PYTHON_VERSIONS, VARIANTS, Variant, python_of

BIN = Path(sys.executable).parent
ONLY_POSTGRESQL = {"client_check_interval", "pgbouncer"}
ONLY_SERVERS = {"statement_timeout", "idle_in_transaction_timeout", "password", "password_file"}
DRIVERS = {"aiosqlite", "asyncmy", "asyncpg", "greenlet"}  # greenlet by `sqlalchemy[asyncio]`
ONLY_REPLICAS = ["fallback", "max_lag", "read_your_writes"]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Return a variant."""
    return request.param


@pytest.fixture
def service(render: Renderer, variant: Variant) -> Service:
    """Return the rendered variant: read only."""
    return render(**variant.answers)


def texts(service: Service) -> dict[str, str]:
    """Read the files of a service, by path."""
    return {
        path.relative_to(service.path).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(service.path.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def kit_files(kit: Path) -> dict[str, bytes]:
    """Read the files of a kit, by path."""
    return {
        path.relative_to(kit).as_posix(): path.read_bytes()
        for path in kit.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


OPTIONAL = {
    "mysql": {"engines/mysql.py", "commands/checks/mysql.py", "testing/mysql.py"},
    "sqlite": {"engines/sqlite.py", "testing/sqlite.py"},
    "replica_of": {"database/replicas.py", "commands/checks/replicas.py"},
}
"""Files of the kit, by what a service has them for."""


def test_kit_is_the_same_in_every_service_but_for_what_it_has_no_use_for(
    service: Service, template: Path
) -> None:
    whole = kit_files(template / "template" / "src" / "{{package}}" / "dbkit")
    ours = kit_files(next(service.path.glob("src/*/dbkit")))
    declared = "".join(path.read_text() for path in service.path.glob("src/*/databases/*.py"))

    assert ours.items() <= whole.items()
    needless = [
        files for word, files in OPTIONAL.items() if not re.search(rf"\b{word}\b", declared)
    ]
    assert whole.keys() - ours.keys() == set[str]().union(*needless)


@pytest.mark.parametrize("command", [("format", "--check", "--diff"), ("check",)])
def test_ruff_finds_nothing(service: Service, command: tuple[str, ...]) -> None:
    done = run(service.path, BIN / "ruff", *command, "--no-cache", ".")

    assert done.returncode == 0, done.stdout


ROUTER = '''"""Users."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

router = APIRouter()


class UserRead(BaseModel):
    id: int


@router.get("/users/{id}/users")
async def list_users(
    id: int,
    type: str = "all",
    city: str | None = None,
    team: str | None = None,
    after: int = 0,
    limit: Annotated[int, Query(le=100)] = 20,
) -> list[UserRead]:
    """List users."""
    return []
'''
OWN_RULES = """\
extend = "ruff.toml"
line-length = 110

[lint]
extend-select = ["ARG", "T20"]
ignore = ["D104", "S105"]
"""


def test_rules_fit_fastapi_and_an_owner_changes_them(render: Renderer, tmp_path: Path) -> None:
    folder = shutil.copytree(render().path, tmp_path / "service")
    users = folder / "src" / "my_service" / "users"
    users.mkdir()
    (users / "__init__.py").touch()
    (users / "router.py").write_text(ROUTER)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "hello.py").write_text('"""Greet."""\n\nprint("hello")\n')

    as_rendered = run(folder, BIN / "ruff", "check", "--no-cache")
    (folder / ".ruff.toml").write_text(OWN_RULES)
    as_its_owner_wants = run(folder, BIN / "ruff", "check", "--no-cache", "--output-format=concise")
    formatted = run(folder, BIN / "ruff", "format", "--no-cache", "--diff", "src/my_service/dbkit")

    assert as_rendered.returncode == 0, as_rendered.stdout
    found = set(re.findall(r"^(\S+?):.* (\w+\d{3}) ", as_its_owner_wants.stdout, re.MULTILINE))
    assert found == {("src/my_service/users/router.py", "ARG001"), ("scripts/hello.py", "T201")}
    assert formatted.returncode == 0, formatted.stdout


@pytest.mark.timeout(600)
def test_pyright_finds_nothing(render: Renderer, tmp_path: Path) -> None:
    """Check all that differ at once: most of the time goes into what they import.

    The kit, which is the same in each, is checked for the oldest Python and the newest.
    """
    config: dict[str, Any] = {"include": [], "exclude": [], "executionEnvironments": []}
    files = 0
    for python_version in PYTHON_VERSIONS:
        # Where a service's Python is the same, once is enough.
        chosen = {
            python_of(each): each for each in VARIANTS if each.python_version == python_version
        }
        for number, variant in enumerate(chosen.values()):
            folder = shutil.copytree(render(**variant.answers).path, tmp_path / variant.name)
            modules = list(folder.rglob("*.py"))
            own: dict[str, Any] = json.loads((folder / "pyrightconfig.json").read_text())
            if number or python_version in PYTHON_VERSIONS[1:-1]:
                config["exclude"].append(f"{variant.name}/src/*/dbkit")
                modules = [module for module in modules if "dbkit" not in module.parts]
            files += len(modules)
            config["include"] += [f"{variant.name}/{name}" for name in own.pop("include")]
            (migrations,) = own.pop("executionEnvironments")
            assert own == {"typeCheckingMode": "strict", "pythonVersion": python_version}
            config["typeCheckingMode"] = own.pop("typeCheckingMode")
            environment = {"root": variant.name, "extraPaths": [f"{variant.name}/src"]}
            migrations["root"] = f"{variant.name}/{migrations['root']}"
            config["executionEnvironments"] += [
                environment | own | migrations | {"extraPaths": environment["extraPaths"]},
                environment | own,
            ]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))

    done = run(tmp_path, BIN / "pyright", "--pythonpath", sys.executable, "--outputjson")

    report = json.loads(done.stdout)
    assert [each["message"] for each in report["generalDiagnostics"]] == [], done.stdout
    # All of its configuration was understood.
    assert report["summary"]["filesAnalyzed"] == files


@pytest.mark.parametrize("engine", ["mysql", "postgresql", "sqlite"])
def test_uv_adds_below_the_lines_of_the_template(
    render: Renderer, tmp_path: Path, engine: str
) -> None:
    """Among them, the next update could conflict with it."""
    service = render(databases=[{"name": "primary", "engine": engine}])
    shutil.copy(service.path / "pyproject.toml", tmp_path)

    for group in ([], ["--dev"]):
        done = run(tmp_path, BIN / "uv", "add", "--frozen", *group, "aaa>=1", "orjson>=3")
        assert done.returncode == 0, done.stdout

    text = (tmp_path / "pyproject.toml").read_text()
    assert text.count('below.\n    "aaa>=1",\n    "orjson>=3",\n]') == 2


def test_nothing_needs_a_newer_python_than_we_promise(render: Renderer) -> None:
    """Ruff and pyright know the syntax of a version; this knows when a function came."""
    (promised,) = re.findall(r"Python (3\.\d+) or newer", (ROOT / "README.md").read_text())
    own = [ROOT / name for name in ("fleet", "tests", "tools", "benchmarks")]
    options = [f"--target={promised}-", "--violations", "--no-tips", "--no-config-file"]
    # One that it takes for Python 2's: of two kinds of paths, it reads neither.
    options += ["--exclude", "str.decode"]

    done = run(ROOT, BIN / "vermin", *options, render().path, *filter(Path.is_dir, own))

    assert done.returncode == 0, done.stdout
    assert "Minimum required versions: " + promised in done.stdout
    assert "File with" not in done.stdout, done.stdout  # Such a file is left out.


def test_every_dependency_accepts_the_first_python_that_we_promise() -> None:
    asked = {each.name: each.metadata["Requires-Python"] for each in distributions()}

    assert "fastapi" in asked
    refused = {name: of for name, of in asked.items() if "3.11.0" not in SpecifierSet(of or "")}
    assert not refused


def test_what_is_imported_is_declared(render: Renderer) -> None:
    """In the owner's example and in the kit, whose drivers depend on the engines."""
    service = render()
    pyproject = tomllib.loads((service.path / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [pyproject["project"]["dependencies"], pyproject["dependency-groups"]["dev"]]
    runtime, development = (
        {re.split(r"[^\w-]", str(each))[0].replace("_", "-") for each in lines} for lines in needed
    )
    (main,) = service.path.glob("src/*/main.py")
    distributions = packages_distributions()
    for path in (*service.path.glob("src/**/*.py"), *service.path.glob("tests/**/*.py")):
        tests = {"testing", "tests"} & set(path.relative_to(service.path).parts)
        for module in imported(path) - sys.stdlib_module_names - {main.parent.name}:
            found = {each.lower().replace("_", "-") for each in distributions.get(module, [module])}
            declared = runtime | DRIVERS | development if tests else runtime | DRIVERS
            assert found & declared, f"{path.name} imports {module}, of {found}"


def imported(path: Path) -> set[str]:
    """Return the packages from which a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_no_template_is_left_over(service: Service) -> None:
    # GitHub has its own, and somebody may want to say something in curly brackets.
    ours = re.compile(r"(?<!\$)\{\{(?! curly \}\})|\{%|\{#|%\}")
    for name, text in texts(service).items():
        # Not rendered: the kit formats strings, and Prometheus and Grafana have templates too.
        is_rendered = "/dbkit/" not in name and not name.startswith("deploy/monitoring/")
        assert not is_rendered or ours.findall(text) == [], name


def test_blank_lines_are_where_they_belong(service: Service) -> None:
    """No file ends with one, and none follows another; ruff sees to those within Python."""
    for name, text in texts(service).items():
        assert text == text.rstrip() + "\n", name
        assert re.findall(r"[ \t]+$", text, re.MULTILINE) == [], name
        if not name.endswith((".py", ".mako", ".txt")):  # These are Python, too.
            assert "\n\n\n" not in text, name


def test_data_files_can_be_read(service: Service, variant: Variant) -> None:
    for path in service.path.rglob("*"):
        match path.suffix:
            case ".toml":
                tomllib.loads(path.read_text(encoding="utf-8"))
            case ".yml" | ".yaml":
                documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
                assert all(isinstance(each, dict) for each in documents)
            case _:
                pass
    project = tomllib.loads((service.path / "pyproject.toml").read_text())["project"]
    assert project["description"] == service.answers["description"]
    assert project["requires-python"] == f">={variant.python_version}"


def test_env_example_lists_every_variable_with_its_default(service: Service) -> None:
    """Hold it against the settings: the first database's in full, what differs of the others."""
    text = (service.path / ".env.example").read_text(encoding="utf-8")
    first, *others = service.answers["databases"]

    left_out = {"url", *ONLY_REPLICAS}
    engines = {each["engine"] for each in service.answers["databases"]}
    if "postgresql" not in engines:
        left_out |= ONLY_POSTGRESQL
    if engines == {"sqlite"}:
        left_out |= ONLY_SERVERS
    settings = {
        name: field for name, field in DatabaseSettings.model_fields.items() if name not in left_out
    }
    expected = ""
    for name, field in settings.items():
        if name in GROUPS:
            expected += f"\n# {first['name']}, {GROUPS[name]}\n"
        default = first.get(name, field.default)
        shown = "" if default in ("", None, {}) else f"{default:g}"
        if isinstance(default, bool):
            shown = str(default).lower()
        expected += f"# {field.description}\n# DATABASE_{name.upper()}={shown}\n"
    assert expected in text
    for each in (each["name"].upper() for each in others if "replica_of" in each):
        for name in ONLY_REPLICAS:
            field = DatabaseSettings.model_fields[name]
            shown = str(field.default).lower()
            assert f"# {field.description}\n# {each}_DATABASE_{name.upper()}={shown}\n" in text
    for name, field in ServiceSettings.model_fields.items():
        shown = field.default if field.default == "" else f"{field.default:g}"
        assert f"# {field.description}\n# {name.upper()}={shown}\n" in text
    assert re.findall(r"^# (\w*DATABASE_\w+)=", text, re.MULTILINE) == [
        "DATABASE_URL",
        *(["TEST_DATABASE_URL"] if first["engine"] == "mysql" else []),
        *(f"DATABASE_{name.upper()}" for name in settings),
        *(
            f"{each['name'].upper()}_{variable}"
            for each in others
            for variable in [
                "DATABASE_URL",
                *(["TEST_DATABASE_URL"] if each["engine"] == "mysql" else []),
                *(
                    [f"DATABASE_{name.upper()}" for name in ("required", *ONLY_REPLICAS)]
                    if "replica_of" in each
                    else []
                ),
                *(["DATABASE_POOL_SIZE"] if "pool_size" in each else []),
            ]
        ),
    ]


def test_readme_and_agents_name_what_there_is(service: Service) -> None:
    """Each path in them exists, and each command of ours is one of `manage.py`'s."""
    package = next(service.path.glob("src/*/dbkit")).parent.name
    command_line: Any = typer.main.get_command(commands.manage(Databases(), app="a:b", root=ROOT))
    known = command_line.commands
    for name in ("README.md", "AGENTS.md"):
        text = (service.path / name).read_text(encoding="utf-8")
        for path in re.findall(rf"`((?:src/{package}|tests|migrations)/[\w/.]*)`", text):
            assert (service.path / path).exists(), f"{name}: {path}"
        for command in re.findall(r"manage\.py (\w+)", text):
            assert command in known, f"{name}: {command}"
        for session in re.findall(r"`(\w+Session)`", text):
            assert any(
                f"\n{session} = " in module.read_text()
                for module in service.path.glob("src/*/databases/*.py")
            ), f"{name}: {session}"
