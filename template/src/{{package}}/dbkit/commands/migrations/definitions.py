"""Constraints, indexes, columns and options of tables that have one name and two definitions.

Alembic compares most of them by name alone. A server writes a definition in its own words, so the
model's text says little; here the server writes both: it makes the model's table once more, as
a temporary one.
"""

import re
from dataclasses import dataclass
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import (
    CheckConstraint,
    Connection,
    Constraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateSequence, CreateTable, DropSequence
from sqlalchemy.sql.elements import conv

from ...engines.sqlstates import sqlstate
from .limits import is_plain
from .sqlite import has_expression
from .statements import SqlOp

POSTGRESQL = text("""
    SELECT conname, CASE contype WHEN 'c' THEN 'check' WHEN 'x' THEN 'exclude' ELSE 'key' END,
        regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', '')
    FROM pg_constraint WHERE conrelid = to_regclass(:table) AND contype IN ('c', 'p', 'u', 'x')
    UNION ALL
    SELECT relname, 'index', pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass(:table)
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    UNION ALL
    SELECT attname, 'column', pg_get_expr(adbin, adrelid)
    FROM pg_attribute JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
    WHERE attrelid = to_regclass(:table) AND attgenerated <> ''
    UNION ALL
    SELECT 'collation ' || attname, 'collation', collname
    FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation
    WHERE attrelid = to_regclass(:table) AND attnum > 0
    UNION ALL
    SELECT 'option ' || split_part(each, '=', 1), 'option', split_part(each, '=', 2)
    FROM pg_class, unnest(reloptions) each WHERE pg_class.oid = to_regclass(:table)
""")
MYSQL = re.compile(
    r"^  (?:CONSTRAINT `(?P<check>[^`]+)` CHECK .*?|(?P<primary>PRIMARY) KEY .*?"
    r"|(?:\w+ )?KEY `(?P<index>[^`]+)` .*?|`(?P<column>[^`]+)` .* GENERATED ALWAYS AS .*?)(?=,?$)",
    re.MULTILINE,
)
"""Lines of SHOW CREATE TABLE."""
MYSQL_COLUMN = re.compile(r"^  `([^`]+)` (?:.*? COLLATE (\w+))?", re.MULTILINE)
MYSQL_OPTION = re.compile(r"\b(?:DEFAULT )?(?!AUTO_INCREMENT|COMMENT)([A-Z_]+)=(\w+)")
MYSQL_NOT_TEMPORARY = re.compile(r"\b(?:ROW_FORMAT|KEY_BLOCK_SIZE)=\w+")
"""Options that temporary tables cannot have."""
SQLITE = text(
    "SELECT name, type, sql FROM sqlite_master WHERE type IN ('index', 'table')"
    " AND sql IS NOT NULL AND tbl_name = :table"
)
SQLITE_COLUMN = re.compile(
    r"(?:^|[,(])\s*[\"`\[]?(\w+)[\"`\]]?\s+\w+(?:\([^)]*\))?(?:[^,]*?\sCOLLATE\s+[\"'`]?(\w+))?",
    re.IGNORECASE,
)
SQLITE_OPTION = re.compile(r"(?i)\b(STRICT|WITHOUT ROWID)\b(?=[^)]*$)")
SAID = {"collation": "the collation of {table}.{part}", "option": "{part} of {table}"}
"""What is only said of kinds that are not written."""
FORBIDDEN = {"25006", "42000", "42501"}
"""SQLSTATEs of a right that is missing, such as that to make temporary tables."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a server says of a constraint, an index or a generated column."""

    kind: str
    sql: str

    @property
    def core(self) -> str:
        """The definition without names of tables, spaces and quotes."""
        sql = re.sub(r"^CREATE (UNIQUE )?INDEX .*? ON (ONLY )?\S+ (USING|\()", r"\1\3", self.sql)
        if self.kind == "column":
            sql = sql.rpartition(" GENERATED ")[2]
        return re.sub(r"[\s\"]", "", sql)


def read_definitions(connection: Connection, table: str) -> dict[str, Definition]:
    """Read the definitions of a table, by name."""
    if connection.dialect.name == "mysql":
        sql: str = connection.exec_driver_sql(f"SHOW CREATE TABLE {table}").one()[1]
        lines = ((str(each.lastgroup), each) for each in MYSQL.finditer(sql))
        options = MYSQL_OPTION.findall(sql.rpartition("\n)")[2])
        return details(MYSQL_COLUMN.findall(sql), options) | {
            line[kind]: Definition(kind, line[0].strip()) for kind, line in lines
        }
    if connection.dialect.name == "postgresql":
        rows = connection.execute(POSTGRESQL, {"table": table})
        return {name: Definition(kind, sql) for name, kind, sql in rows}
    found: dict[str, Definition] = {}
    for name, kind, sql in connection.execute(SQLITE, {"table": table}):
        found |= details_of_sqlite(sql) if kind == "table" else {name: Definition(kind, sql)}
    return found


def details(
    columns: list[tuple[str, str]], options: list[tuple[str, str]]
) -> dict[str, Definition]:
    """Return collations of columns, and options of a table, by what they are."""
    return {
        f"collation {name}": Definition("collation", value or "the default")
        for name, value in columns
    } | {f"option {name}": Definition("option", value) for name, value in options}


def details_of_sqlite(sql: str) -> dict[str, Definition]:
    """Read these of a CREATE TABLE."""
    options = [(each.upper(), "set") for each in SQLITE_OPTION.findall(sql)]
    return details(SQLITE_COLUMN.findall(sql), options)


def read_definitions_of_model(connection: Connection, table: Table) -> dict[str, Definition]:
    """Read what the server would make of a model's table."""
    preparer = connection.dialect.identifier_preparer
    full, name = preparer.format_table(table), preparer.format_table(table, use_schema=False)
    create = str(CreateTable(table, include_foreign_key_constraints=[]).compile(connection))
    create = f"CREATE TEMPORARY TABLE {name} {create.partition(f'TABLE {full} ')[2]}"
    indexes = [sql_of(each, connection).replace(" CONCURRENTLY", "", 1) for each in table.indexes]
    wanted: list[tuple[str, str]] = []
    if connection.dialect.name == "mysql":  # CREATE INDEX would commit.
        body, end, options = create.rpartition("\n)")
        wanted = MYSQL_OPTION.findall(options)
        for each in MYSQL_NOT_TEMPORARY.findall(options):
            options = options.replace(each, "")
        inside = [each.removeprefix("CREATE ").replace(f" ON {full} ", " ", 1) for each in indexes]
        create = ",\n".join([body, *inside]) + end + options
    else:
        on_it = [each.replace(f" ON {full} ", f" ON {name} ", 1) for each in indexes]
        create = "; ".join([create, *on_it])  # In one round trip: schemas have hundreds of tables.
    try:
        connection.exec_driver_sql(create)
        found = read_definitions(connection, name)
        return {
            name: each
            for name, each in found.items()
            if each.kind != "option" or connection.dialect.name != "mysql"
        } | details([], wanted)
    finally:
        if connection.dialect.name == "mysql":  # Elsewhere it goes with the transaction.
            connection.exec_driver_sql(f"DROP TEMPORARY TABLE IF EXISTS {name}")


def read_both(
    context: AutogenContext, table: Table, unseen_yet: set[str]
) -> list[dict[str, Definition]]:
    """Read the definitions of a table and of its model, by name."""
    connection = context.connection
    assert connection is not None  # noqa: S101 -- Alembic compares with a database
    name = connection.dialect.identifier_preparer.format_table(table)
    is_there = context.inspector.has_table(table.name, table.schema)
    if connection.dialect.name == "sqlite":  # It keeps texts as they are.
        there: dict[str, Definition] = {}
        if is_there:
            there = read_definitions(connection, table.name)
            for each in context.inspector.get_check_constraints(table.name):
                there[str(each["name"])] = Definition("check", each["sqltext"])
            key = context.inspector.get_pk_constraint(table.name)["constrained_columns"]
            if set(key) != {each.name for each in table.primary_key}:
                context.opts["by_hand"].add(f"the primary key of {table.name} is {', '.join(key)}")
        wanted = details_of_sqlite(str(CreateTable(table).compile(connection))) | {
            name: Definition(
                "index" if isinstance(part, Index) else "check", sql_of(part, connection)
            )
            for name, part in parts(table).items()
            if isinstance(part, Index | CheckConstraint)
        }
        return [there, wanted]
    if not is_there:
        return [{}, {}]
    attempt = connection.begin_nested() if connection.dialect.name == "postgresql" else None
    try:
        there = read_definitions(connection, name)
        return [there, read_definitions_of_model(connection, table)]
    except DBAPIError as error:
        said = f"definitions of {table.name} are not seen: {error.orig}"
        if sqlstate(error) in FORBIDDEN:
            context.opts["by_hand"].add(said)
        else:  # Perhaps the model needs what is not there yet: next time.
            unseen_yet.add(said)
        return [{}, {}]
    finally:
        if attempt:
            attempt.rollback()


def parts(table: Table) -> dict[str, Constraint | Index]:
    """Return the constraints and indexes of a model, by name."""
    return {str(each.name): each for each in (*table.constraints, *table.indexes) if each.name}


def sql_of(part: Constraint | Index, connection: Connection) -> str:
    """Write an index, or the condition of a CHECK, as SQL."""
    if isinstance(part, Index):
        return str(CreateIndex(part).compile(connection))
    assert isinstance(part, CheckConstraint)  # noqa: S101 -- only these have one
    options = {"literal_binds": True, "include_table": False}
    sql = str(part.sqltext.compile(dialect=connection.dialect, compile_kwargs=options))
    # Doubled for the driver, and again when the migration is run.
    return sql.replace("%%", "%") if connection.dialect.name == "mysql" else sql


def compare_definitions(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, _schemas: set[str | None]
) -> PriorityDispatchResult:
    """Find what has another definition than its model, and leave out what only looks so."""
    unseen_yet: set[str] = set()
    for table in context.sorted_tables:
        there, wanted = read_both(context, table, unseen_yet)
        context.opts["by_hand"].update(left_to_you(table, there, wanted))
        same = {name for name in there.keys() & wanted if there[name].core == wanted[name].core}
        seen = same | leave_out(upgrade_ops, table, same)
        changed = (there.keys() & wanted) | unseen(context, table, there, wanted)
        for name in sorted(changed - seen):
            before, after = change(context, table, name, there.get(name), wanted.get(name))
            upgrade_ops.ops[:0] = before
            upgrade_ops.ops += after
    upgrade_ops.ops[:0] = sequences(context)
    if upgrade_ops.is_empty():
        context.opts["by_hand"].update(unseen_yet)
    return PriorityDispatchResult.CONTINUE


def sequences(context: AutogenContext) -> list[SqlOp]:
    """Make the sequences that models name and that are not there yet: Alembic makes none."""
    connection, metadata = context.connection, context.metadata
    assert connection is not None  # noqa: S101 -- Alembic compares with a database
    assert isinstance(metadata, MetaData)  # noqa: S101 -- a database has one
    if not connection.dialect.supports_sequences:
        return []
    return [
        SqlOp(
            f"add sequence {each.name}",
            [str(CreateSequence(each).compile(connection))],
            [str(DropSequence(each).compile(connection))],
            f"remove sequence {each.name}",
        )
        for each in vars(metadata)["_sequences"].values()
        if not context.inspector.has_sequence(each.name, each.schema)
    ]


def left_to_you(
    table: Table, there: dict[str, Definition], wanted: dict[str, Definition]
) -> set[str]:
    """Say what differs and is not written; remove it from both.

    An option that the model does not have is left to whoever has set it on the server.
    """
    found: set[str] = set()
    for name, new in wanted.items() if there else ():
        old = there.get(name, Definition(new.kind, "not set") if new.kind == "option" else new)
        if new.kind in SAID and old.sql.lower() != new.sql.lower():
            what = SAID[new.kind].format(table=table.name, part=name.partition(" ")[2])
            found.add(f"{what} is {old.sql}, and is to be {new.sql}")
    for each in (there, wanted):
        for name in [name for name in each if each[name].kind in SAID]:
            del each[name]
    return found


def leave_out(upgrade_ops: ops.UpgradeOps, table: Table, same: set[str]) -> set[str]:
    """Take out what Alembic would do to what is the same; return the names of what it changes."""
    kinds = (ops.CreateIndexOp, ops.DropIndexOp, ops.AddConstraintOp, ops.DropConstraintOp)
    seen: set[str] = set()
    containers = (each for each in upgrade_ops.ops if isinstance(each, ops.ModifyTableOps))
    for container in (upgrade_ops, *containers):
        for op in list(container.ops):
            of: Any = op
            if isinstance(op, kinds) and getattr(of, "table_name", "") == table.name:
                name = str(getattr(of, "index_name", None) or of.constraint_name)
                seen.add(name)
                if name in same and of.schema == table.schema:
                    container.ops.remove(op)
    upgrade_ops.ops[:] = [
        each
        for each in upgrade_ops.ops
        if not (isinstance(each, ops.ModifyTableOps) and each.is_empty())
    ]
    return seen


def unseen(
    context: AutogenContext,
    table: Table,
    there: dict[str, Definition],
    wanted: dict[str, Definition],
) -> set[str]:
    """Name what comes or goes that Alembic does not look at.

    That is exclusion constraints, and SQLite's indexes on expressions.
    """
    assert context.connection is not None  # noqa: S101 -- Alembic compares with a database
    on_sqlite = context.connection.dialect.name == "sqlite"
    is_ours: Any = context.run_object_filters
    found: set[str] = set()
    for name, new in wanted.items() - there.items():
        index = parts(table).get(name)
        plain = not isinstance(index, Index) or is_plain(index)
        if name not in there and (new.kind == "exclude" or (on_sqlite and not plain)):
            found.add(name)
    for name in there.keys() - wanted:
        kind = there[name].kind
        if kind == "index" and not (on_sqlite and has_expression(context.connection, name)):
            continue
        kinds = {"index": "index", "exclude": "exclude_constraint"}
        if kind in kinds and is_ours(Index(name), name, kinds[kind], True, None):
            found.add(name)
    return found


def change(
    context: AutogenContext,
    table: Table,
    name: str,
    old: Definition | None,
    new: Definition | None,
) -> tuple[list[ops.MigrateOperation], list[ops.MigrateOperation]]:
    """Drop what is there before all other changes, and add what is to be after them."""
    connection = context.connection
    assert connection is not None  # noqa: S101 -- Alembic compares with a database
    preparer, dialect = connection.dialect.identifier_preparer, connection.dialect.name
    alter, quoted = f"ALTER TABLE {preparer.format_table(table)}", preparer.quote(name)
    part, schema = parts(table).get(name), table.schema
    kind = (new or old or Definition("", "")).kind
    before: list[ops.MigrateOperation] = []
    after: list[ops.MigrateOperation] = []
    if old and new and kind in {"column", "primary"}:
        return before, [modification(table, name, old, new, connection)]
    if old and part is not None and kind == "check":
        again, create = (
            ops.CreateCheckConstraintOp(conv(name), table.name, sql, schema=schema)
            for sql in (condition(old), sql_of(part, connection))
        )
        drop = ops.DropConstraintOp(
            conv(name), table.name, type_="check", schema=schema, _reverse=again
        )
        before.append(ops.ModifyTableOps(table.name, [drop], schema=schema))
        after.append(ops.ModifyTableOps(table.name, [create], schema=schema))
        return before, after
    said, dropped = f"constraint {name} of {table.name}", f"{alter} DROP CONSTRAINT {quoted}"
    add = f"{alter} ADD CONSTRAINT {quoted} "  # And the definition.
    if kind == "index":
        said = f"index {name} of {table.name}"
        place = f"{preparer.quote_schema(schema)}." if schema else ""
        dropped = f"DROP INDEX {place}{quoted}"
        add = ""
        if dialect == "mysql":
            dropped, add = f"{alter} DROP INDEX {quoted}", f"{alter} ADD "
    if old:
        before.append(SqlOp(f"remove {said}", [dropped], [f"{add}{old.sql}"], f"add {said}"))
    if isinstance(part, Index):
        after.append(ops.CreateIndexOp.from_index(part))
    elif new and isinstance(part, PrimaryKeyConstraint):  # Alembic cannot write it.
        after.append(SqlOp(f"add {said}", [f"{add}{new.sql}"], [dropped], f"remove {said}"))
    elif isinstance(part, Constraint):
        after.append(ops.AddConstraintOp.from_constraint(part))
    return before, after


def modification(
    table: Table, name: str, old: Definition, new: Definition, connection: Connection
) -> SqlOp:
    """Change a generated column, or a primary key of MySQL's, in one statement."""
    preparer = connection.dialect.identifier_preparer
    how, end, what = "MODIFY COLUMN ", "", f"expression of {table.name}.{name}"
    if new.kind == "primary":
        how, what = "DROP PRIMARY KEY, ADD ", f"primary key of {table.name}"
    elif connection.dialect.name == "postgresql":
        how, end = f"ALTER COLUMN {preparer.quote(name)} SET EXPRESSION AS (", ")"
    alter = f"ALTER TABLE {preparer.format_table(table)}"
    up, down = ([f"{alter} {how}{each.sql}{end}"] for each in (new, old))
    return SqlOp(f"modify {what}", up, down, f"modify {what}")


def condition(definition: Definition) -> str:
    """Return the condition of a CHECK."""
    sql = definition.sql.partition("CHECK ")[2] or f"({definition.sql})"
    return sql.strip()[1:-1]
