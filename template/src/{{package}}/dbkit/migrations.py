"""Alembic, configured in code: one history per database, in `migrations/<name>/`."""

import asyncio
import io
import logging
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from .database import Database
from .engine import create_engine
from .mysql import LONGEST_WAIT

ENVIRONMENT = Path(__file__).with_name("alembic")
DIRECTORY = Path("migrations")  # in the project's folder
ZERO = "zero"  # Django's name for the state before the first migration
LOCK = 0x64626B6974  # "dbkit": the advisory lock that lets one process migrate at a time
LOCK_INTERVAL = 0.2
"""Seconds between two tries to get it."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a history."""

    revision: str
    message: str
    applied: bool


async def migrate(
    database: Database, target: str = "head", *, on_step: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Bring a database to `target`, forwards or backwards; return the steps taken.

    `target` is a revision or the beginning of one, `head`, `zero`, or a number of steps
    (`+1`, `-1`). Each migration is a transaction: of several, those before the one that
    fails stay, and `on_step` has been told of them. On MySQL, where each change of the schema
    commits, so does the first part of the one that fails. Raises `alembic.util.CommandError`.
    """
    steps: list[str] = []

    def stepped(step: str) -> None:
        steps.append(step)
        on_step(step)

    def run(connection: Connection) -> None:
        config = configure(database, connection=connection, on_step=stepped)
        if is_behind(ScriptDirectory.from_config(config), heads(connection), target):
            command.downgrade(config, "base" if target == ZERO else target)
        else:
            command.upgrade(config, target)

    async with connect(database, alone=True) as connection:
        await connection.run_sync(run)
    return steps


async def history(database: Database) -> list[Migration]:
    """List the migrations, oldest first, with what of them is applied."""
    async with connect(database) as connection:
        current = await connection.run_sync(heads)
    script = ScriptDirectory.from_config(configure(database))
    applied = {each.revision for each in script.iterate_revisions(current, "base")}
    return [
        Migration(each.revision, each.doc, each.revision in applied)
        for each in reversed(list(script.walk_revisions()))
    ]


async def make(database: Database, message: str, *, empty: bool = False) -> Path | None:
    """Write the migration that the models ask for, as ruff formats it where there is ruff.

    None when they ask for nothing. Raises `CommandError` when a migration is not applied yet.
    """
    (DIRECTORY / database.name).mkdir(parents=True, exist_ok=True)

    def leave_out_empty(_context: object, _revision: object, directives: list[Any]) -> None:
        if not empty and directives[0].upgrade_ops.is_empty():
            directives.clear()

    def run(connection: Connection) -> Path | None:
        config = configure(database, connection=connection)
        if not empty and set(heads(connection)) != set(
            ScriptDirectory.from_config(config).get_heads()
        ):
            raise CommandError(
                f"{database.name}: migrations are not applied;"
                f" first run `manage.py migrate --database {database.name}`"
            )
        written = command.revision(
            config,
            message,
            autogenerate=not empty,
            process_revision_directives=leave_out_empty,
        )
        scripts = written if isinstance(written, list) else [written]
        return next((Path(each.path).relative_to(Path.cwd()) for each in scripts if each), None)

    async with connect(database) as connection:
        path = await connection.run_sync(run)
    if path and find_spec("ruff"):
        for options in ("check --fix", "format"):
            ruff = [sys.executable, "-m", "ruff", *options.split(), "--quiet", str(path)]
            # What it cannot mend is for its next run to say.
            subprocess.run(ruff, check=False, capture_output=True)  # noqa: ASYNC221, S603 -- ours
    return path


async def changes(database: Database) -> list[Any]:
    """List what the models have and the database has not, as Alembic's operations."""
    found: list[Any] = []

    def keep(_context: object, _revision: object, directives: list[Any]) -> None:
        found.extend(directives[0].upgrade_ops.as_diffs())
        directives.clear()

    def run(connection: Connection) -> None:
        config = configure(database, connection=connection)
        command.revision(config, autogenerate=True, process_revision_directives=keep)

    async with connect(database) as connection:
        await connection.run_sync(run)
    return found


def sql(database: Database, target: str = "head") -> str:
    """Write the SQL of a migration without a database; `0002:0001` is a downgrade."""
    config = configure(database, output=io.StringIO())
    start, _, end = target.replace(ZERO, "base").rpartition(":")
    script = ScriptDirectory.from_config(config)
    if is_behind(script, (start,) if start else (), end) and start:
        command.downgrade(config, f"{start}:{end}", sql=True)
    else:
        command.upgrade(config, f"{start}:{end}" if start else end, sql=True)
    assert isinstance(config.output_buffer, io.StringIO)  # noqa: S101 -- given above.
    return config.output_buffer.getvalue()


@asynccontextmanager
async def connect(database: Database, *, alone: bool = False) -> AsyncGenerator[AsyncConnection]:
    """Connect as a migration needs it: without a statement timeout, and `alone` if it writes."""
    settings = database.read_settings().model_copy(
        update={"statement_timeout": 0, "idle_in_transaction_timeout": 0}
    )
    engine = create_engine(database.name, database.env_prefix, settings, pooled=False)
    if database.dialect == "sqlite":
        # A migration rebuilds tables; with foreign keys on, dropping the old one deletes
        # the rows that refer to it.
        @event.listens_for(engine.sync_engine, "connect")
        def foreign_keys_off(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA foreign_keys = OFF")
            cursor.close()

    if database.dialect == "mysql":
        logging.getLogger("asyncmy").addFilter(is_news)
    async with engine.connect() as connection:
        if alone and database.dialect == "postgresql":
            # Of several that migrate at once, one does and the others wait, however long. In a
            # transaction apart: behind a pooler, a lock lasts no longer than that.
            async with engine.connect() as apart:
                while not await apart.scalar(select(func.pg_try_advisory_xact_lock(LOCK))):
                    await apart.rollback()
                    await asyncio.sleep(LOCK_INTERVAL)
                # Ends the SELECT, for whose snapshot CREATE INDEX CONCURRENTLY would wait.
                await apart.execute(text("SET LOCAL lock_timeout = 0"))
                yield connection
            return
        if alone and database.dialect == "mysql":
            # The server's locks have one space of names for all its databases.
            await connection.execute(text(f"SELECT GET_LOCK(MD5(DATABASE()), {LONGEST_WAIT})"))
            await connection.commit()
        yield connection


def is_news(record: logging.LogRecord) -> bool:
    """Leave out that MariaDB ignores the name of a primary key: our convention gives each one."""
    return not re.fullmatch(r"Name '.*' ignored for PRIMARY key\.?", record.getMessage())


def configure(
    database: Database,
    *,
    connection: Connection | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    output: io.StringIO | None = None,
) -> Config:
    """Configure Alembic for one database, with what `alembic/env.py` needs."""
    folder = DIRECTORY / database.name
    # To Alembic that is an empty history: a container without its migrations would be up to date.
    if database.base and database.base.metadata.tables and not folder.is_dir():
        raise CommandError(
            f"{database.name}: no folder {folder};"
            f" run `manage.py makemigrations --database {database.name} MESSAGE`"
        )
    config = Config(cmd_opts=Namespace(quiet=True))  # The commands say what was done.
    config.output_buffer = output or config.output_buffer
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(folder))
    config.set_main_option("file_template", "%%(year)d%%(month).2d%%(day).2d_%%(rev)s_%%(slug)s")
    config.attributes.update(database=database, connection=connection, on_step=on_step)
    with warnings.catch_warnings(action="ignore"):  # The error says the same.
        try:
            ScriptDirectory.from_config(config).get_heads()
        except KeyError as error:
            raise CommandError(
                f"{database.name}: a migration in {folder} follows {error}, which is not there"
            ) from None
    return config


def heads(connection: Connection) -> tuple[str, ...]:
    """Return the revisions that a database is at."""
    with connection.begin():  # Ended here: Alembic commits no transaction that it finds begun.
        return MigrationContext.configure(connection).get_current_heads()


def is_behind(script: ScriptDirectory, current: tuple[str, ...], target: str) -> bool:
    """Whether `target` lies before `current`, so that going there is a downgrade."""
    if not target:
        raise CommandError("no revision to go to; name one, or head, zero, +1 or -1")
    if target in {ZERO, "base"} or target.startswith("-"):
        return True
    if target in {"head", "heads"} or target.startswith("+"):
        return False
    wanted = script.get_revision(target)
    behind = {each.revision for each in script.iterate_revisions(current, "base")}
    return wanted.revision in behind - set(current)
