"""Alembic's environment, the same for every database; `migrations.history.configure()` fills it."""

import warnings
from typing import Any

from alembic import context

attributes = context.config.attributes


def on_version_apply(*, step: Any, **_: Any) -> None:
    """Report one step: its direction, its revision and what it is about."""
    verb = "upgraded to" if step.is_upgrade else "downgraded from"
    attributes["on_step"](f"{verb} {step.up_revision_id}: {step.up_revision.doc}")


context.configure(
    connection=attributes["connection"],
    dialect_name=None if attributes["connection"] else attributes["database"].dialect,
    literal_binds=attributes["connection"] is None,
    # Of SQLite and MySQL too, for which Alembic would have one transaction around all migrations.
    transactional_ddl=True,
    transaction_per_migration=True,
    on_version_apply=on_version_apply,  # pyright: ignore[reportArgumentType] -- called by keyword
    **attributes["comparison"].options(),
)
with (
    context.begin_transaction(),
    warnings.catch_warnings(),
):
    # SQLite's indexes on expressions, and types of extensions: we compare these ourselves.
    warnings.filterwarnings("ignore", r".*expression-based index")
    warnings.filterwarnings("ignore", "Did not recognize type")
    # Nor tables that refer to each other: their foreign keys are made after them.
    warnings.filterwarnings("ignore", "Cannot correctly sort tables")
    context.run_migrations()
