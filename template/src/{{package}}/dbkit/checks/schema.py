"""Whether the schema is what the migrations and the models ask for."""

from collections.abc import AsyncGenerator

from alembic.util import CommandError

from .. import migrations
from .finding import Finding, Subject


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
        elif await migrations.changes(database):
            yield subject.finding(
                "database.W002",
                "the models ask for what no migration makes",
                f"run `manage.py makemigrations --database {database.name} MESSAGE`",
            )
    except CommandError as error:
        yield subject.finding("database.E002", str(error).removeprefix(f"{database.name}: "))
