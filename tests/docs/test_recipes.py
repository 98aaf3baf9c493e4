"""The recipes of docs/recipes.md, run as they are written, on each engine."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rendering import ROOT, Renderer
from running import copy_of, environment, manage, manage_in_turn, run, running, wait_until

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")

NOTEBOOK = """
import ast, asyncio, types
loop = asyncio.new_event_loop()
def cell(text):
    code = compile(text, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if (waiting := types.FunctionType(code, globals())()) is not None:
        loop.run_until_complete(waiting)
"""
LOOK = """
from sqlalchemy import text
print(await primary.reader.scalar(text("SELECT 41 + 1")))
"""


def blocks(title: str) -> list[tuple[str, str]]:
    """Read the blocks of a recipe, each with the file that it goes into."""
    _, _, text = PAGE.partition(f"\n### {title}\n")
    found = re.findall(
        r'^```\w+ title="([^"]+)"\n(.*?)^```', re.split(r"\n##", text)[0], re.MULTILINE | re.DOTALL
    )
    assert found, title
    return found


def write(folder: Path, title: str) -> None:
    """Follow a recipe in a service."""
    for name, text in blocks(title):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        before, guard, after = (file.read_text() if file.exists() else "").partition(
            "\nif __name__"
        )
        file.write_text(f"{before}\n{text}\n{guard}{after}")


OTHERS = [pytest.param(engine, marks=pytest.mark.weekly) for engine in ("mysql", "sqlite")]


@pytest.fixture(params=["postgresql", *OTHERS])
def service(render: Renderer, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Render a service on an engine."""
    databases = [{"name": "primary", "engine": request.param}]
    return copy_of(render(project_name="Orders", databases=databases), tmp_path)


def test_commands_scripts_notebooks_and_the_shell(service: Path) -> None:
    write(service, "A command of your own")
    write(service, "A script")
    first, last = (text for _, text in blocks("A notebook"))
    notebook = NOTEBOOK + "".join(
        f"cell({text!r})\n" for text in (first, LOOK, last, "print(primary)")
    )

    restocked = manage(service, "restock", "--count", "3")
    assert restocked.stdout == "primary: upgraded to 0001: create items.\n"
    elsewhere = {"PYTHONPATH": str(service / "src")}
    script = service / "scripts" / "prices.py"
    assert run(Path("/"), sys.executable, script, variables=elsewhere).stdout == "3\n"
    (service / "notebooks").mkdir()
    said = run(service / "notebooks", sys.executable, "-c", notebook, variables=elsewhere)
    assert said.stdout.startswith("42\n<Database primary (")
    assert said.stdout.endswith(", not open)>\n")


def test_authentication_and_cors(render: Renderer, tmp_path: Path) -> None:
    databases = [{"name": "primary", "engine": "sqlite"}]
    service = copy_of(render(project_name="Orders", databases=databases), tmp_path)
    write(service, "Authentication")
    write(service, "CORS")
    assert manage_in_turn(service, "migrate", "makemigrations").returncode == 0

    files = ["tests/test_users.py", "tests/test_cors.py"]
    done = run(service, sys.executable, "-m", "pytest", "-q", *files)
    assert "2 passed" in done.stdout, done.stdout


PLANTED = """

import threading

from orders.databases.primary import primary


async def test_without_a_copy(client: AsyncClient) -> None:
    await client.post("/stock/lamp")


@pytest.mark.committed
async def test_leak(client: AsyncClient) -> None:
    primary.sync.engine.connect()  # leaks
    KEPT.append(primary.sync.engine.connect())


KEPT = []


@pytest.mark.committed
async def test_after_the_leak(client: AsyncClient) -> None:
    assert (await client.get("/items")).json()["items"] == []
"""


def test_routes_that_are_def_and_their_tests(service: Path) -> None:
    (service / "src/orders/stock").mkdir()
    write(service, "A route that is def")

    test = service / "tests" / "test_stock.py"
    test.write_text(test.read_text() + PLANTED)
    failed = run(service, sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", str(test))

    assert ' test with @pytest.mark.committed("primary"), or ask for the fixture sync_' in (
        failed.stdout
    )
    assert "primary: a connection was not returned; it was taken at\n" in failed.stdout
    assert "test_stock.py:" in failed.stdout
    assert "1 failed, 4 passed, 1 error" in failed.stdout, failed.stdout


def engine_of(service: Path) -> str:
    """Name the engine of a service's first database."""
    text = (service / "src/orders/databases/primary.py").read_text()
    return re.findall(r'"(postgresql|mysql|sqlite)"', text)[0]


def count(service: Path, expression: str = "func.count()") -> str:
    """Ask for something of the items, by a script."""
    script = (
        "from orders.databases import databases; from orders.databases.primary import primary\n"
        "from orders.dbkit import opened; from orders.items.models import Item\n"
        "from sqlalchemy import func, select, text\n"
        "with opened(databases), primary.sync.session() as session:\n"
        f"    print(session.scalar(select({expression}).select_from(Item)))\n"
    )
    return run(service, sys.executable, "-c", script).stdout.split()[-1]


def test_synchronous_code_of_libraries(service: Path) -> None:
    pytest.importorskip("pandas")
    (service / "scripts").mkdir()
    titles = ("Synchronous code on an asynchronous session", "pandas", "Several processes")
    for title in (*titles, "An Alembic script of your own"):
        write(service, title)

    with running(service) as served:  # Its server is that of the scripts, too.
        said = run(service, sys.executable, "scripts/differences.py")
        assert said.stdout.splitlines()[-1] == "compared", said.stdout
        said = run(service, sys.executable, "scripts/frames.py")
        assert said.stdout.splitlines()[-1] == "3", said.stdout
        assert served.client.get("/total").json() == 3
        for method in ("spawn", "fork"):
            said = run(service, sys.executable, "scripts/crowd.py", method)
            assert said.stdout.splitlines()[-6:] == [f"{n} done" for n in range(6)], said.stdout
            items = served.client.get("/items").json()["items"]
            made = [each["id"] for each in items if each["name"].startswith("by process")]
            assert (len(items), len(made)) == (8, 6)
            for each in made:
                served.client.delete(f"/items/{each}")


LOCKS = {"mysql": "SELECT GET_LOCK('purge', 0)", "sqlite": "SELECT 1"}


def with_jobs(service: Path, context: str) -> None:
    """Have the lifespan of a service run jobs, with the lock of its engine."""
    write(service, "A periodic task in the service")
    file = service / "src/orders/jobs.py"
    lock = LOCKS.get(engine_of(service))
    if lock:
        assert f"`{lock}`" in PAGE
        file.write_text(re.sub(r'text\(".*"\)', f'text("{lock}")', file.read_text()))
    main = service / "src/orders/main.py"
    line = f"async with databases.open(), {context}():"
    assert f"`{line}`" in PAGE
    module = "jobs" if context == "jobs" else "schedule"
    text = main.read_text().replace("async with databases.open():", line)
    main.write_text(
        text.replace("from .dbkit import", f"from .{module} import {context}\nfrom .dbkit import")
    )


@pytest.mark.parametrize("context", ["jobs", "scheduled"])
def test_jobs_in_the_service(service: Path, context: str) -> None:
    if context == "scheduled":
        pytest.importorskip("apscheduler")
        if engine_of(service) != "postgresql":
            pytest.skip("the scheduler is the same on each engine")
        write(service, "APScheduler")
    with_jobs(service, context)
    if context == "jobs":
        test = service / "tests" / "test_jobs.py"
        several = engine_of(service) != "sqlite"  # There, each transaction has the file for itself.
        test.write_text(test.read_text() + (IN_TURN if several else ""))
        tested = run(service, sys.executable, "-m", "pytest", "-q", str(test))
        assert f"{1 + several} passed" in tested.stdout, tested.stdout
    insert = ADD.replace("NAME", "vase")
    assert run(service, sys.executable, "-c", insert).returncode == 0

    with running(service) as served:
        wait_until(
            lambda: served.client.get("/items").json()["items"] == [], "the job deletes the vase"
        )
        state = served.client.get("/pools/state").json()
        assert served.stop() == 0
    routes = [each["route"] for each in state["databases"]["primary"]["routes"]]
    assert "job purge" in routes
    assert "Traceback" not in served.log
    assert "destroyed" not in served.log


ADD = """
from orders.databases import databases
from orders.databases.primary import primary
from orders.dbkit import opened
from orders.items.models import Item
with opened(databases), primary.sync.session() as session:
    session.add(Item(name="NAME", quantity=0))
"""


# While another instance has the lock, a job does nothing.
IN_TURN = """

import pytest
from orders.databases.primary import primary
from orders.jobs import LOCK


@pytest.mark.committed
async def test_in_turn(client: AsyncClient, add_rows: AddRows) -> None:
    await add_rows(Item(name="vase", quantity=0))
    async with primary.session() as session:
        assert await session.scalar(LOCK)
        await purge()
        assert len((await client.get("/items")).json()["items"]) == 1
    await purge()
    assert (await client.get("/items")).json()["items"] == []
"""


def test_celery_whose_processes_are_killed(service: Path) -> None:
    """Two are killed in the middle of a transaction: each task is done in the end, and once."""
    pytest.importorskip("celery")
    write(service, "Celery")
    broker = service / "broker"
    (broker / "control").mkdir(parents=True)
    config = (
        f"app.conf.broker_transport_options = dict(data_folder_in={str(broker)!r},"
        f" data_folder_out={str(broker)!r}, control_folder={str(broker / 'control')!r},"
        " polling_interval=0.05)\napp.conf.worker_lost_wait = 0.1\n"
    )
    worker_py = service / "src/orders/worker.py"
    worker_py.write_text(worker_py.read_text() + config + DYING)
    variables = environment(BROKER_URL="filesystem://")
    command = [sys.executable, "-m", "celery", "--app", "orders.worker", "worker"]
    command += ["--concurrency", "2", "--loglevel", "warning"]
    send = (
        "from orders.worker import die, restock\n"
        "for n in range(1, 41): (restock if n % 20 else die).delay(n)"
    )
    subprocess.run([sys.executable, "-c", send], cwd=service, env=variables, check=True)

    with (service / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, cwd=service, env=variables, stdout=log, stderr=log)
        try:
            wait_until(lambda: count(service) == "40", "each task is done")
            assert len(list(service.glob("died-*"))) == 2
            if engine_of(service) == "postgresql":
                assert int(count(service, CONNECTIONS)) <= 3  # two children, and who asks
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
    if engine_of(service) == "postgresql":
        assert count(service, CONNECTIONS) == "1"


def test_procrastinate_on_the_services_own_database(service: Path) -> None:
    """A task goes with its transaction; the worker stops by SIGTERM, and leaves no connection."""
    pytest.importorskip("procrastinate")
    if engine_of(service) != "postgresql":
        pytest.skip("the queue is PostgreSQL")
    write(service, "procrastinate")
    declared = service / "src/orders/databases/primary.py"
    ignored = 'ignore_tables=["procrastinate_*"]'
    assert ignored in PAGE
    text = declared.read_text().replace("base=Base,", f"base=Base, {ignored},")
    declared.write_text(text)
    manage(service, "makemigrations", "--database", "primary", "--empty", "queue")
    migration = service / "migrations/primary/0002_queue.py"
    create = "op.execute(SchemaManager.get_schema())"
    assert create in PAGE
    text = re.sub(r"op\.execute\(.*", create, migration.read_text(), count=1)
    text = text.replace("from alembic import op", FROM_QUEUE, 1)
    migration.write_text(text)
    asked = run(service, sys.executable, "-c", ASK)
    assert asked.stdout.endswith("asked\n"), asked.stdout

    variables = environment()
    with (service / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "work"],
            cwd=service,
            env=variables,
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: count(service, "func.sum(Item.id)") == "7", "the task is done")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
    assert count(service, CONNECTIONS.replace("%.sync", "orders:%")) == "1"
    assert "procrastinate" not in manage(service, "check").stdout


FROM_QUEUE = "from alembic import op\nfrom procrastinate.schema import SchemaManager"

ASK = """
from orders.databases import databases
from orders.databases.primary import primary
from orders.dbkit import opened
from orders.tasks import ask_for_restock
with opened(databases):
    with primary.sync.session() as session:
        ask_for_restock(session, 7)
    with primary.sync.session() as session:
        ask_for_restock(session, 8)
        session.rollback()
print("asked")
"""


CONNECTIONS = (
    "text(\"(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%.sync')\")"
)

DYING = """

@app.task
def die(number: int) -> None:
    from pathlib import Path

    with job("die"), primary.sync.session() as session:
        session.add(Item(id=number, name=f"item {number}", quantity=1))
        session.flush()
        if not (mark := Path(f"died-{number}")).exists():
            mark.touch()
            os.kill(os.getpid(), 9)
"""


LIBRARIES = """

async def ask(client: AsyncClient, query: str) -> dict[str, Any]:
    answer = await client.post("/graphql", json={"query": query})
    assert answer.status_code == 200
    return answer.json()


async def test_graph(client: AsyncClient) -> None:
    assert "errors" not in await ask(client, 'mutation { addItem(name: "lamp") { id } }')
    add = 'mutation { a: addItem(name: "pen") { id } b: addItem(name: "lamp") { id } }'
    assert len((await ask(client, add))["errors"]) == 1
    items = (await ask(client, "{ a: items { name } b: items { name } }"))["data"]
    assert items["a"] == items["b"] == [{"name": "lamp"}, {"name": "pen"}]


@pytest.mark.parametrize("where", [pytest.param("", marks=pytest.mark.committed), "sandbox"])
async def test_admin(client: AsyncClient, where: str) -> None:
    form = {"name": "lamp", "quantity": "2"}
    assert (await client.post("/admin/item/create", data=form)).status_code == 302
    assert (await client.post("/admin/item/create", data=form)).status_code == 400
    assert "lamp" in (await client.get("/admin/item/list")).text
    assert len((await client.get("/items")).json()["items"]) == 1
"""


def test_libraries_that_want_an_engine_or_sessions(render: Renderer, tmp_path: Path) -> None:
    folder = copy_of(render(project_name="Orders"), tmp_path)
    write(folder, "An admin site")
    write(folder, "GraphQL")
    main = folder / "src/orders/main.py"
    added = (
        "from .admin import add_admin\nfrom .graph import router as graph_router\n"
        'add_admin(app)\napp.include_router(graph_router, prefix="/graphql")\n'
    )
    main.write_text(main.read_text() + added)
    imports = "from typing import Any\n\nimport pytest\nfrom httpx import AsyncClient\n"
    (folder / "tests/test_others.py").write_text(imports + LIBRARIES)

    done = run(folder, sys.executable, "-m", "pytest", "-q", "tests/test_others.py")
    assert done.returncode == 0, done.stdout
