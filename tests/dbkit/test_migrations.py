"""Migrations: one history per database, forwards and backwards, on real databases."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from conftest import KIT
from dbkit import NAMING_CONVENTION, Database
from dbkit.commands import migrations
from dbkit.settings.urls import Dialect
from sqlalchemy import ForeignKey, MetaData, String, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

both = pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])


def declare(dialect: Dialect, name: str = "orders", **columns: Any) -> Database:
    """Declare a database with one table, `parents`, and one that refers to it."""

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=NAMING_CONVENTION)

    class Parent(Base):
        __tablename__ = "parents"

        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):  # pyright: ignore[reportUnusedClass] -- its table is in the metadata
        __tablename__ = "children"

        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id", ondelete="CASCADE"))

    for column, type_ in columns.items():
        setattr(Parent, column, mapped_column(type_))
    return Database(name, dialect, base=Base)


@pytest.fixture
def database(
    dialect: Dialect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Database:
    """Declare an empty database, in a folder without migrations."""
    monkeypatch.chdir(tmp_path)
    if dialect == "postgresql":
        url = request.getfixturevalue("database_url").render_as_string(hide_password=False)
    else:
        url = f"sqlite:///{tmp_path / 'orders.sqlite3'}"
    monkeypatch.setenv("ORDERS_DATABASE_URL", url)
    return declare(dialect)


def write(
    revision: str, upgrade: str, downgrade: str = "pass", *, after: str | None = None
) -> None:
    """Write a migration by hand."""
    folder = Path("migrations/orders")
    folder.mkdir(parents=True, exist_ok=True)
    indented = {
        name: "\n    ".join(body.splitlines())
        for name, body in {"upgrade": upgrade, "downgrade": downgrade}.items()
    }
    (folder / f"{revision}.py").write_text(
        f'''"""step {revision}."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {after!r}
branch_labels = None
depends_on = None


def upgrade():
    {indented["upgrade"]}


def downgrade():
    {indented["downgrade"]}
