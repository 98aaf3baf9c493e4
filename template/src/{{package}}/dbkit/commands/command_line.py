"""The commands of `manage.py`. Each imports what it needs when it runs: `--help` is quick."""

# ruff: noqa: PLC0415 -- see above
import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from . import data
from . import pools as pools_commands
from .service import DatabaseOption, Service, apply

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

    from ..database.database import Database
    from ..database.databases import Databases
    from .checks import Finding


class Commands(typer.Typer):
    """A command line that answers what a person can cause with a message, not a traceback."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command."""
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            if message := message_of(error):
                sys.exit(message)
            raise

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:
        """Add a command, which may be `async def`."""
        add = super().command(name, **options)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            add(runnable(function, name))
            return function

        return decorate

    def add_typer(self, typer_instance: typer.Typer, **options: Any) -> None:
        """Add a group of commands, which may be `async def`."""
        for each in typer_instance.registered_commands:
            if each.callback is not None:
                each.callback = runnable(each.callback, each.name)
        super().add_typer(typer_instance, **options)


def runnable(function: Callable[..., Any], name: str | None) -> Callable[..., Any]:
    """Have a command run as a job of its name, and in an event loop if it is `async def`."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        from ..context import job

        named = name or function.__name__.replace("_", "-")
        with job(f"manage.py {named}"):
            result = function(*args, **kwargs)
            return asyncio.run(result) if iscoroutinefunction(function) else result

    return run


def message_of(error: Exception) -> str:
    """Say what went wrong, if it is what a person can cause; nothing if it is a bug."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from ..errors import DatabaseError

    match error:
        case DatabaseError() | CommandError():
            return str(error)
        case DBAPIError():
            return first_line(error)
        case PermissionError() | FileExistsError() | FileNotFoundError() if error.filename:
            return f"{error.filename}: {error.strerror}"
        case RuntimeError() if "python-multipart" in str(error):
            return "A parameter with Form() or File() needs a package: uv add python-multipart"
        case _:
            return ""


def manage(databases: "Databases | str", *, app: str, root: Path) -> typer.Typer:
    """Build the command line of the service whose application is `app` (`module:attribute`).

    Named in the same way, `databases` are imported by the commands that need them, and not by
    `--help`. Commands work in the folder `root`, wherever they are called from. Add your own
    with `@cli.command()`, `def` or `async def`; `opened()` has the databases for them.
    """
    service = Service(databases, app, root.resolve())
    cli = Commands(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Administer the service and its databases.",
    )

    @cli.callback()
    def prepare(context: typer.Context) -> None:  # pyright: ignore[reportUnusedFunction] -- typer calls it
        context.obj = service
        service.called_from = Path.cwd()
        os.chdir(service.root)

    schema = (migrate, makemigrations, showmigrations, inspectdb)
    for command in (check, *schema, startapp, *data.COMMANDS, shell, dbshell, runserver):
        cli.command()(command)
    typer.Typer.add_typer(cli, pools_commands.cli, name="pools")
    return cli


def check(
    context: typer.Context,
    database: DatabaseOption = None,
    fail_level: Annotated[
        Literal["error", "warning"], typer.Option(help="The least finding that fails the check.")
    ] = "error",
    *,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Also check servers, and the budget of connections.")
    ] = False,
) -> None:
    """Check settings, connections and schemas.

    With --deploy, run it where the variables are those of production.

    Each finding has a stable id and says what to do. The exit code is 1 if one fails the check.
    """
    from ..settings.database import environment
    from ..settings.service import read_service_settings
    from . import checks, template_version
    from .development import development_servers

    service: Service = context.obj
    chosen = service.selected(database)
    module, _, attribute = service.app.partition(":")
    application = getattr(import_module(module), attribute, None)
    package = import_module(module.partition(".")[0])

    async def collect() -> "list[Finding]":
        return [finding async for finding in checks.check(chosen, deploy=deploy)]

    # As the variables are without a server of our own.
    variables = checks.check_variables(service.databases)
    variables += checks.check_application(application)
    # First what a service that takes the kit has left, in the order in which it goes.
    findings = [each for path in package.__path__ for each in checks.check_sources(Path(path))]
    findings += checks.check_scopes(application)
    with development_servers(chosen):
        findings += asyncio.run(collect()) + variables
    if deploy:
        findings += checks.check_template(service.root)
    silenced = read_service_settings(environment()).silenced
    count = len(findings)
    findings = [each for each in findings if each.id not in silenced]
    for finding in findings:
        typer.echo(f"{finding.database}: ({finding.id}) {finding.text}")
        if finding.hint:
            typer.echo(f"    {finding.hint}")
    left_out = f", {count - len(findings)} silenced" if count > len(findings) else ""
    plural = "" if len(findings) == 1 else "s"
    typer.echo(f"{len(chosen)} checked, {len(findings)} finding{plural}{left_out}.")
    if template := template_version.describe(service.root):
        typer.echo(f"{template}.")
    raise typer.Exit(any(each.is_error or fail_level == "warning" for each in findings))


