"""System checks: what is wrong with the databases, and what to do about it."""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy import URL

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
    addresses: dict[object, Database] = {}
    for database in databases:
        try:
            settings = database.read_settings(variables)
        except NotConfigured as error:
            for fault in error.faults:
                yield Finding("database.E001", database.name, fault)
            continue
        other = addresses.setdefault(address(settings.url), database)
        if other is not database and other.base and database.base:
            yield Finding(
                "database.E003",
                database.name,
                f"is the same database as {other.name}: their migrations would mix",
                f"set {database.env_prefix}URL to a database of its own",
            )
            continue
        async for finding in check_schema(database):
            yield finding


def address(url: URL) -> object:
    """Say which database a URL leads to, whoever asks and however it is written."""
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").resolve()
    host = url.query.get("host") or url.host or "localhost"
    loopback = host in {"127.0.0.1", "::1"}
    port = url.query.get("port") or url.port or 5432
    return "localhost" if loopback else host, str(port), url.database


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
                f"migrations not applied: {len(pending)}, from {pending[0].revision} on",
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
        text = str(error).removeprefix(f"{database.name}: ")
        yield Finding("database.E002", database.name, text)


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
