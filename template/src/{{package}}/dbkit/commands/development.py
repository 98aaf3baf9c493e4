"""Where databases are in development: on servers of the service's own, if they have no URL."""

import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import typer

from ..database.database import Database
from ..errors import EmbeddedFailed, NotConfigured
from ..settings.database import environment
from ..settings.misspelt import meant_for
from ..settings.urls import EXAMPLES, Dialect


@contextmanager
def development_servers(databases: Iterable[Database]) -> Generator[None]:
    """Give each database that has no URL one on a server of the service's own, while this lasts.

    Only where the development dependencies are installed: in production, a database without
    a URL is an error. The servers keep their data in .postgres/ and .mariadb/.
    """
    missing: dict[Dialect, list[Database]] = {}
    variables = environment()
    for database in databases:
        named = database.replica_of or database.has_url(variables)
        if database.dialect != "sqlite" and not named:
            missing.setdefault(database.dialect, []).append(database)
    if not missing:  # As in production, which has no use for what starts servers.
        yield
        return
    from .embedded import EMBEDDED  # noqa: PLC0415 -- see above

    faults: list[str] = []
    for dialect, theirs in missing.items():
        try:
            EMBEDDED[dialect].find()
        except EmbeddedFailed as error:
            where = f"URL: not set. Where to connect, as {EXAMPLES[dialect]}."
            faults += [*(f"{each.env_prefix}{where}" for each in theirs), str(error)]
    if faults:
        raise NotConfigured(faults)
    with ExitStack() as stack:
        for dialect, theirs in missing.items():
            kind = EMBEDDED[dialect]
            server = stack.enter_context(kind(Path(f".{kind.kind}")))  # Git ignores it.
            for database in theirs:
                say_unread(database)
                server.create_database(database.name)
                url = server.url(database.name).render_as_string(hide_password=False)
                os.environ[f"{database.env_prefix}URL"] = url
                stack.callback(os.environ.pop, f"{database.env_prefix}URL")
        yield


def say_unread(database: Database) -> None:
    """Say which variables are not read that may be meant for this database."""
    prefix = database.env_prefix
    if unread := meant_for(environment(), database.name, prefix, database.dialect):
        typer.echo(
            f"{database.name}: {prefix}URL is not set, so it is on a server of the service's own;"
            f" nothing reads {', '.join(unread)}",
            err=True,
        )
