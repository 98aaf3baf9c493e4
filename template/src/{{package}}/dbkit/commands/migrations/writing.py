"""Migrations are written: what the models ask for, an empty one, or one that joins two heads."""

import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import render
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op, renderers
from alembic.migration import MigrationContext
from alembic.operations import ops
from alembic.script import Script
from alembic.util import CommandError
from sqlalchemy import (
    Column,
    Connection,
    DefaultClause,
    ForeignKeyConstraint,
    Index,
    MetaData,
    inspect,
)
from sqlalchemy.engine import Dialect

from ...database.database import Database
from .comparing import UNSEEN, Comparison, find_changes, said
from .connecting import connect
from .failures import DIRECTORY
from .history import configure, known_heads, next_revision, read_scripts
from .limits import LIMITS, of_columns, of_indexes
from .postgresql import ChangeEnum, is_native, quoted
from .renames import Ask, of_kind, rename
from .risks import Risk, of_column, of_table
from .statements import Remark

EXAMPLE = 'op.execute(sa.text("SELECT 1"))  # In place of this, what is to be done.'


MOMENT = re.compile(r"TIMESTAMP(\(\d\))? WITH")


@dataclass(frozen=True, slots=True)
class Differences:
    """What tells a database from its models."""

    changes: list[str]
    """What the models ask for, e.g. `add column items.colour`."""
    left_alone: list[str]
    """What neither a model nor a migration names, e.g. `table audit`."""
    limits: list[str]
    """Columns that the server does not keep as the model says."""
    by_hand: list[str]
    """What differs and is not written, or could not be compared."""
    unseen: str = ""
    """Why tables whose models are there would be dropped; else ""."""


async def compare(database: Database) -> Differences:
    """Compare a database with its models."""

    def run(connection: Connection) -> Differences:
        config = configure(database, connection=connection)
        changes = find_changes(config)
        comparison: Comparison = config.attributes["comparison"]
        limits: list[str] = []
        for table in comparison.metadata.tables.values():
            limits += map(str, of_columns(table.columns, connection.dialect))
            limits += map(str, of_indexes(table.indexes, connection.dialect))
        left, by_hand = sorted(comparison.left_alone), sorted(comparison.by_hand)
        return Differences(changes, left, limits, by_hand, comparison.unseen())

    async with connect(database) as connection:
        return await connection.run_sync(run)


async def make(
    database: Database,
    message: str = "",
    *,
    empty: bool = False,
    merge: bool = False,
    ask: Ask = lambda _: False,
    on_note: Callable[[str], None] = lambda _: None,
    silenced: Collection[str] = (),
) -> Path | None:
    """Write the migration that the models ask for, as ruff formats it where there is ruff.

    None when they ask for nothing. Without a message it is named after what it does. `ask` is asked
    whether what goes and what comes is a rename; `on_note` is told what was written, and what
    to know of it. With `merge` it follows all heads, and does nothing else. Raises `CommandError`
    when a migration is not applied yet, or the server would not keep values as the models say.
    """
    (DIRECTORY / database.name).mkdir(parents=True, exist_ok=True)
    notes: list[str] = []

    def run(connection: Connection) -> Path | None:
        if merge:
            return path_of(merge_heads(database, message))
        config = configure(database, connection=connection)
        script = read_scripts(database, config)
        current = known_heads(database, script, connection)
        comparison: Comparison = config.attributes["comparison"]
        if not empty:
            must_be_comparable(comparison, applied=set(current) == set(script.get_heads()))

        def revise(context: MigrationContext, _revision: object, directives: list[Any]) -> None:
            if empty:
                return
            notes.extend(
                f"left alone, as no migration made it: {each}"
                for each in sorted(comparison.left_alone)
            )
            notes.extend(f"left to you: {each}" for each in sorted(comparison.by_hand))
            directive: ops.MigrationScript = directives[0]
            if directive.upgrade_ops is None or directive.upgrade_ops.is_empty():
                directives.clear()
                return
            notes[:0] = revised(directive, context, ask, silenced, database)
            # Else `%` is doubled in the file for the driver, and once more when it is run.
            preparer: Any = context.dialect.identifier_preparer
            preparer._double_percents = False  # noqa: SLF001 -- nothing is run after this
            if not message:
                directive.message = name_of(notes)
                directive.rev_id = next_revision(script, directive.message)

        written = command.revision(
            config,
            message or "by hand",
            autogenerate=not empty,
            rev_id=next_revision(script, message or "by hand"),
            process_revision_directives=revise,
        )
        return path_of(written)

    async with connect(database, on_schema=on_note) as connection:
        path = await connection.run_sync(run)
    if path:
        code = path.read_text("utf-8")
        path.write_text(tidy(code.replace("pass", EXAMPLE, 1) if empty else code), "utf-8")
        on_note(f"wrote {path}")
    for each in notes:
        on_note(f"  {each}")
    return path


