"""What the commands work on: a service, its databases, and one of them to be migrated."""

# ruff: noqa: PLC0415 -- as in command_line.py
import asyncio
import sys
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..database.database import Database
    from ..database.databases import Databases

DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="NAME", help="Only this database.")
]


class Service:
    """What the commands work on."""

    def __init__(self, databases: "Databases | str", app: str, root: Path) -> None:
        self._databases = databases
        self.app = app
        self.root = root
        self.called_from = root

    @cached_property
    def databases(self) -> "Databases":
        """The databases, imported if they are only named."""
        if isinstance(self._databases, str):
            module, _, attribute = self._databases.partition(":")
            return getattr(import_module(module), attribute)
        return self._databases

    def selected(self, name: str | None) -> "list[Database]":
        """Return the named database, or all."""
        if name is None:
            return list(self.databases.values())
        if name not in self.databases:
            sys.exit(f"no database {name}; there is {', '.join(self.databases)}")
        return [self.databases[name]]

    def migrated(self, name: str | None) -> "list[Database]":
        """Return the named database, or all, whose schema is ours; with its tables known."""
        chosen = [database for database in self.selected(name) if database.base]
        if name and (primary := self.databases[name].replica_of):
            sys.exit(
                f"{name} is a replica: what is migrated in {primary.name} comes to it by itself"
            )
        if not chosen:
            sys.exit(
                f"{name or 'no database'} has no migrations of ours: it is declared without a base"
            )
        import_module(self.app.partition(":")[0])
        return chosen


def apply(database: "Database", to: str = "head") -> None:
    """Migrate one database, and say each step."""
    from . import migrations

    def say(step: str) -> None:
        typer.echo(f"{database.name}: {step}")

    if not asyncio.run(migrations.migrate(database, to, on_step=say)):
        say("nothing to migrate")
