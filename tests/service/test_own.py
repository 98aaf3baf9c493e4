"""What the owner of a variant runs: its checks, its migrations, its own tests."""

import sys
from pathlib import Path

import pytest
from rendering import Renderer, Service
from running import copy_of, manage_in_turn, run
from variants import REPRESENTATIVES, VARIANTS, Variant

# Where a service's Python is the same, once is enough.
of_each_python = pytest.mark.parametrize(
    "variant",
    [pytest.param(each, id=each.name) for each in VARIANTS if each is REPRESENTATIVES[each.name]],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> Variant:
    """Return the variant that is tested."""
    return request.param


@pytest.fixture(scope="module")
def variables(variant: Variant, request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment of a variant's commands."""
    return variant.variables(request)


@pytest.fixture(scope="module")
def folder(variant: Variant, render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a variant, for all its tests."""
    return copy_of(render(**variant.answers), tmp_path_factory.mktemp("own"))


def sources(service: Service) -> dict[str, str]:
    """Read the Python of a service, by path."""
    return {
        str(file.relative_to(service.path)): file.read_text(encoding="utf-8")
        for file in service.path.rglob("*.py")
    }


@pytest.mark.parametrize("variant", [pytest.param(each, id=each.name) for each in VARIANTS])
def test_python_is_that_of_its_representative(variant: Variant, render: Renderer) -> None:
    own = sources(render(**variant.answers))

    assert len(own) > 30
    assert own == sources(render(**REPRESENTATIVES[variant.name].answers))


@of_each_python
def test_checks_find_nothing_and_first_migrations_equal_the_models(
    variant: Variant, folder: Path, variables: dict[str, str]
) -> None:
    last = variant.names_of_databases[-1]
    feature = f"startapp order_lines --database {last}"
    commands = [feature, "migrate", "check --fail-level warning", "makemigrations none"]

    done = manage_in_turn(folder, *commands, variables=variables)

    count = len(variant.names_of_databases + variant.names_of_replicas)
    said = f"{count} checked, 0 findings.\n" + "".join(
        f"{name}: no changes\n" for name in variant.names_of_databases
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(f"\n{said}"), done.stdout
    ruff = Path(sys.executable).with_name("ruff")
    for command in ("check", "format --check"):
        linted = run(folder, ruff, *command.split(), "--no-cache", ".")
        assert linted.returncode == 0, linted.stdout


@of_each_python
def test_own_tests_pass(folder: Path, variables: dict[str, str]) -> None:
    """With those of the feature that `startapp` has written above."""
    # Of the plugins in this environment, a service has AnyIO's.
    done = run(
        folder,
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio"),
        variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables,
    )

    assert done.returncode == 0, done.stdout


COMPUTED = """\
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW, onupdate=NOW)
    size: Mapped[int | None] = mapped_column(Computed("quantity * 2"))
"""
ANSWERED = """

async def test_computed_columns_are_answered(client: AsyncClient) -> None:
    created = await client.post("/items", json={"name": "lamp", "quantity": 3})

    assert created.status_code == 201
    item = created.json()
    assert (item["size"], item["updated_at"]) == (6, item["created_at"])
    changed = await client.patch(f"/items/{item['id']}", json={"quantity": 2})
    assert changed.status_code == 200
    assert changed.json()["size"] == 4
    assert changed.json() == (await client.get(f"/items/{item['id']}")).json()
"""


@pytest.mark.parametrize("name", ["default", "mysql", "one-sqlite"])
def test_columns_that_the_server_computes_are_in_the_answer(
    name: str, render: Renderer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    variant = next(each for each in VARIANTS if each.name == name)
    folder = copy_of(render(**variant.answers), tmp_path)
    now = 'text("now(6)")' if variant.databases[0]["engine"] == "mysql" else "func.now()"
    package = folder / "src" / "my_service" / "items"
    edit(
        package / "models.py",
        {
            "from sqlalchemy import String\n": (
                "from datetime import datetime\n"
                "from sqlalchemy import Computed, String, func, text\n"
            ),
            "\n\nclass Item": f"\nNOW = {now}\n\n\nclass Item",
            "    quantity: Mapped[int]\n": f"    quantity: Mapped[int]\n{COMPUTED}",
        },
    )
    edit(
        package / "schemas.py",
        {
            "from fastapi import": "from datetime import datetime\nfrom fastapi import",
            "    quantity: int\n": (
                "    quantity: int\n    size: int\n"
                "    created_at: datetime\n    updated_at: datetime\n"
            ),
        },
    )
    tests = folder / "tests" / "test_items.py"
    tests.write_text(tests.read_text() + ANSWERED)
    variables = variant.variables(request)
    first = variant.names_of_databases[0]

    commands = ["migrate", f"makemigrations computed --database {first}", "migrate"]
    made = manage_in_turn(folder, *commands, variables=variables)
    done = run(
        folder,
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio"),
        "tests/test_items.py",
        variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables,
    )

    assert made.returncode == 0, made.stdout
    assert done.returncode == 0, done.stdout


def edit(file: Path, changes: dict[str, str]) -> None:
    """Change a file of the owner's."""
    text = file.read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after, 1)
    file.write_text(text)
