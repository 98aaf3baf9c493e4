"""What a driver's error says, without the values in it, and whether a client can be the cause.

Values are people's data. They are in PostgreSQL's DETAIL, in what MariaDB and MySQL say of a
duplicate ("Duplicate entry 'x' for key"), and in what asyncpg says of an argument.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Enum, MetaData
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import EmulatedDBAPIException, StatementError

from .metadata import NoTimeZone
from .sqlstates import sqlstate

DIVISION_BY_ZERO, NOT_NULL = "22012", "23502"
HIDDEN = "…"

# Greedily: a value may have quotes in it. PostgreSQL quotes as its `lc_messages` has it.
QUOTED = re.compile(r"[\"'»«„“”].*[\"'»«„“”]", re.DOTALL)
VALUE = re.compile(r"(entry|value:?) (?:'.*'(?= for (?:key|column) )|'.*'(?=$| at row))", re.DOTALL)
NAMES_ONLY = {
    *(1044, 1045, 1048, 1049, 1054, 1072, 1091, 1136, 1146, 1205, 1213, 1216, 1217, 1264, 1265),
    *(1305, 1317, 1364, 1406, 1451, 1452, 1698, 1969, 3024, 3819, 4025),
    # Of changes of a schema.
    *(1005, 1050, 1060, 1061, 1067, 1068, 1075, 1118, 1138, 1170, 1553, 1826, 1828, 1829, 1832),
    *(1833, 1901, 3780),
}
"""Errors of MariaDB and MySQL that quote nothing but names."""
ARGUMENT = re.compile(r"invalid input for query argument \$(\d+)")
MYSQL_CONSTRAINT = re.compile(r"for key '([^']*)'|CONSTRAINT [`']([^`']*)|constraint '([^']*)'")
MYSQL_TABLE = re.compile(
    r"fails \(`[^`]*`\.`([^`]*)`|for `[^`]*`\.`([^`]*)`|Table '[^'.]*\.([^']*)'"
)
MYSQL_COLUMN = re.compile(r"(?:[Cc]olumn|Field) '([^']*)'|for column `[^`]*`\.`[^`]*`\.`([^`]*)`")
UNDEFINED = {"42P01", "42703", "42704", "42S02", "42S22"}
"""SQLSTATEs of a table, a column or a type that is not there; SQLite has none for these."""
NO_SUCH = re.compile("^no such (table|column)|^table .* has no column named")
PROSE = {
    *("relation", "column", "table", "type", "does", "not", "exist", "of", "no", "such", "has"),
    *("named", "in", "t", "doesn", "Table", "Unknown"),
}
"""Words in the messages that are not names."""
NAMES_TYPES = (TypeError, AttributeError, OverflowError, NoTimeZone)
"""Exceptions of Python and ours whose messages name types, and no values."""
SQLITE_FAILED = re.compile(r"([A-Z ]+) constraint failed: (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a driver, in names."""

    code: str | None
    """The SQLSTATE."""
    reason: str
    """What the driver says, without values."""
    constraint: str = ""
    table: str = ""
    column: str = ""
    value: str | None = None
    """The value that the message quotes, if it does. To compare, never to show."""
    of_parameter: bool = False
    """Whether the server says that a parameter is at fault, and not what is stored."""

    @property
    def names(self) -> dict[str, str]:
        """What is named, for a line in the log."""
        named = {"constraint": self.constraint, "table": self.table, "column": self.column}
        return {key: name for key, name in named.items() if name}


def driver_error(error: BaseException) -> BaseException:
    """Return what the driver raised."""
    while isinstance(error, StatementError) and error.orig is not None:
        error = error.orig
    return error.__cause__ or error if isinstance(error, EmulatedDBAPIException) else error


def failure_of(error: BaseException) -> Failure:
    """Read an error of a driver, or SQLAlchemy's around it."""
    code, original = sqlstate(error), driver_error(error)
    module = type(original).__module__.partition(".")[0]
    read = READERS.get(module)
    return read(code, original) if read else Failure(code, reason_of(original))


def of_asyncpg(code: str | None, error: Any) -> Failure:
    """Read what PostgreSQL said, but its DETAIL; or what asyncpg said of an argument."""
    if not hasattr(error, "constraint_name"):
        return Failure(code, reason_of(error))
    said = str(error.args[0])
    if (cause := error.__cause__) and (argument := ARGUMENT.match(said)):
        return Failure(code, f"parameter {argument[1]}: {reason_of(cause)}")
    value = None
    if code and code.startswith("22"):  # Other messages quote names.
        if quoted := QUOTED.search(said):
            value = quoted[0][1:-1]
        said = QUOTED.sub(HIDDEN, said)
    return Failure(
        code,
        said,
        constraint=error.constraint_name or "",
        table=error.table_name or "",
        column=error.column_name or "",
        value=value,
        of_parameter="parameter $" in (error.context or ""),
    )


def of_psycopg(code: str | None, error: Any) -> Failure:
    """Read what PostgreSQL said, but its DETAIL; or what psycopg said."""
    diagnostics = error.diag
    if diagnostics.message_primary is None:
        return Failure(code, reason_of(error))
    names = ("constraint_name", "table_name", "column_name", "context")
    found: dict[str, Any] = {name: getattr(diagnostics, name) for name in names}
    said = SimpleNamespace(args=(diagnostics.message_primary,), __cause__=None, **found)
    return of_asyncpg(code, said)


