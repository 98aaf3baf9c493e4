"""Whether the schema is what the migrations and the models ask for."""

from collections.abc import AsyncGenerator

from alembic.util import CommandError

from .. import migrations
from .finding import Finding, Subject

SHOWN = 5
"""Changes, tables or columns that a finding names."""


async def check_schema(subject: Subject) -> AsyncGenerator[Finding]:
    """Compare the schema with the migrations and the models, where they are ours."""
    database = subject.database
    if database.base is None:
        return
    try:
        pending = [each for each in await migrations.history(database) if not each.applied]
        if pending:
            yield subject.finding(
                "database.W001",
                f"migrations not applied: {len(pending)}, from {pending[0].revision} on",
                f"run `manage.py migrate --database {database.name}`",
            )
            return
        found = await migrations.compare(database)
        if found.unseen:
            yield subject.finding("models.E001", found.unseen, migrations.UNSEEN)
            return
        if changes := found.changes:
            yield subject.finding(
                "database.W002",
                f"the models ask for what no migration makes: {shown(changes)}",
                f"run `manage.py makemigrations --database {database.name}`",
            )
        if found.left_alone:
            yield subject.finding(
                "migrations.W012",
                f"neither the models nor a migration name {shown(found.left_alone)}",
                "migrations leave them alone; say so by Database(..., ignore_tables=[...]), or drop"
                " them by hand",
            )
        if found.limits:
            yield subject.finding(
                "migrations.W013",
                f"the server does not keep this as the models say: {shown(found.limits)}",
                "change the model, and run `manage.py makemigrations`",
            )
        if found.by_hand:
            yield subject.finding(
                "migrations.W014",
                f"makemigrations does not write this: {shown(found.by_hand)}",
                f"run `manage.py makemigrations --database {database.name} --empty`, and write it",
            )
    except CommandError as error:
        yield subject.finding("database.E002", str(error).removeprefix(f"{database.name}: "))


def shown(names: list[str]) -> str:
    """Name the first, and count the rest."""
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join(names[:SHOWN] + more)
