"""Alembic's environment, the same for every database; `migrations.configure()` fills it."""

from typing import Any

from alembic import context

attributes = context.config.attributes
database = attributes["database"]


def on_version_apply(*, step: Any, **_: Any) -> None:
    """Report one step: its direction, its revision and what it is about."""
    verb = "upgraded to" if step.is_upgrade else "downgraded from"
    attributes["on_step"](f"{verb} {step.up_revision_id}: {step.up_revision.doc}")


context.configure(
    connection=attributes["connection"],
    dialect_name=None if attributes["connection"] else database.dialect,
    target_metadata=database.base.metadata,
    literal_binds=attributes["connection"] is None,
    # SQLite cannot alter most of a table, so that Alembic copies it to a new one.
    render_as_batch=database.dialect == "sqlite",
    transactional_ddl=True,
    transaction_per_migration=True,
    on_version_apply=on_version_apply,  # pyright: ignore[reportArgumentType] -- called by keyword
)
with context.begin_transaction():
    context.run_migrations()
