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
        return is_alike(context, old.to_column(), new.to_column())

    def is_same_table(old: ops.DropTableOp, new: ops.CreateTableOp) -> bool:
        if old.schema != new.schema and context.dialect.name != "postgresql":
            return False
        before, after = old.to_table().columns, new.to_table().columns
        return before.keys() == after.keys() and all(
            is_alike(context, each, after[each.name]) for each in before
        )

    for old, new in pairs(
        of_kind(upgrade_ops, ops.DropTableOp),
        of_kind(upgrade_ops, ops.CreateTableOp),
        is_same_table,
        lambda each: each.table_name,
    ):
        names = [str(postgresql.Name(each.schema, each.table_name)) for each in (old, new)]
        if ask(f"Is table {names[1]} the table {names[0]}, renamed?"):
            rename_table(upgrade_ops, old, new, str(context.dialect.default_schema_name))
        else:
            left.append(f"table {names[0]} goes, and table {names[1]} comes")
    for table in of_kind(upgrade_ops, ops.ModifyTableOps):
        for old, new in pairs(
            of_kind(table, ops.DropColumnOp), of_kind(table, ops.AddColumnOp), is_same, name_of
        ):
            names = f"{table.table_name}.{name_of(old)}", f"{table.table_name}.{name_of(new)}"
            if ask(f"Is {names[1]} the column {names[0]}, renamed?"):
                rename_column(upgrade_ops, table, old, new)
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
    upgrade_ops: ops.UpgradeOps, old: ops.DropTableOp, new: ops.CreateTableOp, default: str
) -> None:
    """Rename a table in place of dropping it; indexes and constraints go before, and come after."""
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
    # Where the table would be made: after its schema.
    place = upgrade_ops.ops.index(new)
    first, rest = upgrade_ops.ops[:place], upgrade_ops.ops[place + 1 :]
    upgrade_ops.ops[:] = [each for each in (*before, *first, *renamed, *rest) if each is not old]


def rename_column(
    upgrade_ops: ops.UpgradeOps,
    table: ops.ModifyTableOps,
    old: ops.DropColumnOp,
    new: ops.AddColumnOp,
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
    if before.nullable != after.nullable:
        change = ops.AlterColumnOp(
            table.table_name,
            after.name,
            schema=table.schema,
            existing_type=after.type,
            existing_nullable=before.nullable,
            modify_nullable=after.nullable,
        )
        rest.insert(0, change)
    table.ops[:] = rest
    place = upgrade_ops.ops.index(table)
    earlier = ops.ModifyTableOps(table.table_name, first, schema=table.schema)
    upgrade_ops.ops[place:place] = [earlier, renamed]
