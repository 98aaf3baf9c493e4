"""System checks: what is wrong with the databases, and what to do about it.

A check is a function that is given a `Subject` and yields findings; it is listed in `CHECKS`
or `DEPLOY_CHECKS`. Ids are never used again for something else.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ...database.budget import HINT, Claim, excesses, read_limits
from ...database.database import Database
from ...database.databases import Databases
from ...engines.sqlstates import sqlstate
from ...errors import DatabaseError, NotConfigured
from ...settings.database import environment
from ...settings.service import read_service_settings
from .application import check_application
from .finding import Finding, Subject
from .models import check_models, check_on_connect
from .schema import check_schema
from .server import check_clock, check_timeouts, check_writable
from .sources import check_scopes, check_sources
from .template import check_template

__all__ = [
    "CHECKS",
    "DEPLOY_CHECKS",
    "Finding",
    "Subject",
    "check",
    "check_application",
    "check_scopes",
    "check_sources",
    "check_template",
    "check_variables",
]

SCHEMA = text("""
    SELECT coalesce(
        (SELECT relnamespace::regnamespace::text FROM pg_class
         WHERE oid = to_regclass('alembic_version')),
        current_schema(), current_setting('search_path'))
""")
PORTS = {"postgresql": 5432, "mysql": 3306}

Check = Callable[[Subject], AsyncIterable[Finding]]

CHECKS: tuple[Check, ...] = (
    check_schema,
    check_models,
    check_on_connect,
)
DEPLOY_CHECKS: tuple[Check, ...] = (
    check_timeouts,
    check_clock,
    check_writable,
)
"""Those of `check --deploy`: about the servers of production."""


async def check(databases: Iterable[Database], *, deploy: bool = False) -> AsyncGenerator[Finding]:
    """Check settings, connections and schemas, and with `deploy` the servers."""
    variables = environment()
    places: dict[object, Database] = {}
    claims: list[Claim] = []
    for database in databases:
        try:
            settings = database.read_settings(variables)
        except NotConfigured as error:
            for fault in error.faults:
                yield Finding("database.E001", database.name, fault)
            continue
        engine = database.connecting(settings)
        try:
            async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as ours:
                subject = Subject(database, settings, ours)
                place = address(settings.url), await read_schema(ours)
                other = places.setdefault(place, database)
                if other is not database and other.base and database.base:
                    yield subject.finding(
                        "database.E003",
                        f"is the same database as {other.name}: their migrations would mix",
                        f"set {database.env_prefix}URL to a database of its own, or to a"
                        " search_path of its own",
                    )
                    continue
                for each in checks_of(database, deploy=deploy):
                    async for finding in run(each, subject):
                        yield finding
                if deploy and not settings.pgbouncer and (limits := await read_limits(ours)):
                    claims.append(Claim(database.name, settings, limits, database.uses_sync))
        except DatabaseError as error:
            yield Finding("database.E002", database.name, error.detail)
    for excess in excesses(claims, read_service_settings(variables).processes):
        yield Finding(excess.limit.id, excess.claims[0].database, str(excess), HINT)


def checks_of(database: Database, *, deploy: bool) -> Iterator[Check]:
    """Yield the checks of any database, and those of its engine and of replicas."""
    kinds = [database.dialect, *(["replicas"] if database.replica_of else [])]
    modules: list[Any] = [
        import_module(f".{kind}", __package__)
        for kind in kinds
        if find_spec(f"{__package__}.{kind}")  # A service has those that it needs.
    ]
    for module in modules:
        yield from module.CHECKS
    yield from CHECKS
    if deploy:
        yield from DEPLOY_CHECKS
        for module in modules:
            yield from getattr(module, "DEPLOY_CHECKS", ())


async def run(check_: Check, subject: Subject) -> AsyncGenerator[Finding]:
    """Make one check; one that the server does not let us make is a finding too."""
    try:
        async for finding in check_(subject):
            yield finding
    except DatabaseError:
        raise
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0]
        hint = ""
        if check_ is check_schema and sqlstate(error) == "42501":
            hint = (
                "as the user who owns the tables, run `manage.py create"
                f" --database {subject.database.name} --role ROLE`, which lets ROLE read it"
            )
        yield subject.finding("database.W004", f"{check_.__name__} cannot be made: {reason}", hint)


def address(url: URL) -> object:
    """Return which database a URL leads to, however it is written."""
    if url.get_backend_name() == "sqlite":
        return Path(url.database or "").resolve()
    named = url.query.get("unix_socket") or url.query.get("host") or url.host or "localhost"
    host = str(named).lower()
    loopback = host.startswith("127.") or host == "::1"
    port = url.query.get("port") or url.port or PORTS[url.get_backend_name()]
    return "localhost" if loopback else host, str(port), url.database


async def read_schema(connection: AsyncConnection) -> str | None:
    """Return the schema in which migrations are noted; by `search_path`, there can be several."""
    if connection.dialect.name != "postgresql":
        return None
    return await connection.scalar(SCHEMA)


def check_variables(databases: Databases) -> list[Finding]:
    """Report environment variables that look like misspelt settings."""
    return [
        Finding(
            "database.W003",
            next(each.name for each in databases.values() if nearest.startswith(each.env_prefix)),
            f"{name} is no setting",
            f"did you mean {nearest}?",
        )
        for name, nearest in databases.misspelt_variables().items()
    ]
