"""System checks: what is wrong with the databases, and what to do about it."""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from alembic.util import CommandError

from . import migrations
from .database import Database, Databases
from .errors import DatabaseError, NotConfigured
from .settings import environment


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. Ids are stable; those with an E fail the check, those with a W do not."""

    id: str
    database: str
    text: str
    hint: str = ""

    @property
    def is_error(self) -> bool:
        """Whether this finding fails the check."""
        return ".E" in self.id


async def check(databases: Iterable[Database]) -> AsyncGenerator[Finding]:
    """Check settings, connections and schemas; one connection to each database."""
    variables = environment()
    addresses: dict[str, str] = {}
    for database in databases:
        try:
            settings = database.read_settings(variables)
        except NotConfigured as error:
            for fault in error.faults:
                yield Finding("database.E001", database.name, fault)
            continue
        address = settings.url.set(query={}).render_as_string()
        other = addresses.setdefault(address, database.name)
        if other != database.name:
            yield Finding(
                "database.E003",
                database.name,
                f"is the same database as {other}: their migrations would mix",
                f"set {database.env_prefix}URL to a database of its own",
            )
            continue
        async for finding in check_schema(database):
            yield finding


async def check_schema(database: Database) -> AsyncGenerator[Finding]:
    """Connect, and compare the schema with the migrations and the models."""
    try:
        if database.base is None:
            async with migrations.connect(database):
                return
        pending = [each for each in await migrations.history(database) if not each.applied]
        if pending:
            yield Finding(
                "database.W001",
                database.name,
                f"{len(pending)} migrations are not applied, from {pending[0].revision} on",
                f"run `manage.py migrate --database {database.name}`",
            )
        elif await migrations.changes(database):
            yield Finding(
                "database.W002",
                database.name,
                "the models ask for what no migration makes",
                f"run `manage.py makemigrations --database {database.name} MESSAGE`",
            )
    except (DatabaseError, CommandError) as error:
        yield Finding("database.E002", database.name, str(error))


def check_variables(databases: Databases) -> list[Finding]:
    """Find variables that miss every database by a letter or two."""
    return [
        Finding(
            "database.W003",
            next(each.name for each in databases.values() if nearest.startswith(each.env_prefix)),
            f"{name} is read by nobody",
            f"did you mean {nearest}?",
        )
        for name, nearest in databases.misspelt_variables().items()
    ]
