"""The budget: the connections that all processes may open, against what each server accepts."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from ..engines.base import load
from ..settings.database import DatabaseSettings

PROBE = 1
"""Connections that each process needs for a database in addition to its pool."""

HINT = (
    "lower POOL_SIZE, MAX_OVERFLOW or SYNC_POOL_SIZE, or run fewer processes (WEB_CONCURRENCY x"
    " (INSTANCES + DEPLOY_SURGE)); else raise the limit, or put PgBouncer in between"
)


class Limit(NamedTuple):
    """How many connections are accepted, for which check, by which server, and in words."""

    id: str
    server: str
    connections: int
    text: str


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

    def each(self) -> Iterator[Limit]:
        """Say each limit in words."""
        free = self.max_connections - self.reserved
        of_all = f"the server accepts {free} ({self.max_connections}, {self.reserved} reserved)"
        of_role = f"{self.role} may have {self.role_limit}"
        of_database = f"database {self.database} may have {self.database_limit}"
        yield Limit("database.E010", self.server, free, of_all)
        yield Limit("database.E011", self.server, self.role_limit, of_role)
        yield Limit("database.E012", self.server, self.database_limit, of_database)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one database of the service claims of its server."""

    database: str
    settings: DatabaseSettings
    limits: Limits
    uses_sync: bool = False
    """Whether a route depends on a synchronous session; a size that is set says so, too."""

    @property
    def connections(self) -> int:
        """Most connections that one process holds."""
        settings = self.settings
        uses_sync = self.uses_sync or "sync_pool_size" in settings.model_fields_set
        return settings.max_connections + uses_sync * settings.sync_pool_size + PROBE


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that the service can exceed."""

    limit: Limit
    claims: list[Claim]
    processes: int

    def __str__(self) -> str:
        each = ", ".join(f"{claim.database} {claim.connections}" for claim in self.claims)
        wanted = self.processes * sum(claim.connections for claim in self.claims)
        return (
            f"up to {wanted} connections, and {self.limit.text}: {each} in each of"
            f" {self.processes} processes, with a probe each"
        )


async def read_limits(connection: AsyncConnection) -> Limits | None:
    """Ask a server for its limits, which takes one round trip; None of one that has none."""
    question = load(connection.dialect.name).limits_query
    return None if question is None else Limits(*(await connection.execute(question)).one())


def excesses(claims: Iterable[Claim], processes: int) -> Iterator[Excess]:
    """Sum what is claimed of each server, role and database; find what is more than its limit."""
    sharing: dict[Limit, list[Claim]] = defaultdict(list)
    for claim in claims:
        for limit in claim.limits.each():
            sharing[limit].append(claim)
    for limit, group in sorted(sharing.items(), key=lambda item: item[0].id):
        if 0 <= limit.connections < processes * sum(each.connections for each in group):
            yield Excess(limit, group, processes)