def migrate(
    context: typer.Context,
    database: DatabaseOption = None,
    to: Annotated[
        str, typer.Option(metavar="REVISION", help="A revision, head, zero, +1 or -1.")
    ] = "head",
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL, without a database.")] = False,
    fake: Annotated[
        bool,
        typer.Option("--fake", help="Run nothing, and note that it was: the tables are there."),
    ] = False,
) -> None:
    """Apply migrations, or take them back.

    With --sql, `--to 0001:head` prints the way from one revision to another.
    """
    from . import migrations
    from .development import development_servers

    if sql and fake:
        sys.exit("--sql prints what would be run, and --fake runs nothing: choose one")
    service: Service = context.obj
    chosen = service.migrated(database)
    if to != "head" and len(chosen) > 1:
        sys.exit("a revision belongs to one database: name it with --database")
    if sql:
        for each in chosen:
            typer.echo(f"-- {each.name}\n\n{migrations.sql(each, to)}", nl=False)
        return
    with development_servers(chosen):
        for each in chosen:
            if fake:
                typer.echo(f"{each.name}: {asyncio.run(migrations.fake(each, to))}")
            else:
                apply(each, to)


def makemigrations(
    context: typer.Context,
    message: Annotated[
        str,
        typer.Argument(metavar="[MESSAGE]", help="What changes, as in `add price`: its name."),
    ] = "",
    database: DatabaseOption = None,
    *,
    empty: Annotated[
        bool, typer.Option("--empty", help="Write an empty migration, to fill by hand.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write one that follows all heads of a history.")
    ] = False,
) -> None:
    """Write the migrations that the models ask for.

    On a terminal it asks whether what goes and what comes is a rename.
    """
    from ..settings.database import environment
    from ..settings.service import read_service_settings
    from . import migrations
    from .development import development_servers

    service: Service = context.obj
    chosen = service.migrated(database)
    if (empty or merge) and len(chosen) > 1:
        kind = "a merge" if merge else "an empty migration"
        sys.exit(f"{kind} belongs to one database: name it with --database")
    silenced = read_service_settings(environment()).silenced
    talks = sys.stdin.isatty() and sys.stdout.isatty()
    with development_servers(chosen):
        for each in chosen:

            def note(text: str, name: str = each.name) -> None:
                typer.echo(f"{name}: {text}")

            path = asyncio.run(
                migrations.make(
                    each,
                    message,
                    empty=empty,
                    merge=merge,
                    ask=typer.confirm if talks else lambda _: False,
                    on_note=note,
                    silenced=silenced,
                )
            )
            if not path:
                note("no changes")


def showmigrations(context: typer.Context, database: DatabaseOption = None) -> None:
    """List the migrations, and which of them are applied."""
    from . import migrations
    from .development import development_servers

    service: Service = context.obj
    chosen = service.migrated(database)
    with development_servers(chosen):
        for each in chosen:
            typer.echo(each.name)
            for migration in asyncio.run(migrations.history(each)):
                mark = "x" if migration.applied else " "
                typer.echo(f" [{mark}] {migration.revision} {migration.message}")


def inspectdb(
    context: typer.Context,
    database: Annotated[
        str, typer.Option("--database", metavar="NAME", help="The database to look into.")
    ],
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this table; may be repeated.")
    ] = None,
) -> None:
    """Print models for the tables that a database has."""
    from . import inspectdb as inspection
    from .development import development_servers

    service: Service = context.obj
    (chosen,) = service.selected(database)
    with development_servers([chosen]):
        typer.echo(asyncio.run(inspection.inspect(chosen, table or ())), nl=False)


