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
    commands = ["migrate", "check --fail-level warning", "makemigrations none"]

    done = manage_in_turn(folder, *commands, variables=variables)

    count = len(variant.names_of_databases + variant.names_of_replicas)
    said = f"{count} checked, 0 findings.\n" + "".join(
        f"{name}: no changes\n" for name in variant.names_of_databases
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(f"\n{said}"), done.stdout


@of_each_python
def test_own_tests_pass(folder: Path, variables: dict[str, str]) -> None:
    # Of the plugins in this environment, a service has AnyIO's.
    done = run(
        folder,
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio"),
        variables={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables,
    )

    assert done.returncode == 0, done.stdout
