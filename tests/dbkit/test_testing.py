"""The fixtures of a rendered service: what they isolate, and what they do not let pass."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from dbkit.commands import programs
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres, find_binaries
from dbkit.database.database import Database
from dbkit.database.databases import Databases
from dbkit.settings.urls import Dialect, parse_url
from dbkit.testing.cleaning import Cleaner
from dbkit.testing.folder import run_parent
from dbkit.testing.homes import home_class, refuse_configured, start_server
from mariadb import MariaDB
from marked import line_marked
from rendering import Renderer
from running import copy_of, manage, run, wait_until
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

SUITE = Path(__file__).parent / "planted" / "suite.py"
STAINS = SUITE.with_name("stains.py")
line_of = partial(line_marked, SUITE, shown="tests/suite.py")
DATABASES = [
    {"name": "primary", "engine": "postgresql"},
    {"name": "audit", "engine": "sqlite"},
    {"name": "near", "engine": "postgresql", "replica_of": "primary"},
]
KILLED = """\
import os, signal
async def test_killed(client):
    await client.post("/items", json={"name": "lamp"})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def service(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a service of two databases, with the suite."""
    folder = copy_of(render(databases=DATABASES), tmp_path_factory.mktemp("testing"))
    for file in (SUITE, STAINS):
        (folder / "tests" / file.name).write_text(file.read_text())
    return folder


def pytest_in(
    service: Path, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the service's pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    return run(service, *command, *arguments, variables=variables)


@pytest.fixture(scope="module")
def outcomes(service: Path) -> dict[str, str]:
    """Run the suites; return by test what went wrong, "" if nothing did."""
    report = service / "report.xml"
    done = pytest_in(service, "tests/suite.py", "tests/stains.py", f"--junit-xml={report}")
    assert report.exists(), done.stdout
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 -- our own
        name = case.attrib["name"]
        found.setdefault(name, "")
        for kind in ("failure", "error"):
            found[name] += "".join(
                f"{each.attrib['message']}\n{each.text}" for each in case.findall(kind)
            )
    return found


def test_all_else_passes(outcomes: dict[str, str]) -> None:
    """What the suites promise of themselves, and the test that comes after all that is planted."""
    others = {name: said for name, said in outcomes.items() if "plants" not in name}

    assert len(others) >= 43
    assert {name: said for name, said in others.items() if said} == {}


@pytest.mark.parametrize(
    ("test", "message", "line"),
    [
        ("a_leak", "primary: a connection was not returned; it was taken at", "the leak"),
        (
            "a_leak_in_an_isolated_task",
            "primary: a connection was not returned; it was taken at",
            "the isolated leak",
        ),
        (
            "a_leak_for_the_garbage_collector",
            "audit: a connection was not returned; it was taken at",
            "the drop",
        ),
        (
            "a_task",
            "primary: the task planted used this database, and still ran when the test ended",
            "in the task",
        ),
        (
            "a_waiting_task",
            "primary: the task sleeper used this database, and still ran when the test ended",
            "asleep",
        ),
        ("a_commit", "primary: COMMIT would end the sandbox", "the commit"),
        ("a_commit_in_sqlite", "audit: COMMIT would end the sandbox", "the other commit"),
        (
            "a_commit_by_the_driver[primary]",
            "primary: COMMIT is not for SQL text",
            None,
        ),
        (
            "a_commit_by_the_driver[audit]",
            "audit: the sandbox was left by a COMMIT or ROLLBACK that went to the driver",
            None,
        ),
        (
            "a_second_connection",
            "primary: the sandbox has one connection, and this task holds it already",
            "the first",
        ),
        (
            "a_lost_connection",
            "primary: the sandbox was lost (a statement was cancelled",
            "after the loss",
        ),
        ("one_statement_too_many", "2 statements, not 1:\n  primary: SELECT items.id", None),
        ("one_checkout_too_many", "2 checkouts, not 1:\n  primary: ", "the other checkout"),
        ("a_wrong_name", "no database primry; there is primary, audit", None),
        (
            "a_wrong_name_of_what_is_down",
            "no database primry; there is primary, audit, near",
            None,
        ),
        (
            "a_slow_replica",
            "in tests, near reads by the connections of primary: name primary instead",
            None,
        ),
        (
            "an_engine_of_its_own",
            "primary: an engine of the test's own was still connected to its database",
            None,
        ),
        ("another_loop", "pytest-asyncio: set asyncio_default_fixture_loop_scope", None),
        ("a_use_outside", "have it ask for the fixture `databases` or `client`", None),
    ],
)
def test_what_is_planted_fails_and_names_the_line(
    outcomes: dict[str, str], test: str, message: str, line: str | None
) -> None:
    said = outcomes[f"test_plants_{test}"]

    assert message in said
    if line is not None:
        assert line_of(line) in said


@pytest.mark.parametrize(
    ("dialect", "configured", "tests"),
    [
        (
            "postgresql",
            "postgres://owner@db/orders",
            "postgresql://other@DB:5432/orders?ssl=require",
        ),
        (
            "postgresql",
            "postgres://db/test_primary_main",
            "postgres:///test?host=/run/postgresql",
        ),
        ("postgresql", "postgres://127.0.0.2/orders", "postgres://[::1]/orders"),
        ("postgresql", "postgres://db/test_primary_gw0", "postgres://10.0.0.5/test"),
        ("postgresql", "postgres://db/test_primary_gw0_3", "postgres://10.0.0.5/test"),
        ("mysql", "mysql://db/TEST_PRIMARY_TEMPLATE", "mariadb://10.0.0.5:3307/test"),
        ("sqlite", "sqlite:///here/../test_primary_main", "sqlite:///test"),
    ],
)
def test_refuses_the_configured_database_however_it_is_named(
    monkeypatch: pytest.MonkeyPatch, dialect: Dialect, configured: str, tests: str
) -> None:
    database = Database("primary", dialect, env_prefix="DATABASE_")
    monkeypatch.setenv("DATABASE_URL", configured)
    monkeypatch.setenv("DATABASE_POOL_SIZE", "wrong, as may be all but the URL")
    homes = {"primary": home_class(dialect)(database, parse_url(tests, dialect))}

    with pytest.raises(pytest.exit.Exception, match="which is what DATABASE_URL names"):
        refuse_configured(Databases(database), homes)


def test_refuses_the_configured_database(service: Path) -> None:
    done = pytest_in(
        service,
        "tests/test_health.py",
        variables={
            "DATABASE_URL": "postgres://owner:secret@127.0.0.1/orders",
            "TEST_DATABASE_URL": "postgresql+asyncpg://tester:hidden@localhost:5432/orders",
        },
    )

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (
        "primary: the tests would use orders, which is what DATABASE_URL names; nothing was"
        " touched. Set TEST_DATABASE_URL to another database"
    ) in done.stdout
    assert "secret" not in done.stdout
    assert "hidden" not in done.stdout


@pytest.fixture(scope="module")
def lonely(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a service whose runs no other test begins."""
    service = render(project_name="Left Behind", databases=DATABASES)
    return copy_of(service, tmp_path_factory.mktemp("lonely"))


def left_behind(service: str = "left_behind") -> list[Path]:
    """List the folders of its runs."""
    return list(run_parent().glob(f"{service}-tests-*"))


def test_workers_share_a_server_and_touch_nothing_configured(lonely: Path) -> None:
    configured = lonely / "configured.sqlite3"
    configured.write_bytes(b"not to be read")
    (lonely / ".env").write_text(
        "AUDIT_DATABASE_URL=sqlite:///configured.sqlite3\n"
        "DATABASE_URL=postgresql://nobody@127.0.0.1:1/none\n"
    )

    done = pytest_in(lonely, "-n", "2", variables={"DATABASE_PASSWORD": "another"})

    assert done.returncode == 0, done.stdout
    assert configured.read_bytes() == b"not to be read"
    wait_until(lambda: left_behind() == [], "the run's folder is gone")


def test_what_migrations_made_is_used_again_until_they_change(
    render: Renderer, tmp_path: Path
) -> None:
    folder = copy_of(render(databases=DATABASES), tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_items.py"]
    files = {name: folder / "migrations" / name / "0001_create_items.py" for name in ("primary",)}
    files["audit"] = folder / "migrations" / "audit" / "0001_create_notes.py"
    told = '\nprint("migrated {}", flush=True)\n\ndef upgrade'

    def migrated() -> list[str]:
        done = run(folder, *command, "-s")
        assert done.returncode == 0, done.stdout
        return sorted(set(re.findall("migrated [a-z]+", done.stdout)))

    for name, file in files.items():
        file.write_text(file.read_text().replace("\ndef upgrade", told.format(name)))
    assert migrated() == ["migrated audit", "migrated primary"]
    assert migrated() == []
    with files["primary"].open("a") as file:
        file.write("# Changed.\n")
    assert migrated() == ["migrated primary"]
    kept = sorted(each.name.partition("-")[0] for each in folder.glob(".pytest_cache/d/dbkit/*"))
    assert kept == ["audit", "primary"]


def test_configured_server_is_as_it_was(lonely: Path, tmp_path: Path) -> None:
    """Byte for byte, and with the databases that it had."""
    with EmbeddedPostgres(tmp_path / "postgres", settings=TEST_SETTINGS) as server:
        for name in ("orders", "test"):
            server.create_database(name)
        urls = {name: server.url(name).set(drivername="postgresql") for name in ("orders", "test")}
        variables = {
            name: url.render_as_string(hide_password=False)
            for name, url in zip(("DATABASE_URL", "TEST_DATABASE_URL"), urls.values(), strict=True)
        }
        tools = find_binaries()
        with_url = {**variables, "AUDIT_DATABASE_URL": f"sqlite:///{tmp_path}/audit.sqlite3"}
        assert manage(lonely, "migrate", variables=with_url).returncode == 0
        insert = (
            "INSERT INTO items (name, quantity)"
            " SELECT 'item ' || i, i FROM generate_series(1, 99) i"
        )
        psql = [tools / "psql", variables["DATABASE_URL"], "-qAtc"]
        subprocess.run([*psql, insert], check=True)

        def state() -> tuple[str, str]:
            dump = [tools / "pg_dump", "--restrict-key=same", variables["DATABASE_URL"]]
            names = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"
            texts = (
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for command in (dump, [*psql, names])
            )
            return next(texts), next(texts)

        before = state()
        server.create_database("test_primary_gw7_3")  # As a killed run would leave it.
        audit = (tmp_path / "audit.sqlite3").read_bytes()

        done = pytest_in(lonely, "-n", "2", variables=with_url)

        assert done.returncode == 0, done.stdout
        assert "item 99" in before[0]
        assert state() == before
        assert (tmp_path / "audit.sqlite3").read_bytes() == audit


async def test_a_copy_that_hides_rows_is_never_clean(database_url: URL) -> None:
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in (
            "CREATE TABLE hidden (id int)",
            "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
            "GRANT ALL ON hidden TO pg_monitor",
            "SET ROLE pg_monitor",
        ):
            await connection.exec_driver_sql(statement)
        cleaner = Cleaner(connection)
        await cleaner.look()
        assert not await cleaner.clean()
    await engine.dispose()


def test_an_interrupted_run_leaves_nothing(lonely: Path) -> None:
    (lonely / "tests" / "interrupted.py").write_text(
        "import signal\n"
        "async def test_interrupted(client):\n"
        "    await client.post('/items', json={'name': 'lamp'})\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )

    done = pytest_in(lonely, "tests/interrupted.py")

    assert "KeyboardInterrupt" in done.stdout
    wait_until(lambda: left_behind() == [], "the run's folder is gone")


def test_what_a_killed_run_leaves_the_next_one_removes(lonely: Path) -> None:
    (lonely / "tests" / "killed.py").write_text(KILLED)
    assert pytest_in(lonely, "tests/killed.py").returncode == -9
    (folder,) = left_behind()
    wait_until(
        lambda: not (folder / "postgres" / "data" / "postmaster.pid").exists(),
        "the server has stopped",
    )

    done = pytest_in(lonely, "tests/test_health.py")

    assert done.returncode == 0, done.stdout
    wait_until(lambda: left_behind() == [], "the run's folder is gone")


def test_a_mariadb_of_the_run_is_shared_and_gone_after_it(
    render: Renderer, tmp_path: Path, mariadb: MariaDB
) -> None:
    databases = [{"name": "primary", "engine": "mysql"}]
    service = copy_of(render(project_name="On MariaDB", databases=databases), tmp_path)
    (service / "tests" / "killed.py").write_text(KILLED)
    stains = STAINS.read_text().replace("my_service", "on_mariadb")
    (service / "tests" / "test_stains.py").write_text(stains)
    assert pytest_in(service, "tests/killed.py").returncode == -9
    (folder,) = left_behind("on_mariadb")
    assert (folder / "mariadb" / "password").stat().st_mode & 0o077 == 0
    wait_until(
        lambda: not (folder / "mariadb" / "data" / "server.pid").exists(), "the server has stopped"
    )

    done = pytest_in(service, "-n", "2")

    assert done.returncode == 0, done.stdout
    wait_until(lambda: left_behind("on_mariadb") == [], "the run's folder is gone")

    # On another server: beside a database that need not be there, and without what was left.
    mariadb.run("CREATE DATABASE none_primary_gw7_3", "CREATE DATABASE none_primary_of_mine")
    url = mariadb.url("none").render_as_string(hide_password=False)
    done = pytest_in(service, "tests/test_health.py", variables={"TEST_DATABASE_URL": url})
    assert done.returncode == 0, done.stdout
    assert mariadb.run("SHOW DATABASES LIKE 'none%'") == (("none_primary_of_mine",),)
    mariadb.run("DROP DATABASE none_primary_of_mine")


def test_without_mariadb_says_what_to_install_or_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())

    with pytest.raises(pytest.exit.Exception) as raised:
        start_server(Database("legacy", "mysql"), tmp_path)

    assert "install MariaDB: apt install mariadb-server-core mariadb-client-core" in str(
        raised.value
    )
    assert "Or set LEGACY_TEST_DATABASE_URL to a database on a server for tests" in str(
        raised.value
    )
    assert raised.value.returncode == pytest.ExitCode.USAGE_ERROR
