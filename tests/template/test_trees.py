"""The files of a service: which answer adds which, and none beside."""

from typing import Any

import pytest
from rendering import Renderer, Service

POSTGRESQL = {"name": "primary", "engine": "postgresql"}
FOUR = [
    POSTGRESQL,
    {"name": "analytics", "engine": "postgresql"},
    {"name": "audit", "engine": "sqlite"},
    {"name": "cache", "engine": "sqlite"},
]
BARE: dict[str, Any] = {"ci": "none", "containers": False, "licence": "proprietary"}

# The kit has a test of its own.
ONE_DATABASE = {
    ".copier-answers.yml",
    ".env.example",
    ".gitattributes",
    ".gitignore",
    "AGENTS.md",
    "README.md",
    "manage.py",
    "migrations/primary/0001_create_items.py",
    "pyproject.toml",
    "pyrightconfig.json",
    "ruff.toml",
    "src/my_service/__init__.py",
    "src/my_service/databases/__init__.py",
    "src/my_service/databases/primary.py",
    "src/my_service/items/__init__.py",
    "src/my_service/items/models.py",
    "src/my_service/items/router.py",
    "src/my_service/items/schemas.py",
    "src/my_service/main.py",
    "tests/conftest.py",
    "tests/test_fixtures.py",
    "tests/test_health.py",
    "tests/test_items.py",
}
THREE_MORE_DATABASES = {
    "migrations/analytics/0001_create_notes.py",
    "migrations/audit/0001_create_notes.py",
    "migrations/cache/0001_create_notes.py",
    "src/my_service/databases/analytics.py",
    "src/my_service/databases/audit.py",
    "src/my_service/databases/cache.py",
    "src/my_service/notes/__init__.py",
    "src/my_service/notes/analytics.py",
    "src/my_service/notes/audit.py",
    "src/my_service/notes/cache.py",
    "tests/notes/test_analytics_notes.py",
    "tests/notes/test_audit_notes.py",
    "tests/notes/test_cache_notes.py",
}
CONTAINERS = {
    ".dockerignore",
    "Dockerfile",
    "compose.yaml",
    "deploy/migrate.yaml",
    "deploy/monitoring/alerts.yaml",
    "deploy/monitoring/dashboard.json",
    "deploy/pgbouncer/compose.yaml",
    "deploy/pgbouncer/kubernetes.yaml",
    "deploy/pgbouncer/pgbouncer.ini",
    "deploy/service.yaml",
}


def files(service: Service) -> set[str]:
    """List the files of a service but for its kit."""
    found = {path.relative_to(service.path) for path in service.path.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "dbkit" not in path.parts}


def test_one_database(render: Renderer) -> None:
    assert files(render(**BARE)) == ONE_DATABASE


def test_four_databases(render: Renderer) -> None:
    assert files(render(**BARE, databases=FOUR)) == ONE_DATABASE | THREE_MORE_DATABASES


def test_a_replica_has_no_tables_and_no_migrations(render: Renderer) -> None:
    replica = {"name": "replica", "engine": "postgresql", "replica_of": "primary"}

    added = {"src/my_service/databases/replica.py", "tests/test_replica.py"}
    assert files(render(**BARE, databases=[POSTGRESQL, replica])) == ONE_DATABASE | added


def test_the_first_database_alone_has_the_items(render: Renderer) -> None:
    service = render(**BARE, databases=[{"name": "local", "engine": "sqlite"}])

    renamed = {name.replace("primary", "local") for name in ONE_DATABASE}
    assert files(service) == renamed


@pytest.mark.parametrize(
    ("question", "answer", "added"),
    [
        (
            "ci",
            "github",
            {".github/workflows/ci.yml", ".github/workflows/template.yml", "renovate.json"},
        ),
        ("ci", "gitlab", {".gitlab-ci.yml", "renovate.json"}),
        ("containers", True, CONTAINERS),
        ("licence", "MIT", {"LICENSE"}),
        ("licence", "Apache-2.0", {"LICENSE"}),
    ],
)
def test_answer_adds_files(render: Renderer, question: str, answer: Any, added: set[str]) -> None:
    assert files(render(**BARE | {question: answer})) == ONE_DATABASE | added


@pytest.mark.parametrize(
    ("licence", "begins"), [("MIT", "MIT License\n"), ("Apache-2.0", "Apache License\n")]
)
def test_licence_is_the_one_that_was_chosen(render: Renderer, licence: str, begins: str) -> None:
    service = render(**BARE | {"licence": licence})

    assert (service.path / "LICENSE").read_text().lstrip().startswith(begins)
