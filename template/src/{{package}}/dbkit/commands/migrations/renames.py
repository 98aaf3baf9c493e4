"""Renames, which Alembic sees as a drop and an add."""

from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.migration import MigrationContext
from alembic.operations import ops
from sqlalchemy import Column

from . import postgresql

Ask = Callable[[str], bool]
DROPS = (ops.DropIndexOp, ops.DropConstraintOp)
SIMILAR = 0.75
"""How alike names of columns are, from 0 to 1, that are asked about whatever their types."""


class RenameColumn(ops.AlterColumnOp):
    """A column gets another name."""

    def reverse(self) -> "RenameColumn":
        """Return the way back."""
        default: Any = self.existing_server_default
        return RenameColumn(
            self.table_name,
            str(self.modify_name),
            schema=self.schema,
            existing_type=self.existing_type,
            existing_nullable=self.existing_nullable,
            existing_server_default=default,
            modify_name=self.column_name,
        )

    def to_diff_tuple(self) -> Any:
        """Say what differs."""
        return (f"rename column {self.table_name}.{self.column_name} to {self.modify_name}",)


class RenameTable(ops.RenameTableOp):
    """A table gets another name."""

    def reverse(self) -> "RenameTable":
        """Return the way back."""
        return RenameTable(self.new_table_name, self.table_name, schema=self.schema)

    def to_diff_tuple(self) -> Any:
        """Say what differs."""
        return (f"rename table {self.table_name} to {self.new_table_name}",)


@renderers.dispatch_for(RenameTable)
def render_rename(_context: AutogenContext, op: RenameTable) -> str:
    """Write a call of `op.rename_table()`."""
    schema = f", schema={op.schema!r}" if op.schema else ""
    return f"op.rename_table({op.table_name!r}, {op.new_table_name!r}{schema})"


def of_kind(container: ops.OpContainer, kind: type[ops.MigrateOperation]) -> list[Any]:
    """Return the operations of one kind."""
    return [each for each in container.ops if isinstance(each, kind)]


def rename(upgrade_ops: ops.UpgradeOps, context: MigrationContext, ask: Ask) -> list[str]:
    """Ask whether what goes and what comes are the same, and rename if so.

    Return what is asked for each pair that stays as it is.
    """
    left: list[str] = []

    def is_same(old: ops.DropColumnOp, new: ops.AddColumnOp) -> bool:
        likeness = SequenceMatcher(None, name_of(old), name_of(new)).ratio()
        return likeness >= SIMILAR or is_alike(context, old.to_column(), new.to_column())

    def is_same_table(old: ops.DropTableOp, new: ops.CreateTableOp) -> bool:
        if old.schema != new.schema and context.dialect.name != "postgresql":
            return False
        before, after = old.to_table().columns, new.to_table().columns
        return 2 * len({*before.keys()} & {*after.keys()}) >= max(len(before), len(after))

    for old, new in pairs(
        of_kind(upgrade_ops, ops.DropTableOp),
        of_kind(upgrade_ops, ops.CreateTableOp),
        is_same_table,
        lambda each: each.table_name,
    ):
        names = [str(postgresql.Name(each.schema, each.table_name)) for each in (old, new)]
        if ask(f"Is table {names[1]} the table {names[0]}, renamed?"):
            rename_table(upgrade_ops, old, new, context)
        else:
            left.append(f"table {names[0]} goes, and table {names[1]} comes")
    for table in of_kind(upgrade_ops, ops.ModifyTableOps):
        for old, new in pairs(
            of_kind(table, ops.DropColumnOp), of_kind(table, ops.AddColumnOp), is_same, name_of
        ):
            names = f"{table.table_name}.{name_of(old)}", f"{table.table_name}.{name_of(new)}"
            if ask(f"Is {names[1]} the column {names[0]}, renamed?"):
                rename_column(upgrade_ops, table, old, new, context)
            else:
                left.append(f"{names[0]} goes, and {names[1]} comes")
    return left + rename_labels(upgrade_ops, ask)


def rename_labels(upgrade_ops: ops.UpgradeOps, ask: Ask) -> list[str]:
    """Ask the same of labels of enums."""
    left: list[str] = []
    for place, op in enumerate(upgrade_ops.ops):
        if isinstance(op, postgresql.ChangeEnum) and (labels := op.renamed):
            before, after = labels
            if ask(f"Is {after!r} of enum {op.name} the label {before!r}, renamed?"):
                upgrade_ops.ops[place] = postgresql.rename(op.name, before, after)
            else:
                left.append(f"{before!r} of enum {op.name} goes, and {after!r} comes")
    return left


def is_alike(context: MigrationContext, old: Column[Any], new: Column[Any]) -> bool:
    """Whether two columns have the same type, as far as Alembic can tell."""
    impl: Any = context.impl
    return not impl.compare_type(old, new)


