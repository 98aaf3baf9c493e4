"""What a migration loses, or locks while it runs, and the way that does not.

What each server does was measured; see docs/migrations.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alembic.operations import ops
from sqlalchemy import Column, Computed, Identity
from sqlalchemy.engine import Dialect

from . import postgresql
from .renames import RenameColumn, RenameTable, name_of

FIXED = re.compile(r"(?i)\s*(now|current_\w+|statement_timestamp|transaction_timestamp)\b")
"""Functions that PostgreSQL calls once, and not for each row."""
ONE_BYTE = 63


@dataclass(frozen=True, slots=True)
class Risk:
    """What to know of one operation."""

    id: str
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.id}: {self.text}. {self.advice}."


def of_table(op: ops.MigrateOperation, dialect: Dialect) -> Iterator[Risk]:
    """Yield the risks of an operation that is not a change of one table."""
    match op:
        case ops.DropTableOp():
            yield Risk(
                "migrations.W002",
                f"table {op.table_name} goes, with its rows",
                "Keep what is still needed of them, and drop it once no running version of the"
                " service uses it",
            )
        case RenameTable():
            yield renamed(f"table {op.table_name}")
        case postgresql.MoveTable():
            yield renamed(op.said.removeprefix("move ").partition(" to ")[0])
        case postgresql.ChangeEnum() if op.removed:
            yield Risk(
                "migrations.W011",
                f"enum {op.name} loses {', '.join(map(repr, op.removed))}, and its tables are"
                " rewritten under a lock",
                "It fails if a row has one of them: give these rows another value first",
            )
        case ops.CreateIndexOp() if dialect.name == "postgresql":
            yield from of_index(op)
        case _:
            pass


def of_column(op: ops.MigrateOperation, dialect: Dialect) -> Iterator[Risk]:
    """Yield the risks of a change of a table that is there."""
    match op:
        case ops.DropColumnOp():
            yield Risk(
                "migrations.W002",
                f"column {op.table_name}.{op.column_name} goes, with its values",
                "First release a version of the service that does not use it",
            )
        case RenameColumn():
            yield renamed(f"column {op.table_name}.{op.column_name}")
        case ops.AddColumnOp():
            yield from of_new(op, dialect)
        case ops.AlterColumnOp():
            yield from of_altered(op, dialect)
        case ops.CreateIndexOp():
            yield from of_index(op) if dialect.name == "postgresql" else ()
        case ops.AddConstraintOp():
            yield from of_constraint(op, dialect)
        case _:
            pass


def renamed(what: str) -> Risk:
    """Say what a rename does to the version of the service that still runs."""
    return Risk(
        "migrations.W003",
        f"{what} gets another name, and a version of the service that still runs fails",
        "Without an interruption it takes releases: add the new one, write both, copy the rows,"
        " read the new one, drop the old one",
    )


def of_new(op: ops.AddColumnOp, dialect: Dialect) -> Iterator[Risk]:
    """Yield the risks of a new column."""
    column = op.column
    name = f"{op.table_name}.{name_of(op)}"
    default = column.server_default
    if not column.nullable and default is None and column.identity is None:
        happens = (
            "rows that are there get an empty value, '' or 0"
            if dialect.name == "mysql"
            else "this fails if the table has rows"
        )
        yield Risk(
            "migrations.W004",
            f"{name} is NOT NULL without a server_default: {happens}",
            "Give it a server_default; or add it nullable, fill it, and set nullable=False in the"
            " next migration",
        )
    if dialect.name != "sqlite" and is_written(column, dialect):
        yield Risk(
            "migrations.W005",
            f"{name} is given a value in each row: the table is rewritten, and nobody writes"
            " meanwhile",
            "Where it is large, add it without the default, set the default for new rows, and fill"
            " the old ones in batches",
        )


def is_written(column: Column[Any], dialect: Dialect) -> bool:
    """Whether a new column's value is written to each row."""
    default: Any = column.server_default
    if isinstance(default, Computed):
        return default.persisted is not False
    if isinstance(default, Identity) or column.identity is not None:
        return True
    argument = getattr(default, "arg", "")
    if dialect.name == "mysql" or isinstance(argument, str):
        return False
    sql = str(argument.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    return "(" in sql and not FIXED.match(sql)


def of_altered(op: ops.AlterColumnOp, dialect: Dialect) -> Iterator[Risk]:
    """Yield the risks of a changed column."""
    name = f"{op.table_name}.{op.column_name}"
    if op.modify_nullable is False:
        scan = ", and all rows are read under a lock" if dialect.name == "postgresql" else ""
        advice = "Fill it first"
        if dialect.name == "postgresql":
            advice = (
                "Fill it first; where the table is large, add CHECK (... IS NOT NULL) NOT VALID,"
                " VALIDATE it in the next migration, and then set NOT NULL, which reads no row"
            )
        yield Risk("migrations.W006", f"{name}: this fails if a row has NULL{scan}", advice)
    if op.modify_type is not None and op.existing_type is not None:
        old, new = (
            dialect.type_compiler_instance.process(each)
            for each in (op.existing_type, op.modify_type)
        )
        if not is_wider(old, new, dialect):
            lock = "" if dialect.name == "sqlite" else ", and the table is rewritten under a lock"
            yield Risk(
                "migrations.W007",
                f"{name} becomes {new} from {old}: values that do not fit fail or are cut{lock}",
                "Where it is large or in use, add a column of the new type, write both, copy the"
                " rows, and drop the old one later",
            )


def is_wider(old: str, new: str, dialect: Dialect) -> bool:
    """Whether PostgreSQL takes the new type for the old one's rows without reading them."""
    sizes = [re.fullmatch(r"VARCHAR(?:\((\d+)\))?|TEXT", each) for each in (old, new)]
    if dialect.name == "sqlite" or not all(sizes):
        return False
    lengths = [int(found[1]) if found and found[1] else 1 << 40 for found in sizes]
    # Of up to 63 characters of four bytes, MySQL keeps the length in one byte.
    short = dialect.name == "postgresql" or lengths[1] <= ONE_BYTE or lengths[0] > ONE_BYTE
    return lengths[0] <= lengths[1] and short and (dialect.name != "mysql" or "TEXT" not in new)


def of_index(op: ops.CreateIndexOp) -> Iterator[Risk]:
    """Yield the risk of an index on a table that is there."""
    if not op.kw.get("postgresql_concurrently"):
        yield Risk(
            "migrations.W008",
            f"index {op.index_name}: nobody writes to {op.table_name} while it is built",
            "Where the table is large, give the model's Index postgresql_concurrently=True: the"
            " migration then builds it beside the writes",
        )


def of_constraint(op: ops.AddConstraintOp, dialect: Dialect) -> Iterator[Risk]:
    """Yield the risks of a constraint on a table that is there."""
    name: Any = getattr(op, "constraint_name", None)
    table: Any = getattr(op, "table_name", None) or getattr(op, "source_table", None)
    match op:
        case ops.CreateForeignKeyOp() | ops.CreateCheckConstraintOp():
            advice = "Mend these rows first"
            lock = ", and the table is copied meanwhile" if dialect.name == "mysql" else ""
            if dialect.name == "postgresql":
                does = "uses" if isinstance(op, ops.CreateCheckConstraintOp) else "writes to"
                lock = f", and nobody {does} {table} while all rows are checked"
                advice += (
                    "; where the table is large, give it postgresql_not_valid=True here, and run"
                    f" ALTER TABLE {table} VALIDATE CONSTRAINT {name} in the next migration"
                )
            yield Risk("migrations.W009", f"{name}: this fails if a row breaks it{lock}", advice)
        case _:
            advice = "Make them differ first"
            lock = ""
            if dialect.name == "postgresql":
                lock = ", and nobody uses the table while its index is built"
                advice += (
                    "; where the table is large, build a unique index concurrently, and add the"
                    " constraint USING INDEX"
                )
            yield Risk("migrations.W010", f"{name}: this fails if two rows collide{lock}", advice)
