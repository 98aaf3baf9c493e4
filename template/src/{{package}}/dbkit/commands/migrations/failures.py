"""Why a migration failed: which one, where in its file, at which statement, and what to do."""

import re
import textwrap
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy.exc import StatementError

from ...database.database import Database
from ...engines.failures import driver_error, failure_of
from ...engines.sqlstates import sqlstate
from ...errors import DatabaseError

DIRECTORY = Path("migrations")  # in the project's folder

SHOWN = 600
"""Characters of a statement that are shown."""

ADVICE = {
    "22P02": "rows hold a value that the new type does not have: change them first",
    "23502": "rows that are there have no value: give the column a server_default; or add it"
    " nullable, fill it, and set nullable=False in the next migration",
    "23503": "rows refer to what is not there, or to what goes: mend or delete them first",
    "23505": "rows have the same value: make them differ first",
    "23514": "rows break the new constraint: mend them first",
    "2BP01": "something else needs it, e.g. a view: drop that first, and make it again after",
    "3F000": "no schema of the search_path is there: create it first",
    "42501": "the role may not do that: GRANT it, or migrate as the one that owns the tables",
    "42703": "the column is not there, or was renamed: name it as it is before this migration",
    "42704": "it is not there: name it as it is before this migration",
    "42P01": "the table is not there: name it as it is before this migration",
    "42P07": "it is there already: was it made by hand? `migrate --fake` notes a migration as"
    " applied, and runs nothing",
    "42710": "it is there already: was it made by hand? `migrate --fake` notes a migration as"
    " applied, and runs nothing",
    "55P03": "another transaction has the table: run `migrate` again; or give it longer, by"
    " {prefix}LOCK_TIMEOUT",
    "55P04": "a new label of an enum is used in the migration that adds it: use it in the next one",
    "58P01": "the server does not have the extension: install it there",
    "0A000": "the server cannot do that; where a view, a policy or a generated column uses a"
    " column, drop that first, and make it again after",
}

KEY = (
    "a foreign key holds the type of its columns: drop it first (op.drop_constraint), give both"
    " sides the same type, and make it again after (op.create_foreign_key)"
)
ADVICE_OF_MYSQL: dict[object, str] = dict.fromkeys((1005, 1832, 1833, 3780), KEY)
"""By the server's number, for what has no SQLSTATE of its own."""

NO_EXTENSION = re.compile(r'extension "(.+)" is not available')

WHOLE = "Nothing of it stays: mend the file, and run `manage.py migrate` again."
HALF_WAY = """MySQL and MariaDB cannot roll a change of the schema back: what the migration did \
before stays.
  1. See what that is: `manage.py dbshell`, SHOW CREATE TABLE.
  2. Undo it by hand, and run `manage.py migrate` again once the migration is right."""


class MigrationFailed(CommandError):
    """A migration that failed; its cause is the error."""


@contextmanager
def explained(database: Database) -> Generator[None]:
    """Turn an error of the server, or one from a migration's file, into `MigrationFailed`."""
    try:
        yield
    except (DatabaseError, CommandError):
        raise
    except Exception as error:
        place = place_in(DIRECTORY / database.name, error)
        if place or isinstance(error, StatementError):
            raise MigrationFailed(explain(database, error, *place or ("", ""))) from error
        raise


def place_in(folder: Path, error: Exception) -> tuple[str, str] | None:
    """Return the line in a file of `folder` at which an error was raised, and the function."""
    here = folder.resolve()
    if isinstance(error, SyntaxError) and Path(error.filename or "").resolve().parent == here:
        return f"{folder / Path(error.filename or '').name}:{error.lineno}", ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path.resolve().parent == here:
            return f"{folder / path.name}:{line}", frame.f_code.co_name
    return None


def explain(database: Database, error: Exception, line: str, function: str) -> str:
    """Say what failed where, and what to do."""
    is_server = isinstance(error, StatementError)
    # Without values, which are people's data.
    reason = failure_of(error).reason if is_server else f"{type(error).__name__}: {error}"
    what = "the way back of a migration" if function == "downgrade" else "a migration"
    failed = f"{what} failed at {line}" if line else "it cannot be migrated"
    text = [f"{database.name}: {failed}", f"  {reason}".partition("\n")[0]]
    statement = getattr(error, "statement", None) or ""
    if statement.strip():
        text.append(textwrap.indent(textwrap.shorten(statement, SHOWN), "  "))
    if found := NO_EXTENSION.search(reason):
        text.append(textwrap.indent(explain_extension(found[1], database.env_prefix), "  "))
    elif advice := ADVICE.get(sqlstate(error) or "") or ADVICE_OF_MYSQL.get(number_of(error)):
        text.append(f"  {advice.format(prefix=database.env_prefix)}")
    if function in {"upgrade", "downgrade"}:
        text.append(f"  {HALF_WAY if database.dialect == 'mysql' else WHOLE}")
    return "\n".join(text)


def number_of(error: Exception) -> object:
    """Return the number that a server of MySQL gave an error."""
    return next(iter(driver_error(error).args), None)


def explain_extension(name: str, prefix: str) -> str:
    """Say what to do about an extension that a PostgreSQL does not have."""
    test = prefix.removesuffix("DATABASE_") + "TEST_DATABASE_URL"
    return (
        f"the server does not have the extension {name}. The PostgreSQL of development and"
        " tests has none of contrib's:\n"
        "  1. install one that has them (Debian: apt install postgresql), and set"
        " EMBEDDED_POSTGRES_BIN to its programs, as /usr/lib/postgresql/17/bin;\n"
        f"  2. or set {prefix}URL, and {test} for the tests, to a server that has it."
    )