def must_be_comparable(comparison: Comparison, *, applied: bool) -> None:
    """Raise `CommandError` where a comparison with the models would find what is not so."""
    name = comparison.database.name
    if unseen := comparison.unseen():
        raise CommandError(f"{name}: {unseen}\n  {UNSEEN}")
    if not applied:
        raise CommandError(
            f"{name}: migrations are not applied; first run `manage.py migrate --database {name}`"
        )


def merge_heads(database: Database, message: str) -> Script | None:
    """Write a migration that follows all heads, and does nothing."""
    config = configure(database, several_heads=True)
    script = read_scripts(database, config)
    heads = sorted(script.get_heads())
    if len(heads) == 1:
        raise CommandError(f"{database.name}: there is one head, and nothing to merge")
    revision = next_revision(script, message or "merge")
    title = message or f"merge {' and '.join(heads)}"
    return command.merge(config, "heads", title, rev_id=revision)


def path_of(written: Script | list[Script | None] | None) -> Path | None:
    """Return the file of what Alembic has written."""
    scripts = written if isinstance(written, list) else [written]
    script = next(iter(scripts), None)
    return Path(script.path).resolve().relative_to(Path.cwd().resolve()) if script else None


def revised(
    directive: ops.MigrationScript,
    context: MigrationContext,
    ask: Ask,
    silenced: Collection[str],
    database: Database,
) -> list[str]:
    """Put a migration right, and remark in it what to know; return that, after what it does."""
    upgrade, downgrade = directive.upgrade_ops, directive.downgrade_ops
    assert upgrade is not None  # noqa: S101 -- there is one database
    assert downgrade is not None  # noqa: S101 -- there is one database
    dialect = context.dialect
    assert database.base is not None  # noqa: S101 -- a history has models
    connection = context.connection
    assert connection is not None  # noqa: S101 -- it was compared with a database
    unasked = rename(upgrade, context, ask)
    drop_tables_last(upgrade)
    if dialect.name != "sqlite":
        break_cycles(upgrade)
    if dialect.name == "postgresql":
        set_defaults_again(upgrade, database.base.metadata)
    if dialect.name == "mysql":
        drop_indexes_of_keys(upgrade, connection)
    upgrade.reverse_into(downgrade)
    for each in (upgrade, downgrade):
        arrange(each, connection, database.base.metadata)
        if dialect.name == "postgresql":
            cast_new_types(each, dialect)
    limits = [
        *map(str, of_columns(new_columns(upgrade), dialect)),
        *map(str, of_indexes(new_indexes(upgrade), dialect)),
    ]
    if limits and LIMITS not in silenced:
        raise CommandError(
            "\n".join(
                [
                    f"{database.name}: ({LIMITS}) the server would not keep what the models say:",
                    *(f"  {each}" for each in limits),
                    f"  or, if that is what you want, have SILENCED_CHECKS={LIMITS} in .env",
                ]
            )
        )
    done = said(upgrade.as_diffs())
    risks = [
        Risk(
            "migrations.W001",
            each,
            "If that is a rename, say so in the migration, or what it holds is lost:"
            " op.alter_column(..., new_column_name=...), or op.rename_table()",
        )
        for each in unasked
    ]
    remarks = [str(each) for each in risks if each.id not in silenced]
    remarked: list[ops.MigrateOperation] = list(map(Remark, remarks))
    for op in upgrade.ops:
        if isinstance(op, ops.ModifyTableOps):
            op.ops[:] = with_remarks(op.ops, dialect, silenced, remarks, upgrade)
            remarked.append(op)
        else:
            remarked += with_remarks([op], dialect, silenced, remarks, upgrade)
    upgrade.ops[:] = remarked
    return [*done, *remarks]


