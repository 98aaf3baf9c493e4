"""What pools tell of themselves in numbers, by OpenTelemetry's names.

Every number is asked of the live pool when somebody collects, in a thread of theirs: nothing here
may change the pool. Semantic conventions 1.44:
https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.pool import Pool

from ..pool import FairPool
from ..pool.usage import OTHERS, WEBSOCKET

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
ROUTE = "http.request.method", "http.route"

Source = tuple[dict[str, str], Any]
"""A pool, or the `Watchdog`, and the attributes of all that it says."""


@dataclass(frozen=True)
class Metric:
    """A number that there is at any moment; several, if it has an attribute."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    description: str
    read: Callable[[Any], float | Mapping[tuple[str, ...], float]]
    """Reads it of a `FairPool`; of the `Watchdog`, if it is no pool's."""
    attributes: tuple[str, ...] = ()
    """What the keys of `read` say; an empty part of one says nothing."""
    of_pool: bool = True

    @property
    def labels(self) -> list[str]:
        """The attributes that values have."""
        return [*([POOL] if self.of_pool else []), *self.attributes]


def by_route(field: str) -> Callable[[FairPool], Mapping[tuple[str, ...], float]]:
    """Read one field of what each route has used."""
    return lambda pool: {
        split(name): getattr(used, field) for name, used in pool.usage.routes.copy().items()
    }


def split(route: str) -> tuple[str, str]:
    """Split a route in method and template, as FastAPI's telemetry: WebSockets have no method."""
    if route == OTHERS:
        return "", route
    method, slash, template = route.partition(" /")
    return (method if slash and method != WEBSOCKET else "", slash.strip() + template)


# fmt: off
METRICS = (
    Metric("db.client.connection.count", "gauge", "{connection}",
           "Open connections, by state.",
           lambda pool: {("idle",): pool.checkedin(), ("used",): pool.checkedout()}, (STATE,)),
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
           lambda pool: pool.waiting()),
    Metric("db.client.connection.timeouts", "counter", "{timeout}",
           "Callers that waited for `pool_timeout` in vain.",
           lambda pool: pool.counters.timeouts),
    Metric("dbkit.pool.shed", "counter", "{request}",
           "Callers turned away because the queue stood, or was full.",
           lambda pool: pool.counters.shed),
    Metric("dbkit.pool.refused", "counter", "{request}",
           "Callers told that the server cannot be reached.",
           lambda pool: pool.counters.refused),
    Metric("dbkit.pool.connects", "counter", "{connection}",
           "Connections opened, by what for.",
           lambda pool: {(why,): n for why, n in pool.usage.connects.copy().items()},
           ("reason",)),
    Metric("dbkit.pool.connect_errors", "counter", "{error}",
           "Attempts to open a connection that failed.",
           lambda pool: pool.counters.connect_errors),
    Metric("dbkit.pool.closed", "counter", "{connection}",
           "Connections closed: retired in good health, or lost.",
           lambda pool: {("retired",): pool.counters.retired, ("lost",): pool.counters.lost},
           ("reason",)),
    Metric("dbkit.pool.leaks", "counter", "{connection}",
           "Connections held for longer than `leak_after`.",
           lambda pool: pool.usage.leaks),
    Metric("dbkit.pool.reclaimed", "counter", "{connection}",
           "Connections that were never returned, and were taken back.",
           lambda pool: pool.counters.reclaimed),
    Metric("dbkit.pool.native_statements", "counter", "{statement}",
           "Single statements that asyncpg ran without a greenlet.",
           lambda pool: pool.counters.native),
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


def readings(metric: Metric, asked: Iterable[Source]) -> Iterable[tuple[dict[str, str], float]]:
    """Read a metric of all that have it: attributes and value."""
    for attributes, source in asked:
        if isinstance(source, Pool) == metric.of_pool:
            found = metric.read(source)
            values = found.items() if isinstance(found, Mapping) else [((), found)]
            for key, value in values:
                more = {k: v for k, v in zip(metric.attributes, key, strict=False) if v}
                yield attributes | more, value
