"""Whether the schema is what the migrations and the models ask for."""

from collections.abc import AsyncGenerator

from alembic.util import CommandError

from .. import migrations
from .finding import Finding, Subject

SHOWN = 5
"""Changes that a finding names."""


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
        elif changes := await migrations.changes(database):
            more = [f"{len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
            yield subject.finding(
                "database.W002",
                f"the models ask for what no migration makes: {', '.join(changes[:SHOWN] + more)}",
                f"run `manage.py makemigrations --database {database.name} MESSAGE`",
            )
    except CommandError as error:
        yield subject.finding("database.E002", str(error).removeprefix(f"{database.name}: "))
