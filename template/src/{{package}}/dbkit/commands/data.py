"""The commands of `manage.py` that make databases, and what empties, saves and fills them."""

# ruff: noqa: PLC0415 -- as in command_line.py
import asyncio
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .service import DatabaseOption, Service, apply

if TYPE_CHECKING:
    from ..database.database import Database

ConfirmOption = Annotated[
    str | None,
    typer.Option(metavar="HOST/NAME", help="Which one, if it is not the development's own."),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE")]


def must_be_meant(databases: "Iterable[Database]", confirm: str | None) -> None:
    """End, unless these are the development's own databases, or `confirm` names the one it is."""
    from ..settings.database import environment

    variables = environment()
    for each in databases:
        if not each.has_url(variables) and find_spec("pytest"):
            continue  # On the service's own server, or SQLite's file, in development.
        url = each.read_settings(variables).url
        named = url.host or url.query.get("host") or url.query.get("unix_socket", "")
        host = named if isinstance(named, str) else ",".join(named)
        port = f":{url.port}" if url.port else ""
        place = f"{host}{port}/{url.database}" if host else str(url.database)
        if confirm != place:
            sys.exit(
                f"{each.name}: is {place}, which has a URL or is in production: nothing was done.\n"
                f"  If all that it holds is to go: --database {each.name} --confirm {place}"
            )


@contextmanager
def meant(
    context: typer.Context, database: str | None, confirm: str | None
) -> "Generator[list[Database]]":
    """Yield the databases whose contents may go, with the servers of development running."""
    from .development import development_servers

    service: Service = context.obj
    chosen = service.migrated(database)
    must_be_meant(chosen, confirm)
    with development_servers(chosen):
        yield chosen


def create(
    context: typer.Context,
    database: DatabaseOption = None,
    role: Annotated[
        str | None,
        typer.Option(help="Make a role that reads and writes, and owns no table; or GRANT again."),
    ] = None,
) -> None:
    """Create databases, or a role for a service.

    Those that are there already stay as they are. The password of a new role is asked for, or read
    from the input.
    """
    from . import roles, servers
    from .development import development_servers

    service: Service = context.obj
    chosen = service.migrated(database)
    if role and len(chosen) > 1:
        sys.exit("a role is made for one database: name it with --database")
    with development_servers(chosen):
        for each in chosen:
            work = roles.grant(each, role) if role else servers.create(each)
            typer.echo(f"{each.name}: {asyncio.run(work)}")


def reset(
    context: typer.Context, database: DatabaseOption = None, confirm: ConfirmOption = None
) -> None:
    """Drop, create, migrate and seed databases."""
    from . import servers

    with meant(context, database, confirm) as chosen:
        for each in chosen:
            typer.echo(f"{each.name}: {asyncio.run(servers.recreate(each, force=confirm is None))}")
            apply(each)
        if find_spec(seeds()):
            asyncio.run(run_seeds(context.obj))


def flush(
    context: typer.Context, database: DatabaseOption = None, confirm: ConfirmOption = None
) -> None:
    """Delete all rows; the tables stay."""
    from . import servers

    with meant(context, database, confirm) as chosen:
        for each in chosen:
            typer.echo(f"{each.name}: emptied {asyncio.run(servers.empty(each))} tables")


def seeds() -> str:
    """Name the module that has the data to begin with."""
    from ..database.engine import SERVICE

    return f"{SERVICE}.seeds"


async def run_seeds(service: Service) -> None:
    """Run the owner's `seed()`, with the databases open."""
    from .outside import opened

    async with opened(service.databases):
        await import_module(seeds()).seed()
    typer.echo("seeded")


async def seed(context: typer.Context) -> None:
    """Insert the data to begin with.

    It runs the `seed()` of the service's `seeds.py`.
    """
    if not find_spec(seeds()):
        sys.exit(
            f"there is no module {seeds()}; in it, `async def seed() -> None` inserts the data to"
            " begin with"
        )
    await run_seeds(context.obj)


def dump(context: typer.Context, file: FileArgument, database: DatabaseOption = None) -> None:
    """Save a database in a new file.

    That is SQL, or a copy of SQLite's file. Without --database, that of the first.
    """
    from . import backups
    from .development import development_servers

    service: Service = context.obj
    chosen = service.selected(database)[0]
    with development_servers([chosen]):
        backups.dump(chosen, service.called_from / file)
    typer.echo(f"{chosen.name}: saved in {file}")


def load(
    context: typer.Context,
    file: FileArgument,
    database: DatabaseOption = None,
    confirm: ConfirmOption = None,
) -> None:
    """Replace a database by what was saved.

    The file is one of `dump`. Without --database, the first one is replaced.
    """
    from . import backups

    service: Service = context.obj
    with meant(context, database or next(iter(service.databases)), confirm) as (chosen,):
        backups.load(chosen, service.called_from / file)
    typer.echo(f"{chosen.name}: is as it was in {file}")


COMMANDS = (create, reset, flush, seed, dump, load)
