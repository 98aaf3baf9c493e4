"""Migrations are run: forwards, backwards, as SQL, or only noted."""

import io
from collections.abc import Callable

from alembic import command
from sqlalchemy import Connection

from ...database.database import Database
from .connecting import connect
from .failures import explained
from .history import ZERO, configure, find, heads, is_behind, known_heads, read_scripts


async def migrate(
    database: Database, target: str = "head", *, on_step: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Bring a database to `target`, forwards or backwards; return the steps taken.

    `target` is a revision or the beginning of one, `head`, `zero`, or a number of steps
    (`+1`, `-1`). Each migration is a transaction: of several, those before the one that
    fails stay, and `on_step` has been told of them. On MySQL, where each change of the schema
    commits, so does the first part of the one that fails. Raises `CommandError`, which is
    `MigrationFailed` where a migration did.
    """
    steps: list[str] = []

    def stepped(step: str) -> None:
        steps.append(step)
        on_step(step)

    def run(connection: Connection) -> None:
        config = configure(database, connection=connection, on_step=stepped)
        script = read_scripts(database, config)
        with explained(database):
            if is_behind(database, script, known_heads(database, script, connection), target):
                command.downgrade(config, "base" if target == ZERO else target)
            else:
                command.upgrade(config, target)

    async with connect(database, alone=True, on_schema=on_step) as connection:
        await connection.run_sync(run)
    return steps


async def fake(database: Database, target: str = "head") -> str:
    """Note that a database is at `target`, and run nothing; return what was noted.

    `target` is a revision or the beginning of one, `head` or `zero`. Whatever the database was said
    to be at before is forgotten, also revisions of another history. Raises `CommandError`.
    """

    def run(connection: Connection) -> str:
        config = configure(database, connection=connection)
        script = read_scripts(database, config)
        revision = find(database, script, target)
        before = ", ".join(heads(connection)) or ZERO
        command.stamp(config, revision or "base", purge=True)
        return f"noted as {revision or ZERO}, and nothing was run; it was {before}"

    async with connect(database, alone=True) as connection:
        return await connection.run_sync(run)


def sql(database: Database, target: str = "head") -> str:
    """Write the SQL of a migration without a database; `0002:0001` is a downgrade."""
    config = configure(database, output=io.StringIO())
    start, _, end = target.replace(ZERO, "base").rpartition(":")
    script = read_scripts(database, config)
    with explained(database):
        if is_behind(database, script, (start,) if start else (), end) and start:
            command.downgrade(config, f"{start}:{end}", sql=True)
        else:
            command.upgrade(config, f"{start}:{end}" if start else end, sql=True)
    assert isinstance(config.output_buffer, io.StringIO)  # noqa: S101 -- given above.
    return config.output_buffer.getvalue()