def with_remarks(
    operations: list[Any],
    dialect: Dialect,
    silenced: Collection[str],
    remarks: list[str],
    upgrade: ops.UpgradeOps,
) -> list[ops.MigrateOperation]:
    """Put a remark before each operation that has a risk, and add it to `remarks`."""
    new = {each.table_name for each in of_kind(upgrade, ops.CreateTableOp)}
    found: list[ops.MigrateOperation] = []
    for op in operations:
        table = getattr(op, "table_name", None) or getattr(op, "source_table", None)
        risks = () if table in new else (*of_table(op, dialect), *of_column(op, dialect))
        for risk in dict.fromkeys(risks):
            if risk.id not in silenced:
                remarks.append(str(risk))
                found.append(Remark(str(risk)))
        found.append(op)
    return found


def new_columns(upgrade: ops.UpgradeOps) -> Iterator[Column[Any]]:
    """Yield columns that come, or get another type."""
    for op in upgrade.ops:
        if isinstance(op, ops.CreateTableOp):
            yield from op.to_table().columns
        for each in op.ops if isinstance(op, ops.ModifyTableOps) else ():
            if isinstance(each, ops.AddColumnOp):
                table = ops.CreateTableOp(each.table_name, [each.to_column()]).to_table()
                yield from table.columns
            if isinstance(each, ops.AlterColumnOp) and each.modify_type is not None:
                column: Column[Any] = Column(each.column_name, each.modify_type)
                yield from ops.CreateTableOp(each.table_name, [column]).to_table().columns


def new_indexes(upgrade: ops.UpgradeOps) -> Iterator[Index]:
    """Yield indexes that come."""
    for op in upgrade.ops:
        for each in op.ops if isinstance(op, ops.ModifyTableOps) else [op]:
            if isinstance(each, ops.CreateIndexOp):
                yield each.to_index()


def break_cycles(upgrade: ops.UpgradeOps) -> None:
    """Have foreign keys made after the tables, and dropped before them, where these refer so."""
    created = of_kind(upgrade, ops.CreateTableOp)
    for place, table in enumerate(created):
        for key in keys_to(table, created[place + 1 :]):
            upgrade.ops.append(ops.CreateForeignKeyOp.from_constraint(key))
    dropped = of_kind(upgrade, ops.DropTableOp)
    for place, table in enumerate(dropped):
        for key in keys_to(table._reverse, dropped[:place]):  # noqa: SLF001 -- Alembic's
            upgrade.ops.insert(0, ops.DropConstraintOp.from_constraint(key))


def keys_to(table: ops.CreateTableOp, others: list[Any]) -> list[ForeignKeyConstraint]:
    """Take out of a table its foreign keys to others, and return them."""
    names = {(each.schema, each.table_name) for each in others}
    found = [
        each
        for each in table.columns
        if isinstance(each, ForeignKeyConstraint) and target_of(each) in names
    ]
    table.columns = [each for each in table.columns if not any(each is key for key in found)]
    return found


