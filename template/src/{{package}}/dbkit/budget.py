"""The budget: the connections that all processes may open, against what each server accepts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from .settings import DatabaseSettings

PROBE = 1
"""Connections of each process and database beside its pool."""

HINT = (
    "lower POOL_SIZE or MAX_OVERFLOW, or run fewer processes (WEB_CONCURRENCY x (INSTANCES +"
    " DEPLOY_SURGE)); else raise the limit, or put PgBouncer in between"
)

# A server is known by the moment at which it was started: its replica has the same identifier.
POSTGRESQL = text("""
    SELECT concat(pg_postmaster_start_time(), ' ', current_setting('port')),
        current_setting('max_connections')::int,
        current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0),
        rolname, CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END,
        datname, CASE WHEN rolsuper THEN -1 ELSE datconnlimit END
    FROM pg_roles, pg_database
    WHERE rolname = session_user AND datname = current_database()
""")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a server accepts: in all, of a role, and to a database; -1 is any."""

    server: str
    max_connections: int
    reserved: int
    role: str
    role_limit: int
    database: str
    database_limit: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one database of the service claims of its server."""

    database: str
    settings: DatabaseSettings
    limits: Limits

    @property
    def connections(self) -> int:
        """Most connections that one process holds."""
        return self.settings.max_connections + PROBE


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that the service can exceed; `id` is that of the check."""

    id: str
    claims: tuple[Claim, ...]
    limit: int
    of: str
    processes: int

    def __str__(self) -> str:
        each = ", ".join(f"{claim.database} {claim.connections}" for claim in self.claims)
        wanted = self.processes * sum(claim.connections for claim in self.claims)
        return (
            f"up to {wanted} connections, and {self.of}: {each} in each of"
            f" {self.processes} processes, with a probe each"
        )


async def read_limits(connection: AsyncConnection) -> Limits | None:
    """Ask a server for its limits, which takes one round trip; None of one that has none."""
    if connection.dialect.name != "postgresql":
        return None
    return Limits(*(await connection.execute(POSTGRESQL)).one())


def excesses(claims: Iterable[Claim], processes: int) -> Iterator[Excess]:
    """Sum what is claimed of each server, role and database; find what is more than its limit."""
    claims = tuple(claims)

    def sums(key: Callable[[Limits], object]) -> Iterator[tuple[Claim, ...]]:
        groups: dict[object, list[Claim]] = defaultdict(list)
        for claim in claims:
            groups[key(claim.limits)].append(claim)
        yield from map(tuple, groups.values())

    def too_many(group: tuple[Claim, ...], limit: int) -> bool:
        return limit >= 0 and processes * sum(each.connections for each in group) > limit

    for group in sums(lambda limits: limits.server):
        limits = group[0].limits
        limit = limits.max_connections - limits.reserved
        if too_many(group, limit):
            of = (
                f"the server accepts {limit} ({limits.max_connections}, {limits.reserved} reserved)"
            )
            yield Excess("database.E010", group, limit, of, processes)
    for group in sums(lambda limits: (limits.server, limits.role)):
        limits = group[0].limits
        if too_many(group, limits.role_limit):
            of = f"role {limits.role} may have {limits.role_limit}"
            yield Excess("database.E011", group, limits.role_limit, of, processes)
    for group in sums(lambda limits: (limits.server, limits.database)):
        limits = group[0].limits
        if too_many(group, limits.database_limit):
            of = f"database {limits.database} may have {limits.database_limit}"
            yield Excess("database.E012", group, limits.database_limit, of, processes)
