"""What pools tell of themselves in numbers, by OpenTelemetry's names.

Every number is asked of the live pool when somebody collects. Semantic conventions 1.44:
https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .pool import FairPool

if TYPE_CHECKING:
    from .databases import Databases

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
ROUTE = "http.route"


@dataclass(frozen=True)
class Metric:
    """A number that there is at any moment; several, if it has an attribute."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    description: str
    read: Callable[[Any], float | Mapping[str, float]]
    """Reads it of a `FairPool`; of the `Watchdog`, if it is no pool's."""
    attribute: str = ""
    of_pool: bool = True

    @property
    def labels(self) -> list[str]:
        """The attributes that each value has."""
        return [*([POOL] if self.of_pool else []), *([self.attribute] if self.attribute else [])]


def by_route(field: str) -> Callable[[FairPool], Mapping[str, float]]:
    """Read one field of what each route has used."""
    return lambda pool: {name: getattr(used, field) for name, used in pool.usage.routes.items()}


# fmt: off
METRICS = (
    Metric("db.client.connection.count", "gauge", "{connection}",
           "Open connections, by state.",
           lambda pool: {"idle": pool.checkedin(), "used": pool.checkedout()}, STATE),
    Metric("db.client.connection.idle.max", "gauge", "{connection}",
           "Idle connections that are kept.",
           lambda pool: pool.settings.pool_size),
    Metric("db.client.connection.idle.min", "gauge", "{connection}",
           "Connections that are kept open, at the least.",
           lambda pool: pool.min_ready),
    Metric("db.client.connection.max", "gauge", "{connection}",
           "Connections that may be open at once.",
           lambda pool: pool.settings.max_connections),
    Metric("db.client.connection.pending_requests", "gauge", "{request}",
           "Callers that wait for a connection.",
           lambda pool: pool.snapshot().waiting),
    Metric("db.client.connection.timeouts", "counter", "{timeout}",
           "Callers that waited for `pool_timeout` in vain.",
           lambda pool: pool.snapshot().timeouts),
    Metric("dbkit.pool.shed", "counter", "{request}",
           "Callers turned away because the queue stood, or was full.",
           lambda pool: pool.snapshot().shed),
    Metric("dbkit.pool.refused", "counter", "{request}",
           "Callers told that the server cannot be reached.",
           lambda pool: pool.snapshot().refused),
    Metric("dbkit.pool.connects", "counter", "{connection}",
           "Connections opened, by what for.",
           lambda pool: pool.usage.connects, "reason"),
    Metric("dbkit.pool.connect_errors", "counter", "{error}",
           "Attempts to open a connection that failed.",
           lambda pool: pool.snapshot().connect_errors),
    Metric("dbkit.pool.closed", "counter", "{connection}",
           "Connections closed: retired in good health, or lost.",
           lambda pool: {"retired": pool.snapshot().retired, "lost": pool.snapshot().lost},
           "reason"),
    Metric("dbkit.pool.leaks", "counter", "{connection}",
           "Connections held for longer than `leak_after`.",
           lambda pool: pool.usage.leaks),
    Metric("dbkit.pool.nested_checkouts", "counter", "{checkout}",
           "Checkouts by tasks that held a connection already.",
           lambda pool: pool.usage.nested),
    Metric("dbkit.pool.route.checkouts", "counter", "{checkout}",
           "Connections returned, by route.",
           by_route("checkouts"), ROUTE),
    Metric("dbkit.pool.route.held", "counter", "s",
           "Time for which connections were held, by route.",
           by_route("held"), ROUTE),
    Metric("dbkit.pool.route.in_sql", "counter", "s",
           "Time of it in which the database had something to do, by route.",
           by_route("in_sql"), ROUTE),
    Metric("dbkit.event_loop.blocks", "counter", "{block}",
           "Times that the event loop was blocked for longer than `blocked_loop_after`.",
           lambda watchdog: watchdog.blocks, of_pool=False),
    Metric("dbkit.event_loop.blocked", "counter", "s",
           "Time for which it was, in all.",
           lambda watchdog: watchdog.blocked_seconds, of_pool=False),
)
# fmt: on

TIMES = {
    "db.client.connection.create_time": "The time it took to create a new connection.",
    "db.client.connection.wait_time": "The time it took to obtain a connection from the pool.",
    "db.client.connection.use_time": "The time between borrowing a connection and its return.",
}
"""Histograms, in seconds."""


def readings(metric: Metric, databases: "Databases") -> Iterable[tuple[dict[str, str], float]]:
    """Read a metric, of every open database where pools have it: attributes and value."""
    sources: list[tuple[dict[str, str], Any]] = [({}, databases.watchdog)]
    if metric.of_pool:
        sources = [({POOL: each.name}, each.pool) for each in databases.values() if each.is_open]
    for attributes, source in sources:
        found = metric.read(source)
        values = found.items() if isinstance(found, Mapping) else [("", found)]
        for name, value in values:
            yield attributes | ({metric.attribute: name} if name else {}), value