def target_of(key: ForeignKeyConstraint) -> tuple[str | None, str]:
    """Return the schema and the name of the table that a foreign key refers to."""
    schema, _, name = key.elements[0].target_fullname.rpartition(".")[0].rpartition(".")
    return schema or None, name


def set_defaults_again(upgrade: ops.UpgradeOps, metadata: MetaData) -> None:
    """Say the default of a column that gets another type: PostgreSQL does not cast it."""
    for table in of_kind(upgrade, ops.ModifyTableOps):
        model: Any = metadata.tables.get(".".join(filter(None, (table.schema, table.table_name))))
        for op in of_kind(table, ops.AlterColumnOp):
            if (
                model is not None
                and op.modify_type is not None
                and op.modify_server_default is False
                and isinstance(op.existing_server_default, DefaultClause)
            ):
                op.modify_server_default = model.c[op.column_name].server_default


def cast_new_types(container: ops.OpContainer, dialect: Dialect) -> None:
    """Cast the values of a column to its new type: PostgreSQL does not do so implicitly."""
    for table in of_kind(container, ops.ModifyTableOps):
        table.ops[:] = [new for each in table.ops for new in with_cast(each, dialect)]


def with_cast(op: ops.MigrateOperation, dialect: Dialect) -> Iterator[ops.MigrateOperation]:
    """Change a type with a cast, and without the default meanwhile."""
    if not isinstance(op, ops.AlterColumnOp) or op.modify_type is None:
        yield op
        return
    via = "::text" if is_native(op.modify_type) or is_native(op.existing_type) else ""
    process = dialect.type_compiler_instance.process
    type_, old = process(op.modify_type), process(op.existing_type) if op.existing_type else ""
    cast = f"{via}::{type_}"
    if MOMENT.match(type_) and MOMENT.match(old) and ("WITHOUT" in type_) != ("WITHOUT" in old):
        cast = " AT TIME ZONE 'UTC'"  # Otherwise the migrating connection's time zone would apply.
    op.kw["postgresql_using"] = f"{quoted(op.column_name)}{cast}"
    default, before = op.modify_server_default, op.existing_server_default
    if default is False or not isinstance(before, DefaultClause):
        yield op
        return

    def change(type_: Any, old: Any, new: Any) -> ops.AlterColumnOp:
        return ops.AlterColumnOp(
            op.table_name,
            op.column_name,
            schema=op.schema,
            existing_type=type_,
            existing_server_default=old,
            modify_server_default=new,
        )

    yield change(op.existing_type, before, None)
    op.modify_server_default, op.existing_server_default = False, False
    yield op
    if default is not None:
        yield change(op.modify_type, None, default)


@renderers.dispatch_for(ops.AlterColumnOp, replace=True)
def render_alter_column(context: AutogenContext, op: ops.AlterColumnOp) -> str:
    """Write as Alembic does, with the cast that it leaves out."""
    if context.dialect.name != "mysql":  # Alembic warns of what it has written itself.
        op.kw.pop("autoincrement", None)
    code: str = vars(render)["_alter_column"](context, op)
    using = op.kw.get("postgresql_using")
    return f"{code[:-1]}, postgresql_using={using!r})" if using else code


class Concurrently(ops.MigrateOperation):
    """An index created or dropped without blocking writes, outside of a transaction."""

    def __init__(self, op: ops.MigrateOperation) -> None:
        self.op = op

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Say what differs."""
        return self.op.to_diff_tuple()


@renderers.dispatch_for(Concurrently)
def render_concurrently(context: AutogenContext, op: Concurrently) -> list[str]:
    """Write the operation in a block of its own."""
    return ["with op.get_context().autocommit_block():", *render_op(context, op.op), ""]


def names_of_foreign_keys(
    connection: Connection, table: str, schema: str | None
) -> dict[tuple[str, ...], str]:
    """Return the names of a table's foreign keys, by their columns."""
    inspector = inspect(connection)
    if not inspector.has_table(table, schema):
        return {}
    keys: list[Any] = inspector.get_foreign_keys(table, schema)
    return {tuple(each["constrained_columns"]): each["name"] for each in keys}


