"""The history of a database: its files in `migrations/<name>/`, and where the database is in it."""

import io
import re
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from ...database.database import Database
from .comparing import Comparison
from .connecting import connect
from .failures import DIRECTORY, explained

ENVIRONMENT = Path(__file__).parent / "alembic"
ZERO = "zero"  # Django's name for the state before the first migration
LONGEST_REVISION = 32
"""Characters that fit in the column of Alembic's table."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a history."""

    revision: str
    message: str
    applied: bool


async def history(database: Database) -> list[Migration]:
    """List the migrations, oldest first, with what of them is applied."""
    script = read_scripts(database, configure(database))
    async with connect(database) as connection:
        current = await connection.run_sync(lambda sync: known_heads(database, script, sync))
    applied = {each.revision for each in script.iterate_revisions(current, "base")}
    return [
        Migration(each.revision, each.doc, each.revision in applied)
        for each in reversed(list(script.walk_revisions()))
    ]


def configure(
    database: Database,
    *,
    connection: Connection | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    output: io.StringIO | None = None,
    several_heads: bool = False,
) -> Config:
    """Configure Alembic for one database, with what `alembic/env.py` needs."""
    folder = DIRECTORY / database.name
    # To Alembic that is an empty history: a container without its migrations would be up to date.
    if database.base and database.base.metadata.tables and not folder.is_dir():
        raise CommandError(
            f"{database.name}: no folder {folder};"
            f" run `manage.py makemigrations --database {database.name}`"
        )
    config = Config(cmd_opts=Namespace(quiet=True))  # The commands say what was done.
    config.output_buffer = output or config.output_buffer
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(folder))
    config.set_main_option("file_template", "%%(rev)s")
    comparison = Comparison(database, folder, connection)
    config.attributes.update(
        database=database, connection=connection, on_step=on_step, comparison=comparison
    )
    last = sorted(read_scripts(database, config).get_heads())
    if len(last) > 1 and not several_heads:
        raise CommandError(
            f"{database.name}: {folder} has several heads, as after a merge of two branches:"
            f" {', '.join(last)}\n"
            f"  run `manage.py makemigrations --database {database.name} --merge`: it writes a"
            " migration that follows both, whichever of them a database has"
        )
    return config


def read_scripts(database: Database, config: Config) -> ScriptDirectory:
    """Read the files of a history; `CommandError` if they are none."""
    folder = DIRECTORY / database.name
    script = ScriptDirectory.from_config(config)
    with warnings.catch_warnings(record=True, action="always") as said, explained(database):
        try:
            script.get_heads()
        except KeyError as error:
            raise CommandError(
                f"{database.name}: a migration in {folder} follows {error}, which is not there"
            ) from None
    for each in said:
        if twice := re.match(r"Revision (\S+) is present more than once", str(each.message)):
            raise CommandError(
                f"{database.name}: two migrations in {folder} have the revision {twice[1]}, as"
                " after a merge of two branches:\n"
                "  1. give the newer one another `revision`, and the older one's as its"
                " `down_revision`\n"
                "  2. a database that has the newer one is then told so:"
                f" `manage.py migrate --database {database.name} --fake --to REVISION`"
            )
    return script


def next_number(script: ScriptDirectory) -> int:
    """Return the number of the next migration: 2 after 0001; others count as well."""
    numbers: dict[str, int] = {}
    for each in reversed(list(script.walk_revisions())):
        down = each.down_revision or ()
        follows = (down,) if isinstance(down, str) else down
        before = max((numbers[last] for last in follows), default=0)
        own = re.match(r"(\d{4})(?:_|$)", each.revision)
        numbers[each.revision] = max(before + 1, int(own[1]) if own else 0)
    return max(numbers.values(), default=0) + 1


def next_revision(script: ScriptDirectory, message: str) -> str:
    """Return the revision of the next migration, and so the name of its file: `0002_add_price`."""
    revision = f"{next_number(script):04}"
    for word in re.findall(r"\w+", message.lower()):
        if len(revision) + len(word) >= LONGEST_REVISION:
            break
        revision += f"_{word}"
    return revision


def heads(connection: Connection) -> tuple[str, ...]:
    """Return the revisions that a database is at."""
    with connection.begin():  # Ended here: Alembic commits no transaction that it finds begun.
        return MigrationContext.configure(connection).get_current_heads()


def known_heads(
    database: Database, script: ScriptDirectory, connection: Connection
) -> tuple[str, ...]:
    """Return the revisions that a database is at; `CommandError` if one of them has no file."""
    found = heads(connection)
    if unknown := set(found) - {each.revision for each in script.walk_revisions()}:
        raise CommandError(
            f"{database.name}: it is at {', '.join(unknown)}, which {DIRECTORY / database.name} has"
            " not:\n"
            "  1. bring the file back, from another branch or a newer version of the service\n"
            "  2. or say where the database is:"
            f" `manage.py migrate --database {database.name} --fake --to REVISION`\n"
            "  3. or, in development, begin anew: delete .postgres/, .mariadb/ or the SQLite file."
        )
    return found


def find(database: Database, script: ScriptDirectory, target: str) -> str | None:
    """Return the one revision that `target` names; None for `zero`."""
    if target == ZERO:
        return None
    if target == "head":
        return script.get_current_head()
    revisions = [each.revision for each in reversed(list(script.walk_revisions()))]
    found = {target} & {*revisions} or {each for each in revisions if each.startswith(target)}
    if target and len(found) > 1:
        raise CommandError(
            f"{database.name}: {target!r} is the beginning of {', '.join(sorted(found))}"
        )
    if not target or not found:
        raise CommandError(
            f"{database.name}: no revision {target!r}; those that there are:"
            f" `manage.py showmigrations --database {database.name}`"
        )
    return found.pop()


def is_behind(
    database: Database, script: ScriptDirectory, current: tuple[str, ...], target: str
) -> bool:
    """Whether `target` lies before `current`, so that going there is a downgrade."""
    if not target:
        raise CommandError("no revision to go to; name one, or head, zero, +1 or -1")
    if target in {ZERO, "base"} or target.startswith("-"):
        return True
    if target in {"head", "heads"} or target.startswith("+"):
        return False
    wanted = find(database, script, target)
    behind = {each.revision for each in script.iterate_revisions(current, "base")}
    return wanted in behind - set(current)