def pairs(
    gone: list[Any],
    come: list[Any],
    is_same: Callable[[Any, Any], bool],
    name: Callable[[Any], str],
) -> Iterator[tuple[Any, Any]]:
    """Pair what goes with what comes and is alike, the most similar names first."""
    found = sorted(
        ((old, new) for old in gone for new in come if is_same(old, new)),
        key=lambda pair: SequenceMatcher(None, name(pair[0]), name(pair[1])).ratio(),
        reverse=True,
    )
    seen: set[object] = set()
    for old, new in found:
        if not seen & {old, new}:
            seen |= {old, new}
            yield old, new


def name_of(op: ops.AddColumnOp | ops.DropColumnOp) -> str:
    """Return the name of the column that an operation is about."""
    return op.column_name if isinstance(op, ops.DropColumnOp) else op.column.name


def rename_table(
    upgrade_ops: ops.UpgradeOps,
    old: ops.DropTableOp,
    new: ops.CreateTableOp,
    context: MigrationContext,
) -> None:
    """Rename a table in place of dropping it; indexes and constraints go before, and come after."""
    default = str(context.dialect.default_schema_name)
    before: list[ops.MigrateOperation] = []
    for table in of_kind(upgrade_ops, ops.ModifyTableOps):
        dropped = [each for each in table.ops if isinstance(each, DROPS)]
        before.append(ops.ModifyTableOps(table.table_name, dropped, schema=table.schema))
        table.ops[:] = [each for each in table.ops if each not in dropped]
    renamed: list[ops.MigrateOperation] = []
    if old.table_name != new.table_name:
        renamed.append(RenameTable(old.table_name, new.table_name, schema=old.schema))
    if old.schema != new.schema:
        schemas = [each.schema or default for each in (old, new)]
        renamed.append(postgresql.move(new.table_name, *schemas))
    if changes := column_changes(old, new, context):
        renamed.append(ops.ModifyTableOps(new.table_name, changes, schema=new.schema))
    # Where the table would be made: after its schema.
    place = upgrade_ops.ops.index(new)
    first, rest = upgrade_ops.ops[:place], upgrade_ops.ops[place + 1 :]
    upgrade_ops.ops[:] = [each for each in (*before, *first, *renamed, *rest) if each is not old]


def column_changes(
    old: ops.DropTableOp, new: ops.CreateTableOp, context: MigrationContext
) -> list[ops.MigrateOperation]:
    """List what a renamed table's columns need to be as those of the new one."""
    before, after = old.to_table().columns, new.to_table().columns
    table, schema = new.table_name, new.schema
    found: list[ops.MigrateOperation] = []
    for each in before:
        if each.name not in after:
            found.append(ops.DropColumnOp.from_column_and_tablename(schema, table, each))
        elif change := column_change(table, schema, each, after[each.name], context):
            found.append(change)
    found += [
        ops.AddColumnOp.from_column_and_tablename(schema, table, each)
        for each in after
        if each.name not in before
    ]
    return found


def column_change(
    table: str,
    schema: str | None,
    before: Column[Any],
    after: Column[Any],
    context: MigrationContext,
) -> ops.AlterColumnOp | None:
    """Change the type and NULL of a column, which has its new name, if they differ."""
    op = ops.AlterColumnOp(
        table,
        after.name,
        schema=schema,
        existing_type=before.type,
        existing_nullable=before.nullable,
        existing_server_default=before.server_default or False,
    )
    if not is_alike(context, before, after):
        op.modify_type = after.type
    if before.nullable != after.nullable:
        op.modify_nullable = after.nullable
    return op if op.has_changes() else None


def rename_column(
    upgrade_ops: ops.UpgradeOps,
    table: ops.ModifyTableOps,
    old: ops.DropColumnOp,
    new: ops.AddColumnOp,
    context: MigrationContext,
) -> None:
    """Rename a column in place of dropping it."""
    before, after = old.to_column(), new.to_column()
    renamed = RenameColumn(
        table.table_name,
        old.column_name,
        schema=table.schema,
        existing_type=before.type,
        existing_nullable=before.nullable,
        existing_server_default=before.server_default or False,
        modify_name=after.name,
    )
    # Apart from other changes, so that SQLite copies no table; after indexes of the old name went.
    first = [each for each in table.ops if isinstance(each, DROPS)]
    rest = [each for each in table.ops if each not in {old, new, *first}]
    if change := column_change(table.table_name, table.schema, before, after, context):
        rest.insert(0, change)
    table.ops[:] = rest
    place = upgrade_ops.ops.index(table)
    earlier = ops.ModifyTableOps(table.table_name, first, schema=table.schema)
    upgrade_ops.ops[place:place] = [earlier, renamed]
