"""PostgreSQL: types, schemas and extensions that tables need; Alembic compares none of them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import ARRAY, Connection, Enum, text
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from .statements import SqlOp

NOT_OURS = text("""
    SELECT CASE WHEN NOT pg_table_is_visible(c.oid) THEN n.nspname END, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND (
        pg_table_is_visible(c.oid) AND n.nspname <> current_schema()
        OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid)
        OR EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                   AND objid = c.oid AND deptype = 'e'))
""")
"""Partitions, tables that inherit, an extension's, and those of the search_path's other schemas."""

COLUMNS = text("""
    SELECT a.attrelid::regclass::text, quote_ident(a.attname), pg_get_expr(d.adbin, d.adrelid),
        t.typelem <> 0
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE c.relkind IN ('r', 'p') AND a.attinhcount = 0 AND NOT a.attisdropped
        AND to_regtype(:type) IN (t.oid, t.typelem)
    ORDER BY 1, a.attnum
""")

TYPE = text("""
    SELECT format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped
""")

SEQUENCES = text("""
    SELECT nspname, relname, attname, seqrelid::regclass::text, format_type(seqtypid, NULL)
    FROM pg_sequence JOIN pg_depend ON objid = seqrelid AND deptype = 'a'
    JOIN pg_attribute ON (attrelid, attnum) = (refobjid, refobjsubid)
    JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE seqtypid <> 'bigint'::regtype
""")
"""Those of serial columns; an identity's has the type of its column."""

EXTENSIONS = {
    "CITEXT": "citext",
    "HSTORE": "hstore",
    "LTREE": "ltree",
    **dict.fromkeys(("VECTOR", "HALFVEC", "SPARSEVEC"), "vector"),
}
"""The extension that a type comes from."""


@dataclass(frozen=True, slots=True)
class Name:
    """A type's name, and its schema where that is not the default one."""

    schema: str | None
    name: str

    @property
    def sql(self) -> str:
        """The name as SQL has it."""
        return ".".join(quoted(each) for each in (self.schema, self.name) if each)

    def __str__(self) -> str:
        return ".".join(filter(None, (self.schema, self.name)))


@dataclass(eq=False)
class ChangeEnum(SqlOp):
    """An enum gets other labels."""

    name: Name = Name(None, "")
    removed: Sequence[str] = ()
    renamed: tuple[str, str] | None = None
    """The labels that may be one and the same, before and after."""

    def reverse(self) -> "ChangeEnum":
        """Return the way back."""
        return ChangeEnum(self.reversed_said, self.down, self.up, self.said)