def arrange(container: ops.OpContainer, connection: Connection, metadata: MetaData) -> None:
    """Order operations so that servers take them; leave out what a dropped table takes along."""
    dialect = connection.dialect
    created = {each.table_name for each in of_kind(container, ops.CreateTableOp)}
    dropped = {each.table_name for each in of_kind(container, ops.DropTableOp)}
    made: list[ops.MigrateOperation] = []
    unmade: list[ops.MigrateOperation] = []
    gone: set[Any] = set()
    if dialect.name == "mysql":
        gone = {
            each.constraint_name
            for table in of_kind(container, ops.ModifyTableOps)
            for each in table.ops
            if isinstance(each, ops.DropConstraintOp) and is_foreign_key(each)
        }
        for each in keys_in_the_way(container, connection, metadata):
            if each.constraint_name not in gone:
                gone.add(each.constraint_name)
                unmade.append(within_table(each.reverse(), each))
                made.append(within_table(each, each))

    def keeps(op: Any) -> bool:
        if isinstance(op, ops.DropIndexOp) and op.table_name in dropped:
            return False
        kw: dict[str, Any] = getattr(op, "kw", {})
        if dialect.name == "postgresql" and kw.get("postgresql_concurrently"):
            if op.table_name in created:  # It has no rows yet.
                op.kw = {key: kw[key] for key in kw if key != "postgresql_concurrently"}
                return True
            (unmade if isinstance(op, ops.DropIndexOp) else made).append(Concurrently(op))
            return False
        return True

    for table in of_kind(container, ops.ModifyTableOps):
        table.ops[:] = [each for each in table.ops if keeps(each)]
        if dialect.name == "mysql":  # It drops no index that a foreign key needs.
            table.ops.sort(key=is_foreign_key, reverse=True)
            names = names_of_foreign_keys(connection, table.table_name, table.schema)
            table.ops[:] = [
                new for each in table.ops for new in with_index(each, table, metadata, names, gone)
            ]
    rest = [
        each
        for each in container.ops
        if keeps(each) and not (isinstance(each, ops.ModifyTableOps) and each.is_empty())
    ]
    # A default may be a label that comes or goes.
    enums = [each for each in rest if isinstance(each, ChangeEnum)]
    container.ops[:] = [*enums, *unmade, *(each for each in rest if each not in enums), *made]


def keys_in_the_way(
    container: ops.OpContainer, connection: Connection, metadata: MetaData
) -> list[ops.CreateForeignKeyOp]:
    """Find foreign keys that keep MySQL from changing a type: that of a column on either side."""
    changed = {
        (table.schema, table.table_name, op.column_name)
        for table in of_kind(container, ops.ModifyTableOps)
        for op in of_kind(table, ops.AlterColumnOp)
        if op.modify_type is not None
    }
    found: list[ops.CreateForeignKeyOp] = []
    for model in metadata.tables.values() if changed else ():
        names = names_of_foreign_keys(connection, model.name, model.schema)
        for key in model.foreign_key_constraints:
            columns = [*key.columns, *(each.column for each in key.elements)]
            create = ops.CreateForeignKeyOp.from_constraint(key)
            create.constraint_name = names.get(tuple(each.name for each in key.columns))
            if create.constraint_name and any(
                (each.table.schema, each.table.name, each.name) in changed for each in columns
            ):
                found.append(create)
    return found