def of_asyncmy(code: str | None, error: Any) -> Failure:
    """Read what MariaDB or MySQL said."""
    number, *rest = error.args  # The driver's own errors, as of NaN, have no number.
    said = all_said = str(rest[0] if rest else number)
    number = number if rest else ""
    value = None
    if number not in NAMES_ONLY:
        if quoted := VALUE.search(said):
            value = quoted[0].removeprefix(quoted[1])[2:-1]
            said = VALUE.sub(rf"\1 {HIDDEN}", said)
        else:
            said = QUOTED.sub(HIDDEN, said)
    return Failure(
        code,
        f"{number} {said}".strip(),
        constraint=last_group(MYSQL_CONSTRAINT, all_said),
        table=last_group(MYSQL_TABLE, all_said),
        column=last_group(MYSQL_COLUMN, all_said),
        value=value,
    )


def of_sqlite(code: str | None, error: Any) -> Failure:
    """Read what SQLite said, which quotes nothing but names and SQL."""
    said = str(error)
    if not (failed := SQLITE_FAILED.match(said)):
        return Failure(code, said)
    if failed[1] not in {"UNIQUE", "NOT NULL"}:
        return Failure(code, said, constraint=failed[2])
    table, _, column = failed[2].partition(", ")[0].partition(".")
    return Failure(code, said, table=table, column=column)


READERS = {
    "asyncpg": of_asyncpg,
    "psycopg": of_psycopg,
    "asyncmy": of_asyncmy,
    "pymysql": of_asyncmy,
    "sqlite3": of_sqlite,
}
"""By the driver's module: what reads its errors."""


def last_group(pattern: re.Pattern[str], text: str) -> str:
    """Return what the last match of a pattern has found, in whichever of its groups."""
    found = [next(filter(None, match.groups()), "") for match in pattern.finditer(text)]
    return found[-1] if found else ""


def reason_of(error: BaseException) -> str:
    """Say what went wrong in the driver or in Python, without values."""
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"{error.encoding}: {error.reason}"
    if isinstance(error, NAMES_TYPES):  # And no values.
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {QUOTED.sub(HIDDEN, str(error))}"


def can_be_input(failure: Failure, error: Exception) -> bool:
    """Whether a value that a client sent can have caused this, as far as the statement tells.

    It cannot where the statement has no parameters, where the value is none of them (it is
    stored, or computed), where a parameter has a type that no input is made into, or where the
    schema and the model differ (`schema_differs`).
    """
    code = failure.code or ""
    if code == DIVISION_BY_ZERO or getattr(error, "schema_differs", False):
        return False
    if isinstance(driver_error(error).__cause__, TypeError | AttributeError):
        return False  # asyncpg refused the type of an argument.
    if not code.startswith(("22", "54", NOT_NULL)) or not isinstance(error, StatementError):
        return True
    if error.statement is None:  # It failed at COMMIT.
        return True
    values = list(parameters_of(error.params))
    if failure.value is not None and not failure.of_parameter:
        value = failure.value.partition('"')[0] or failure.value  # "x" for "YYYY"
        return any(value in str(each) for each in values)
    return bool(values)


def schema_differs(context: ExceptionContext) -> bool:
    """Whether the database lacks what the model has, or has what the model lacks.

    That is a label of an enum, or a column that must not be NULL.
    """
    failure = failure_of(context.original_exception)
    compiled: Any = context.execution_context and context.execution_context.compiled
    if compiled is None or not (failure.code or "").startswith(("22", NOT_NULL)):
        return False
    if failure.code == NOT_NULL:
        table = getattr(compiled.statement, "table", None)
        return bool(failure.column) and table is not None and failure.column not in table.c
    labels: dict[str, list[str]] = {
        name: bound.type.enums
        for name, bound in getattr(compiled, "binds", {}).items()  # DDL has none.
        if isinstance(bound.type, Enum)
    }
    if failure.value is not None:  # PostgreSQL's; MySQL's names the column.
        return any(failure.value in each for each in labels.values())
    given = parameters_of(context.parameters)
    return failure.column in labels and any(each in labels[failure.column] for each in given)


def lacks_migration(context: ExceptionContext, tables: MetaData) -> bool:
    """Whether the database lacks a table, a column or a type that the models have."""
    failure = failure_of(context.original_exception)
    if failure.code not in UNDEFINED and not NO_SUCH.search(failure.reason):
        return False
    named = set(re.findall(r"\w+", failure.reason)) - PROSE
    columns = (column for table in tables.tables.values() for column in table.columns)
    known = {table.name for table in tables.tables.values()}
    for column in columns:
        known |= {column.name, *([str(column.type.name)] if isinstance(column.type, Enum) else [])}
    return bool(named & known)


def parameters_of(params: Any) -> Iterator[Any]:
    """Yield the values of a statement's parameters, of one execution or of many."""
    rows = cast("list[Any]", params if isinstance(params, list) else [params or ()])
    for row in rows:
        yield from cast("Iterable[Any]", row.values() if isinstance(row, Mapping) else row)
