"""The variants of a service that are rendered and booted at every change.

The tests import `VARIANTS`; `python tests/support/variants.py` prints them as the matrix of a
GitHub workflow: `{"include": [{"variant": "default", "python": "3.11"}, ...]}`.
"""

import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from allpairspy import AllPairs  # pyright: ignore[reportMissingTypeStubs]  # It has none.

if TYPE_CHECKING:  # This is a script too, for CI's matrix.
    import pytest
    from mariadb import Server

PYTHON_VERSIONS = ["3.11", "3.12", "3.13"]
DATABASES: dict[str, list[dict[str, Any]]] = {
    "pg": [{"name": "primary", "engine": "postgresql"}],
    "sqlite": [{"name": "primary", "engine": "sqlite"}],
    # As in the variant four-databases.
    "2pg-2sqlite": [
        {"name": "primary", "engine": "postgresql", "pool_size": 10},
        {"name": "analytics", "engine": "postgresql", "pool_size": 2},
        {"name": "audit", "engine": "sqlite"},
        {"name": "cache", "engine": "sqlite"},
    ],
}


@dataclass(frozen=True)
class Variant:
    """A name for a set of answers; what is not answered has its default."""

    name: str
    answers: dict[str, Any]

    @property
    def python_version(self) -> str:
        """The Python that the service asks for, e.g. "3.11"."""
        return self.answers.get("python_version", "3.11")

    @property
    def databases(self) -> list[dict[str, Any]]:
        """Its databases, the first one first."""
        return self.answers.get("databases", [{"name": "primary", "engine": "postgresql"}])

    @property
    def names_of_databases(self) -> list[str]:
        """The names of the databases that it writes to, the first one first."""
        return [each["name"] for each in self.databases if "replica_of" not in each]

    @property
    def names_of_replicas(self) -> list[str]:
        """The names of the databases that it only reads."""
        return [each["name"] for each in self.databases if "replica_of" in each]

    def names_on(self, engine: str) -> list[str]:
        """Return the names of its databases on one engine."""
        return [each["name"] for each in self.databases if each["engine"] == engine]

    def variables(self, request: "pytest.FixtureRequest") -> dict[str, str]:
        """Return its environment: of its databases on MariaDB, all but the first one are named."""
        if not self.names_on("mysql"):
            return {}
        kind = "mysql" if self.name == "every-engine" else "mariadb"
        server: Server = request.getfixturevalue(kind)
        return server.variables(self.databases[1:])


def curated() -> Iterator[Variant]:
    """Read the variants that somebody chose."""
    text = Path(__file__).with_name("variants.toml").read_text(encoding="utf-8")
    for name, answers in tomllib.loads(text).items():
        yield Variant(name, answers)


def pairwise() -> Iterator[Variant]:
    """Compute few variants in which every two answers meet; they are the same at every run."""
    rows = AllPairs(
        [
            PYTHON_VERSIONS,
            ["github", "gitlab", "none"],
            [True, False],
            ["MIT", "Apache-2.0", "proprietary"],
            list(DATABASES),
        ]
    )
    for python_version, ci, containers, licence, databases in cast("Iterator[list[Any]]", rows):
        parts = [python_version, ci, "containers" if containers else "plain", licence, databases]
        yield Variant(
            "-".join(parts).lower(),
            {
                "python_version": python_version,
                "ci": ci,
                "containers": containers,
                "licence": licence,
                "databases": DATABASES[databases],
            },
        )


def representatives(variants: list[Variant]) -> dict[str, Variant]:
    """Map each variant's name to the first variant whose Python is the same.

    The Python of a service depends on its name and its databases; a test holds that.
    """
    first: dict[str, Variant] = {}
    for each in variants:
        first.setdefault(python_of(each), each)
    return {each.name: first[python_of(each)] for each in variants}


def python_of(variant: Variant) -> str:
    """Return what the Python of a variant depends on."""
    databases = variant.answers.get("databases", DATABASES["pg"])
    return json.dumps([variant.answers.get("project_name"), databases])


VARIANTS = [*curated(), *pairwise()]
REPRESENTATIVES = representatives(VARIANTS)


def main() -> None:
    """Print the matrix."""
    include = [{"variant": each.name, "python": each.python_version} for each in VARIANTS]
    sys.stdout.write(json.dumps({"include": include}) + "\n")


if __name__ == "__main__":
    main()