def drop_indexes_of_keys(upgrade: ops.UpgradeOps, connection: Connection) -> None:
    """Drop the index that MySQL made with a foreign key, which would stay without it."""
    made = {
        op.constraint_name
        for table in of_kind(upgrade, ops.ModifyTableOps)
        for op in of_kind(table, ops.CreateForeignKeyOp)
    }
    for table in of_kind(upgrade, ops.ModifyTableOps):
        gone = {
            op.constraint_name
            for op in of_kind(table, ops.DropConstraintOp)
            if is_foreign_key(op) and op.constraint_name not in made
        }
        going = {op.index_name for op in of_kind(table, ops.DropIndexOp)}
        indexes = inspect(connection).get_indexes(table.table_name, table.schema) if gone else ()
        keys = [op for op in table.ops if is_foreign_key(op)]
        rest = [op for op in table.ops if op not in keys]
        dropped = [
            ops.CreateIndexOp(
                each["name"],
                table.table_name,
                [str(name) for name in each["column_names"]],
                schema=table.schema,
            ).reverse()
            for each in indexes
            if each["name"] in gone - going
        ]
        table.ops[:] = [*keys, *dropped, *rest]


def with_index(
    op: ops.MigrateOperation,
    table: ops.ModifyTableOps,
    metadata: MetaData,
    names: dict[tuple[str, ...], str],
    gone: set[Any],
) -> Iterator[ops.MigrateOperation]:
    """Take the foreign key off while its index goes: made again, it has one of the server's own.

    `names` are those that foreign keys have, by their columns; `gone`, those that are off already.
    """
    model = metadata.tables.get(".".join(filter(None, (table.schema, table.table_name))))
    part: Any = None
    if isinstance(op, ops.DropIndexOp):
        part = op.to_index()
    elif isinstance(op, ops.DropConstraintOp) and op.constraint_type == "unique":
        part = op.to_constraint()
    if part is not None and model is not None:
        columns = tuple(each.name for each in part.columns)
        for key in model.foreign_key_constraints:
            own = tuple(each.name for each in key.columns)
            create = ops.CreateForeignKeyOp.from_constraint(key)
            create.constraint_name = names.get(own, key.name)
            if columns[: len(own)] == own and create.constraint_name not in gone:
                yield from (create.reverse(), op, create)
                return
    yield op


def drop_tables_last(upgrade: ops.UpgradeOps) -> None:
    """Drop tables after the foreign keys that refer to them."""
    dropped = of_kind(upgrade, ops.DropTableOp)
    rest = [each for each in upgrade.ops if each not in dropped]
    changed = [place for place, each in enumerate(rest) if isinstance(each, ops.ModifyTableOps)]
    if changed:
        rest[changed[-1] + 1 : changed[-1] + 1] = dropped
        upgrade.ops[:] = rest


def within_table(op: ops.MigrateOperation, key: ops.CreateForeignKeyOp) -> ops.ModifyTableOps:
    """Put an operation on a foreign key into one on its table."""
    return ops.ModifyTableOps(key.source_table, [op], schema=key.kw.get("source_schema"))


def is_foreign_key(op: object) -> bool:
    """Whether an operation drops a foreign key."""
    return isinstance(op, ops.DropConstraintOp) and op.constraint_type == "foreignkey"


def name_of(changes: list[str]) -> str:
    """Say what a migration does, as its name: that of its first change of a table."""
    own = [each for each in changes if not each.startswith(("migrations.", "left "))]
    first = next((each for each in own if re.match(r"\w+ (table|column) ", each)), own[0])
    words = re.sub(r"^(add|remove) column ", r"\1 ", first.partition(" from ")[0])
    return re.sub(r"^add table", "create", words).replace(".", " ")


def tidy(code: str) -> str:
    """Lint and format with ruff, where there is ruff; what it cannot mend is for its next run.

    Alembic's comments around what it wrote are left out.
    """
    code = re.sub(r"^ *# ### .* ###\n", "", code, flags=re.MULTILINE)
    for options in ("check --fix", "format") if find_spec("ruff") else ():
        ruff = [sys.executable, "-m", "ruff", *options.split(), "--quiet", "-"]
        done = subprocess.run(  # noqa: S603 -- ours
            ruff, input=code, check=False, capture_output=True, encoding="utf-8"
        )
        code = done.stdout or code
    return code