def quoted(name: str) -> str:
    """Quote a name where it has to be."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def string(value: str) -> str:
    """Write a string as SQL has it."""
    return "'" + value.replace("'", "''") + "'"


def parts(type_: TypeEngine[Any]) -> Iterator[TypeEngine[Any]]:
    """Yield a type as it is on PostgreSQL, and that of its items."""
    variants: Any = vars(type_).get("_variant_mapping", {})
    type_ = variants.get("postgresql", type_)
    if isinstance(type_, TypeDecorator):
        yield from parts(type_.impl_instance)
    elif isinstance(type_, ARRAY):
        items: TypeEngine[Any] = vars(type_)["item_type"]
        yield from parts(items)
    else:
        yield type_


def is_native(type_: object) -> bool:
    """Whether a type is an enum that PostgreSQL has as a type of its own."""
    return isinstance(type_, Enum) and type_.native_enum and bool(type_.name)


def compare_types(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Compare enums, and find schemas and extensions that are not there yet."""
    connection = context.connection
    assert connection is not None  # noqa: S101 -- Alembic compares with a database
    inspector: Any = context.inspector
    default = connection.dialect.default_schema_name
    types = [
        each for table in context.sorted_tables for column in table.c for each in parts(column.type)
    ]
    wanted: dict[Name, list[str]] = {}
    for each in types:
        if isinstance(each, Enum) and is_native(each):
            schema: str | None = vars(each)["schema"]
            name = Name(schema if schema != default else None, str(each.name))
            wanted[name] = list(each.enums)
    there = {
        Name(each["schema"] if each["schema"] != default else None, each["name"]): each["labels"]
        for each in inspector.get_enums("*")
    }

    before: list[ops.MigrateOperation] = []
    schemas = {table.schema for table in context.sorted_tables} | {each.schema for each in wanted}
    missing = sorted(filter(None, schemas - {None, default, *inspector.get_schema_names()}))
    before += [
        SqlOp(
            f"add schema {schema}",
            [f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"],
            [f"DROP SCHEMA IF EXISTS {quoted(schema)}"],
            f"remove schema {schema}",
        )
        for schema in missing
    ]
    before += extensions(connection, {type(each).__name__ for each in types})
    for name, labels in wanted.items():
        if name not in there:
            before.append(create(name, labels))
        elif there[name] != labels:
            before.append(change(connection, name, there[name], labels))
    before += retyped(context, connection)
    before += widened(context, connection)
    upgrade_ops.ops[:0] = before
    upgrade_ops.ops += [
        create(name, there[name]).reverse()
        for name in sorted(there.keys() - wanted.keys(), key=str)
        if context.run_name_filters(name.name, "type", {"schema_name": name.schema})  # pyright: ignore[reportArgumentType] -- our filter knows it
    ]
    return PriorityDispatchResult.CONTINUE


def retyped(context: AutogenContext, connection: Connection) -> Iterator[SqlOp]:
    """Give columns of a type that SQLAlchemy does not know, as pgvector's, another one."""
    for table in context.sorted_tables:
        for column in table.c:
            if not isinstance(column.type, UserDefinedType):
                continue
            full = Name(table.schema, table.name).sql
            wanted = connection.dialect.type_compiler_instance.process(column.type).lower()
            there = connection.scalar(TYPE, {"table": full, "column": column.name})
            if there and there.lower().rpartition(".")[2] != wanted.rpartition(".")[2]:
                alter = f"ALTER TABLE {full} ALTER COLUMN {quoted(column.name)} TYPE"
                yield SqlOp(
                    f"modify type of {table.name}.{column.name} from {there} to {wanted}",
                    [f"{alter} {wanted}"],
                    [f"{alter} {there}"],
                )


def widened(context: AutogenContext, connection: Connection) -> Iterator[SqlOp]:
    """Have the sequence of a column that is a BIGINT not end at 2,147,483,647."""
    sequences = {tuple(row[:3]): row[3:] for row in connection.execute(SEQUENCES)}
    for table in context.sorted_tables if sequences else ():
        schema = table.schema or connection.dialect.default_schema_name
        for column in table.c:
            found = sequences.get((schema, table.name, column.name))
            (type_,) = parts(column.type)
            if found and connection.dialect.type_compiler_instance.process(type_) == "BIGINT":
                name, before = found
                said = f"modify type of sequence {name}"
                up, down = ([f"ALTER SEQUENCE {name} AS {each}"] for each in ("bigint", before))
                yield SqlOp(said, up, down, said)


def extensions(connection: Connection, types: set[str]) -> Iterator[SqlOp]:
    """Create the extensions that types come from; others may need them, so they stay."""
    wanted = {EXTENSIONS[each] for each in types if each in EXTENSIONS}
    there = set(connection.scalars(text("SELECT extname FROM pg_extension")))
    for name in sorted(wanted - there):
        yield SqlOp(f"add extension {name}", [f"CREATE EXTENSION IF NOT EXISTS {name}"])


class MoveTable(SqlOp):
    """A table goes to another schema."""


def move(table: str, old: str, new: str) -> MoveTable:
    """Move a table to another schema."""

    def sql(before: str, after: str) -> list[str]:
        return [f"ALTER TABLE {Name(before, table).sql} SET SCHEMA {quoted(after)}"]

    return MoveTable(f"move table {table} to schema {new}", sql(old, new), sql(new, old))


def create(name: Name, labels: Sequence[str]) -> SqlOp:
    """Create an enum."""
    return SqlOp(
        f"add enum {name}",
        [f"CREATE TYPE {name.sql} AS ENUM ({', '.join(map(string, labels))})"],
        [f"DROP TYPE {name.sql}"],
        f"remove enum {name}",
    )


def change(
    connection: Connection, name: Name, old: Sequence[str], new: Sequence[str]
) -> ChangeEnum:
    """Give an enum other labels."""
    columns = [tuple(row) for row in connection.execute(COLUMNS, {"type": name.sql})]
    added = [each for each in new if each not in old]
    removed = [each for each in old if each not in new]
    kept = [each for each in new if each in old]
    up = list(rewrite(name, new, columns))
    if kept == list(old):
        up = [add(name, new, label) for label in added]
    said = ", ".join(
        [*(f"add {each!r}" for each in added), *(f"remove {each!r}" for each in removed)]
    )
    back = ", ".join(
        [*(f"remove {each!r}" for each in added), *(f"add {each!r}" for each in removed)]
    )
    pairs = list(zip(removed, added, strict=False))
    same = len(removed) == len(added) == 1 and old.index(removed[0]) == new.index(added[0])
    return ChangeEnum(
        f"change enum {name}: {said or 'another order'}",
        up,
        list(rewrite(name, old, columns)),
        f"change enum {name}: {back or 'another order'}",
        name=name,
        removed=removed,
        renamed=pairs[0] if same else None,
    )


def add(name: Name, labels: Sequence[str], label: str) -> str:
    """Write SQL that adds a label; those before it in `labels` are there."""
    at = labels.index(label)
    place = f"AFTER {string(labels[at - 1])}" if at else "BEFORE "
    if not at:
        place += string(labels[1])
    return f"ALTER TYPE {name.sql} ADD VALUE IF NOT EXISTS {string(label)} {place}"


def rename(name: Name, old: str, new: str) -> SqlOp:
    """Rename a label."""

    def sql(before: str, after: str) -> list[str]:
        return [f"ALTER TYPE {name.sql} RENAME VALUE {string(before)} TO {string(after)}"]

    return SqlOp(f"rename {old!r} of enum {name} to {new!r}", sql(old, new), sql(new, old))


def rewrite(name: Name, labels: Sequence[str], columns: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Write SQL that makes a type anew; it fails if a row holds a label that is gone."""
    old = Name(name.schema, f"{name.name[:55]}_before")
    yield f"ALTER TYPE {name.sql} RENAME TO {quoted(old.name)}"
    yield create(name, labels).up[0]
    for table, column, default, is_array in columns:
        type_ = f"{name.sql}[]" if is_array else name.sql
        via = "text[]" if is_array else "text"
        if default:
            yield f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"
        yield (
            f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {type_} USING {column}::{via}::{type_}"
        )
        label = re.match(r"'((?:[^']|'')*)'::", default or "")
        items = re.findall(r'[^{},"]+', label[1]) if label and is_array else []
        known = items or ([label[1].replace("''", "'")] if label else [])
        if default and all(each in labels for each in known):
            yield f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}"
    yield f"DROP TYPE {old.sql}"