def startapp(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its package and table, as `orders`.")],
    model: Annotated[
        str | None, typer.Argument(help="Its model, if not the singular, as `Order`.")
    ] = None,
    database: DatabaseOption = None,
) -> None:
    """Write a feature in the form of the example.

    That is a package with models, schemas and a router, its tests, and its first migration.
    Without --database, its table is in the first.
    """
    from . import features

    service: Service = context.obj
    chosen = service.migrated(database or next(iter(service.databases)))[0]
    for line in features.write(chosen, name, model, service.app):
        typer.echo(line)


def shell(context: typer.Context) -> None:
    """Open Python with the databases, models and await.

    That is IPython, if it is installed.
    """
    from . import console

    service: Service = context.obj
    import_module(service.app.partition(":")[0])  # With the models.
    console.run(service.databases)


def dbshell(context: typer.Context, database: DatabaseOption = None) -> None:
    """Open a database's shell: psql, mariadb or sqlite3.

    Without --database, that of the first.
    """
    from .development import development_servers
    from .shells import SHELLS, way_in

    service: Service = context.obj
    chosen = service.selected(database)[0]
    with development_servers([chosen]):
        command, told = SHELLS[chosen.dialect](way_in(chosen))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the shell.
        done = subprocess.run(command, env={**os.environ, **told}, check=False)  # noqa: S603 -- a shell is what was asked for
    raise typer.Exit(done.returncode)


def runserver(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    *,
    reload: Annotated[bool, typer.Option(help="Restart when a source file changes.")] = True,
) -> None:
    """Run the service for development.

    Databases without a URL are on servers of its own, and migrated at start. A PostgreSQL comes
    with the development dependencies, MariaDB has to be installed; they keep their data in
    .postgres/ and .mariadb/, and stop with the service. In production, run uvicorn itself.
    """
    import uvicorn

    from ..settings.database import environment
    from ..web.access import DEVELOPMENT, LOOPBACK
    from . import reloading
    from .development import development_servers

    service: Service = context.obj
    migrated = service.migrated(None)
    local = [each for each in migrated if not each.has_url(environment())]
    must_be_free(host, port)
    # uvicorn raises SIGTERM once more when it has stopped: the databases stop after that.
    signal.signal(signal.SIGTERM, end)
    if host in LOOPBACK:
        os.environ[DEVELOPMENT] = "1"
    os.environ["LOG_FORMAT"] = environment().get("LOG_FORMAT", "text")
    with development_servers(service.databases.values()):
        service.databases.read_settings()
        for each in local:
            apply(each)
        for each in migrated:
            if each not in local:
                tell_pending(each)
        typer.echo(f"\n  {service.app} is at http://{host}:{port}/docs (stop it with Ctrl-C)\n")
        os.environ[reloading.VARIABLE] = service.app
        app = f"{reloading.__name__}:application"
        uvicorn.run(
            app,
            factory=True,
            host=host,
            port=port,
            reload=reload,
            reload_dirs=source_folders(service.app) if reload else None,
        )


def source_folders(app: str) -> list[str]:
    """Return the folder to watch: of a service whose package is not in src/, the package's."""
    package = app.partition(":")[0].partition(".")[0]
    return [each for each in ("src", package) if Path(each).is_dir()][:1]


def tell_pending(database: "Database") -> None:
    """Say that a database lacks migrations, which only its owner applies."""
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from ..errors import DatabaseError
    from . import migrations

    try:
        pending = any(not each.applied for each in asyncio.run(migrations.history(database)))
    except (DatabaseError, DBAPIError):
        return  # The service says it, and goes on trying.
    except CommandError as error:
        typer.echo(f"{database.name}: {error}")
        return
    if pending:
        typer.echo(
            f"{database.name}: has pending migrations;"
            f" run `manage.py migrate --database {database.name}`"
        )


def end(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End the process by its context managers, and not at once as a signal does."""
    raise SystemExit(0)


def must_be_free(host: str, port: int) -> None:
    """End with a message when something listens on the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        sys.exit(f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host")


def first_line(error: "DBAPIError") -> str:
    """Say what the server said, without the statement."""
    return str(error.orig).partition("\n")[0]
