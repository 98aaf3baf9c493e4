"""`manage.py create`, `reset`, `flush`, `seed`, `dump` and `load`, on each engine."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.util import CommandError
from dbkit import Database
from dbkit.commands import backups, data
from dbkit.commands.embedded import EmbeddedPostgres
from debian import find_program
from mariadb import MariaDB
from rendering import Renderer
from running import copy_of, environment
from sqlalchemy import URL

# Each in a fork of one process, which has imported all; their output together.
IN_FORKS = """
import os, sys
from manage import cli
for line in sys.argv[1:]:
    print(">", line, flush=True)
    if not os.fork():
        cli(line.split())
    print("ended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
ROWS = '''

@cli.command()
async def rows() -> None:
    """Count items."""
    async with opened(databases):
        print(await primary.reader.scalar(select(func.count()).select_from(Item)), "rows")


@cli.command()
async def execute(words: list[str]) -> None:
    """Run a statement."""
    async with opened(databases):
        await primary.execute(text(" ".join(words)))

'''
IMPORTS = """\
from orders.databases import databases
from orders.databases.primary import primary
from orders.dbkit import opened
from orders.items.models import Item
from sqlalchemy import func, select, text

cli = manage("""
SEEDS = '''\
"""Data to begin with."""

from .databases.primary import primary
from .items.models import Item


async def seed() -> None:
    """Insert an item."""
    async with primary.session() as session:
        session.add(Item(name="it's; 100 % — ÿ\\\\", quantity=1))
'''
SPOKEN = "p%s'w\\\\rd"
MARIADB = pytest.param("mysql", marks=pytest.mark.programs)


@dataclass
class Shop:
    """A service, whose database has a URL."""

    folder: Path
    url: URL

    @property
    def is_file(self) -> bool:
        """Whether it is SQLite's."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def place(self) -> str:
        """What is to be said to destroy it."""
        host = f"{self.url.host}:{self.url.port}/" if self.url.host else ""
        return f"{host}{self.url.database}"

    def run(self, *lines: str, url: URL | None = None) -> list[str]:
        """Run commands of `manage.py` in turn; return what each said, and how it ended."""
        done = subprocess.run(
            [sys.executable, "-c", IN_FORKS, *lines],
            cwd=self.folder,
            env=environment(DATABASE_URL=(url or self.url).render_as_string(hide_password=False)),
            input=f"{SPOKEN}\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=120,
        )
        assert SPOKEN not in done.stdout
        assert str(self.url.password) not in done.stdout or not self.url.password
        said = done.stdout.split("> ")[1:]
        return [
            each.partition("\n")[2].strip().removesuffix("ended with 0").strip() for each in said
        ]


@pytest.fixture(params=["postgresql", MARIADB, "sqlite"])
def shop(request: pytest.FixtureRequest, render: Renderer, tmp_path: Path) -> Shop:
    """Make a service with seeds, on a database that is not there yet."""
    engine: str = request.param
    databases = [{"name": "primary", "engine": engine}]
    folder = copy_of(render(project_name="Orders", databases=databases), tmp_path)
    manage = folder / "manage.py"
    text = (
        manage.read_text()
        .replace("cli = manage(", IMPORTS)
        .replace("\nif __name__", f"{ROWS}\nif __name__")
    )
    manage.write_text(text)
    (folder / "src" / "orders" / "seeds.py").write_text(SEEDS)
    if engine == "postgresql":
        postgres: EmbeddedPostgres = request.getfixturevalue("postgres")
        url = postgres.url(f"Shop-{os.urandom(4).hex()}")
    elif engine == "mysql":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        url = mariadb.url(f"shop_{os.urandom(4).hex()}")
    else:
        url = URL.create("sqlite", database=str(tmp_path / "shop.sqlite3"))
    return Shop(folder, url)


def test_a_database_is_made_saved_emptied_and_restored(shop: Shop) -> None:
    (shop.folder / "tests" / "test_chairs.py").touch()
    if shop.url.get_backend_name() == "mysql":
        find_program("mariadb-dump")
    asked = f"primary: is {shop.place}, which has a URL or is in production: nothing was done."
    meant = f"--confirm {shop.place}"

    said = shop.run(
        *("create", "create", "migrate", "seed", "dump saved", "dump saved"),
        *("flush", "reset --confirm primary", "load saved", "rows"),
        *(f"flush {meant}", "rows", f"load saved {meant}", f"load manage.py {meant}", "rows"),
        *(f"load nowhere {meant}", f"reset {meant}", "startapp chairs"),
    )

    name = shop.url.database
    made = f"SQLite makes {name} by itself" if shop.is_file else f"created {name}"
    assert said[0] == f"primary: {made}"
    assert said[1] == f"primary: {made if shop.is_file else f'{name} is there already'}"
    assert said[3:5] == ["seeded", "primary: saved in saved"]
    assert said[5] == f"{shop.folder / 'saved'}: File exists\nended with 1"
    assert all(each.startswith(asked) for each in said[6:9])
    is_no_dump = {
        "postgresql": "is no whole dump of postgresql: nothing was done",
        "mysql": "is no whole dump of mysql: nothing was done",
        "sqlite": "file is not a database",
    }[shop.url.get_backend_name()]
    assert said[9:13] == [
        *("1 rows", "primary: emptied 1 tables", "0 rows", "primary: is as it was in saved"),
    ]
    assert said[13].endswith(f"{is_no_dump}\nended with 1")
    assert said[14] == "1 rows"
    assert said[15].startswith(str(shop.folder / "nowhere"))
    assert said[15].endswith("\nended with 1")
    done = f"emptied {name}" if shop.is_file else f"dropped {name}, and created {name}"
    assert said[16] == f"primary: {done}\nprimary: upgraded to 0001: create items.\nseeded"
    assert said[17] == "tests/test_chairs.py is there already: nothing was written\nended with 1"
    assert not (shop.folder / "src" / "orders" / "chairs").exists()


@pytest.mark.parametrize("shop", ["postgresql", MARIADB], indirect=True)
def test_a_role_that_owns_no_table_serves_and_checks(shop: Shop) -> None:
    role = f"app-{os.urandom(4).hex()}"

    said = shop.run(
        *("create", f"create --role {role}", "migrate", "seed"),
        *(f"create --role {role}", f"create --role {role}", f"create --role {shop.url.username}"),
        *("startapp lamps", "migrate"),
    )

    is_postgresql = shop.url.get_backend_name() == "postgresql"
    if is_postgresql:
        first = "primary: first run `manage.py migrate --database primary`, as the user who"
        assert said[1].startswith(first)
        assert said[4] == f"primary: created {role}: it reads and writes rows"
    assert said[5] == f"primary: granted again to {role}: it reads and writes rows"
    assert said[6].startswith(f"primary: {shop.url.username} is the user of the URL")
    own = shop.url.set(username=role, password=SPOKEN)
    did = shop.run(
        *("check", "rows", "execute INSERT INTO lamps (name, quantity) VALUES ('lamp', 1)"),
        *(f"flush --confirm {shop.place}", "execute DELETE FROM alembic_version WHERE 1 = 0"),
        url=own,
    )
    assert did[:3] == ["1 checked, 0 findings.", "1 rows", ""]
    assert did[3].endswith(
        "; if its user may not do that, give this command another, by DATABASE_URL\nended with 1"
    )
    if is_postgresql:
        assert did[4] == "permission denied for table alembic_version\nended with 1"
        shop.run(f'execute REVOKE SELECT ON alembic_version FROM "{role}"')  # noqa: S608 -- ours
        (check,) = shop.run("check", url=own)
        assert check.splitlines()[:2] == [
            (
                "primary: (database.W004) check_schema cannot be made: permission denied for table"
                " alembic_version"
            ),
            (
                "    as the user who owns the tables, run `manage.py create --database primary"
                " --role ROLE`, which lets ROLE read it"
            ),
        ]


def test_in_development_nobody_has_to_name_what_is_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database("audit", "sqlite", url="sqlite:///audit.sqlite3")
    data.must_be_meant([database], None)

    nothing: dict[str, object] = {}
    monkeypatch.setattr(data, "find_spec", nothing.get)  # As in production.
    with pytest.raises(
        SystemExit, match=r"audit: is audit\.sqlite3, which has a URL or is in prod"
    ):
        data.must_be_meant([database], None)
    with pytest.raises(SystemExit, match=r"--database audit --confirm audit\.sqlite3"):
        data.must_be_meant([database], "audit")
    data.must_be_meant([database], "audit.sqlite3")
    several = "postgresql://app@/shop?host=first:5432&host=second:5432"
    monkeypatch.setenv("DATABASE_URL", several)
    primary = Database("primary", "postgresql", env_prefix="DATABASE_")
    with pytest.raises(SystemExit, match="--confirm first:5432,second:5432/shop"):
        data.must_be_meant([primary], "shop")


def test_programs_of_postgresql_are_not_older_than_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, version in (("path", 40), ("development", 43)):
        psql = tmp_path / folder / "psql"
        psql.parent.mkdir()
        psql.write_text(f"#!/bin/sh\necho 'psql (PostgreSQL) {version}.3 (Debian 40.3-1)'\n")
        psql.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(backups, "find_binaries", lambda: tmp_path / "development")
    database = Database("primary", "postgresql")

    found = [backups.of_postgresql(database, "psql", version) for version in (14, 40, 41, 43)]
    folders = [Path(each).parent.name for each in found]
    assert folders == ["path", "path", "development", "development"]
    refusal = "its server is PostgreSQL 44, and psql is of 40, 43: install postgresql-client-44"
    with pytest.raises(CommandError, match=refusal):
        backups.of_postgresql(database, "psql", 44)