'''
    )


def move(revision: str, to: str) -> None:
    """Have a history begin with another revision."""
    Path(f"migrations/orders/{revision}.py").unlink()
    write(to, "pass")


def write_three() -> None:
    """Write a history: each migration makes a table of its name."""
    for number, after in ((1, None), (2, "0001"), (3, "0002")):
        revision = f"000{number}"
        write(
            revision,
            f'op.create_table("t{revision}", sa.Column("id", sa.Integer, primary_key=True))',
            f'op.drop_table("t{revision}")',
            after=after,
        )


async def tables(database: Database) -> set[str]:
    async with database.open(), database.engine.connect() as connection:
        return set(await connection.run_sync(lambda each: inspect(each).get_table_names()))


async def run(database: Database, work: Callable[[AsyncConnection], Any]) -> Any:
    async with database.open(), database.engine.begin() as connection:
        return await work(connection)


@both
async def test_forwards_and_backwards(database: Database) -> None:
    write_three()

    assert await migrations.migrate(database, "+1") == ["upgraded to 0001: step 0001."]
    assert await migrations.migrate(database) == [
        "upgraded to 0002: step 0002.",
        "upgraded to 0003: step 0003.",
    ]
    assert await migrations.migrate(database) == []
    assert await migrations.migrate(database, "-1") == ["downgraded from 0003: step 0003."]
    assert await migrations.migrate(database, "0001") == ["downgraded from 0002: step 0002."]
    assert await migrations.migrate(database, "0003") == [
        "upgraded to 0002: step 0002.",
        "upgraded to 0003: step 0003.",
    ]
    assert "t0003" in await tables(database)
    assert len(await migrations.migrate(database, "zero")) == 3
    assert await tables(database) == {"alembic_version"}
    assert await migrations.migrate(database, "zero") == []


@both
async def test_the_beginning_of_a_revision_is_enough(database: Database) -> None:
    write("abc123", "pass")
    write("def456", "pass", after="abc123")

    assert len(await migrations.migrate(database, "def")) == 2
    assert await migrations.migrate(database, "abc") == ["downgraded from def456: step def456."]
    assert await migrations.migrate(database, "abc") == []


@both
async def test_history_says_what_is_applied(database: Database) -> None:
    write_three()
    await migrations.migrate(database, "0002")

    history = await migrations.history(database)

    assert [(each.revision, each.message, each.applied) for each in history] == [
        ("0001", "step 0001.", True),
        ("0002", "step 0002.", True),
        ("0003", "step 0003.", False),
    ]


@both
@pytest.mark.parametrize("target", ["nope", "+4", "-1", "0001+9", "", "head-1", "0003:0001", "+x"])
async def test_a_target_that_is_none_is_an_error_to_read(database: Database, target: str) -> None:
    write_three()

    with pytest.raises(CommandError) as caught:
        await migrations.migrate(database, target)

    assert str(caught.value)
    assert "t0001" not in await tables(database)


@both
async def test_tables_that_are_there_are_noted_as_made(database: Database) -> None:
    write_three()
    await run(database, lambda each: each.execute(text("CREATE TABLE t0001 (id INTEGER)")))

    assert await migrations.fake(database, "0001") == (
        "noted as 0001, and nothing was run; it was zero"
    )

    assert await tables(database) == {"t0001", "alembic_version"}
    assert await migrations.migrate(database, "+1") == ["upgraded to 0002: step 0002."]
    assert await migrations.fake(database) == "noted as 0003, and nothing was run; it was 0002"
    assert await migrations.fake(database, "zero") == (
        "noted as zero, and nothing was run; it was 0003"
    )
    assert await tables(database) == {"t0001", "t0002", "alembic_version"}
    assert [each.applied for each in await migrations.history(database)] == [False] * 3


@both
async def test_what_another_history_noted_is_forgotten(database: Database) -> None:
    write("old", "pass")
    await migrations.migrate(database)
    move("old", "new")

    assert await migrations.fake(database) == "noted as new, and nothing was run; it was old"
    assert await migrations.migrate(database) == []


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("target", ["nope", "+1", "-1", "", "head-1", "0003:0001"])
async def test_only_a_revision_that_there_is_can_be_noted(database: Database, target: str) -> None:
    write_three()

    with pytest.raises(CommandError) as caught:
        await migrations.fake(database, target)

    assert str(caught.value) == (
        f"orders: no revision {target!r}; those that there are:"
        " `manage.py showmigrations --database orders`"
    )
    assert await tables(database) == set()


@both
async def test_two_heads_are_an_error_to_read(database: Database) -> None:
    write("0001", "pass")
    write("0002a", "pass", after="0001")
    write("0002b", "pass", after="0001")

    for work in (migrations.migrate, migrations.history, partial(migrations.make, message="next")):
        with pytest.raises(CommandError) as caught:
            await work(database)
        assert str(caught.value) == (
            "orders: migrations/orders has several heads, as after a merge of two branches:"
            " 0002a, 0002b\n"
            "  run `manage.py makemigrations --database orders --merge`: it writes a migration that"
            " follows both, whichever of them a database has"
        )


@both
async def test_a_missing_folder_is_an_error_and_not_an_empty_history(database: Database) -> None:
    for work in (migrations.migrate, migrations.history, migrations.compare):
        with pytest.raises(CommandError) as caught:
            await work(database)
        assert str(caught.value) == (
            "orders: no folder migrations/orders; run `manage.py makemigrations --database orders`"
        )
    with pytest.raises(CommandError, match="no folder migrations/orders"):
        migrations.sql(database)


@both
async def test_a_migration_whose_predecessor_is_gone_is_an_error_to_read(
    database: Database,
) -> None:
    write_three()
    Path("migrations/orders/0002.py").unlink()  # noqa: ASYNC240

    with pytest.raises(CommandError) as caught:
        await migrations.history(database)

    assert str(caught.value) == (
        "orders: a migration in migrations/orders follows '0002', which is not there"
    )


@both
async def test_a_revision_of_the_database_that_has_no_file_is_an_error(database: Database) -> None:
    write_three()
    await migrations.migrate(database)
    Path("migrations/orders/0003.py").unlink()  # noqa: ASYNC240

    for work in (migrations.migrate, migrations.history, partial(migrations.make, message="next")):
        with pytest.raises(
            CommandError, match="orders: it is at 0003, which migrations/orders has"
        ):
            await work(database)


@both
async def test_offline_sql_goes_both_ways(database: Database) -> None:
    write_three()

    up, down = migrations.sql(database), migrations.sql(database, "0003:0001")

    assert [name for name in ("t0001", "t0002", "t0003") if f"CREATE TABLE {name}" in up] == [
        "t0001",
        "t0002",
        "t0003",
    ]
    assert "DROP TABLE t0003" in down
    assert "DROP TABLE t0002" in down
    assert "t0001" not in down
    assert "CREATE" not in down
    part = migrations.sql(database, "0001:0002")
    assert "CREATE TABLE t0002" in part
    assert "t0003" not in part
    assert "DROP TABLE t0001" in migrations.sql(database, "0001:zero")


@both
async def test_offline_sql_is_what_a_shell_runs(database: Database, dialect: Dialect) -> None:
    write_three()
    script = migrations.sql(database)

    async def execute(connection: AsyncConnection) -> None:
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        if dialect == "postgresql":
            await driver.execute(script)
        else:
            await connection.rollback()
            await driver.executescript(script)

    async with database.open(), database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await execute(connection)

    assert await migrations.migrate(database) == []


@both
async def test_a_migration_is_written_only_when_something_changed(
    database: Database, dialect: Dialect
) -> None:
    first = await migrations.make(database, "create tables")
    assert first is not None
    await migrations.migrate(database)

    assert await migrations.make(database, "nothing") is None
    assert (await migrations.compare(database)).changes == []

    changed = declare(dialect, note=String(20))
    assert (await migrations.compare(changed)).changes != []
    second = await migrations.make(changed, "add note")
    assert second is not None
    await migrations.migrate(changed)
    assert (await migrations.compare(changed)).changes == []
    assert {each.name for each in Path("migrations/orders").glob("*.py")} == {  # noqa: ASYNC240
        first.name,
        second.name,
    }


@both
async def test_what_is_written_passes_ruff(database: Database) -> None:
    path = await migrations.make(database, 'say "hello" \\ to %(things)s')
    empty = await migrations.make(database, "by hand", empty=True)
    assert path is not None
    assert empty is not None

    settings = KIT.parents[1] / "ruff.toml"
    for check in (["check", "--ignore", "INP001"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--config", settings, path, empty]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@both
async def test_autogenerate_needs_the_migrations_that_are_pending(database: Database) -> None:
    write_three()

    with pytest.raises(CommandError) as caught:
        await migrations.make(database, "too early")

    assert str(caught.value) == (
        "orders: migrations are not applied; first run `manage.py migrate --database orders`"
    )


@both
async def test_down_and_up_again_of_what_was_written(database: Database, dialect: Dialect) -> None:
    await migrations.make(database, "create tables")
    await migrations.migrate(database)
    changed = declare(dialect, note=String(20))
    await migrations.make(changed, "add note")

    await migrations.migrate(changed)
    await migrations.migrate(changed, "zero")
    await migrations.migrate(changed)

    assert (await migrations.compare(changed)).changes == []


@both
async def test_a_rebuilt_table_keeps_the_rows_that_refer_to_it(
    database: Database, dialect: Dialect
) -> None:
    await migrations.make(database, "create tables")
    await migrations.migrate(database)
    changed = declare(dialect, note=String(20))

    async def insert(connection: AsyncConnection) -> None:
        await connection.execute(text("INSERT INTO parents VALUES (1)"))
        await connection.execute(text("INSERT INTO children VALUES (1, 1)"))

    await run(database, insert)
    head = (await migrations.history(database))[-1].revision
    write(
        "rebuild",
        'with op.batch_alter_table("parents", recreate="auto") as batch:\n'
        '    batch.add_column(sa.Column("note", sa.String(20)))\n'
        '    batch.create_check_constraint("short", "length(note) < 9")',
        after=head,
    )
    await migrations.migrate(changed)

    count = await run(changed, lambda each: each.scalar(text("SELECT count(*) FROM children")))
    assert count == 1


@both
async def test_a_migration_that_fails_leaves_the_earlier_ones(database: Database) -> None:
    write_three()
    write(
        "0003",
        'op.create_table("half", sa.Column("id", sa.Integer, primary_key=True))\n'
        'op.execute("SELEKT 1")',
        after="0002",
    )

    steps: list[str] = []
    with pytest.raises(migrations.MigrationFailed):
        await migrations.migrate(database, on_step=steps.append)

    assert steps == ["upgraded to 0001: step 0001.", "upgraded to 0002: step 0002."]
    assert await tables(database) == {"alembic_version", "t0001", "t0002"}
    assert [each.applied for each in await migrations.history(database)] == [True, True, False]
    # Repaired, it goes on from there.
    write_three()
    assert await migrations.migrate(database) == ["upgraded to 0003: step 0003."]


MIGRATOR = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from dbkit import Database
from dbkit.commands import migrations
from sqlalchemy.orm import DeclarativeBase
class Base(DeclarativeBase): pass
database = Database("orders", sys.argv[2], base=Base)
sys.stdin.readline()
print(asyncio.run(migrations.migrate(database)))
"""


@both
async def test_of_two_that_migrate_at_once_one_waits(database: Database, dialect: Dialect) -> None:
    write_three()
    command = [sys.executable, "-c", MIGRATOR, str(KIT), dialect]
    started = [
        await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]

    outputs = await asyncio.gather(*(each.communicate(b"\n") for each in started))

    assert [each.returncode for each in started] == [0, 0], outputs
    assert sorted(out.decode().count("upgraded") for out, _ in outputs) == [0, 3]
    assert {"t0001", "t0002", "t0003"} <= await tables(database)


postgresql = pytest.mark.parametrize("dialect", ["postgresql"])


@postgresql
async def test_an_index_can_be_built_without_a_lock(database: Database) -> None:
    write_three()
    write(
        "0004",
        "with op.get_context().autocommit_block():\n"
        '    op.create_index("late", "t0001", ["id"], postgresql_concurrently=True)',
        after="0003",
    )
    write("0005", 'op.execute("SELECT 1")', after="0004")

    assert len(await migrations.migrate(database)) == 5
    assert await migrations.migrate(database) == []


@postgresql
async def test_a_migration_may_take_longer_than_a_statement_of_the_service(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DATABASE_STATEMENT_TIMEOUT", "0.001")
    monkeypatch.setenv("ORDERS_DATABASE_LOCK_TIMEOUT", "3")
    write("0001", 'op.execute("SELECT pg_sleep(0.1)")')

    assert len(await migrations.migrate(database)) == 1
    async with migrations.connect(database) as connection:
        timeouts = {
            name: await connection.scalar(text(f"SHOW {name}"))
            for name in ("statement_timeout", "lock_timeout")
        }
    assert timeouts == {"statement_timeout": "0", "lock_timeout": "3s"}


@postgresql
async def test_a_migrator_waits_however_long_and_a_reader_does_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DATABASE_LOCK_TIMEOUT", "0.01")
    write_three()
    tries = text(
        "SELECT pid, query_start FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND query ILIKE 'rollback%'"
    )
    seen: dict[int, set[Any]] = defaultdict(set)
    async with migrations.connect(database, alone=True) as other, asyncio.timeout(30):
        await other.execution_options(isolation_level="AUTOCOMMIT")
        migrator = asyncio.create_task(migrations.migrate(database))
        while not any(len(starts) > 2 for starts in seen.values()):
            await asyncio.sleep(0.01)
            for process, started in await other.execute(tries):
                seen[process].add(started)
        assert not any(each.applied for each in await migrations.history(database))

    assert len(await migrator) == 3


@postgresql
async def test_a_migrator_leaves_no_connection(database: Database) -> None:
    write_three()
    write("0004", 'op.execute("SELEKT 1")', after="0003")
    await migrations.migrate(database, "0003")
    await migrations.history(database)
    with pytest.raises(migrations.MigrationFailed):
        await migrations.migrate(database)

    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    async with asyncio.timeout(30), migrations.connect(database) as connection:
        # The last one to leave may still be saying goodbye.
        while await connection.scalar(text(query)):
            await connection.rollback()
            await asyncio.sleep(0.01)
