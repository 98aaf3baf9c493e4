"""What pools tell to OpenTelemetry, to Prometheus and to the log, by OpenTelemetry's names.

Every number is asked of the live pool when somebody collects. Semantic conventions 1.44:
https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
"""

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from hmac import compare_digest
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Observation

from .pool import FairPool
from .usage import BUCKETS

if TYPE_CHECKING:
    from .databases import Databases

logger = logging.getLogger(__name__)

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
ROUTE = "http.route"


@dataclass(frozen=True)
class Metric:
    """A number that a pool has at any moment; several, if it has an attribute."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    description: str
    read: Callable[[FairPool], float | Mapping[str, float]]
    attribute: str = ""


def by_route(field: str) -> Callable[[FairPool], Mapping[str, float]]:
    """Read one field of what each route has used."""
    return lambda pool: {name: getattr(used, field) for name, used in pool.usage.routes.items()}


METRICS = (
    Metric(
        "db.client.connection.count",
        "gauge",
        "{connection}",
        "Open connections, by state.",
        lambda pool: {"idle": pool.checkedin(), "used": pool.checkedout()},
        STATE,
    ),
    Metric(
        "db.client.connection.idle.max",
        "gauge",
        "{connection}",
        "Idle connections that are kept.",
        lambda pool: pool.options.pool_size,
    ),
    Metric(
        "db.client.connection.idle.min",
        "gauge",
        "{connection}",
        "Connections that are kept open, at the least.",
        lambda pool: pool.min_ready,
    ),
    Metric(
        "db.client.connection.max",
        "gauge",
        "{connection}",
        "Connections that may be open at once.",
        lambda pool: pool.options.limit,
    ),
    Metric(
        "db.client.connection.pending_requests",
        "gauge",
        "{request}",
        "Callers that wait for a connection.",
        lambda pool: pool.snapshot().waiting,
    ),
    Metric(
        "db.client.connection.timeouts",
        "counter",
        "{timeout}",
        "Callers that waited for `pool_timeout` in vain.",
        lambda pool: pool.snapshot().timeouts,
    ),
    Metric(
        "dbkit.pool.shed",
        "counter",
        "{request}",
        "Callers turned away because the queue stood, or was full.",
        lambda pool: pool.snapshot().shed,
    ),
    Metric(
        "dbkit.pool.refused",
        "counter",
        "{request}",
        "Callers told that the server cannot be reached.",
        lambda pool: pool.snapshot().refused,
    ),
    Metric(
        "dbkit.pool.connects",
        "counter",
        "{connection}",
        "Connections opened, by what for.",
        lambda pool: pool.usage.connects,
        "reason",
    ),
    Metric(
        "dbkit.pool.connect_errors",
        "counter",
        "{error}",
        "Attempts to open a connection that failed.",
        lambda pool: pool.snapshot().connect_errors,
    ),
    Metric(
        "dbkit.pool.closed",
        "counter",
        "{connection}",
        "Connections closed: retired in good health, or lost.",
        lambda pool: {"retired": pool.snapshot().retired, "lost": pool.snapshot().lost},
        "reason",
    ),
    Metric(
        "dbkit.pool.leaks",
        "counter",
        "{connection}",
        "Connections held for longer than `leak_after`.",
        lambda pool: pool.usage.leaks,
    ),
    Metric(
        "dbkit.pool.nested_checkouts",
        "counter",
        "{checkout}",
        "Checkouts by tasks that held a connection already.",
        lambda pool: pool.usage.nested,
    ),
    Metric(
        "dbkit.pool.route.checkouts",
        "counter",
        "{checkout}",
        "Connections returned, by route.",
        by_route("checkouts"),
        ROUTE,
    ),
    Metric(
        "dbkit.pool.route.held",
        "counter",
        "s",
        "Time for which connections were held, by route.",
        by_route("held"),
        ROUTE,
    ),
    Metric(
        "dbkit.pool.route.in_sql",
        "counter",
        "s",
        "Time of it in which the database had something to do, by route.",
        by_route("in_sql"),
        ROUTE,
    ),
)

TIMES = {
    "db.client.connection.create_time": "The time it took to create a new connection.",
    "db.client.connection.wait_time": "The time it took to obtain a connection from the pool.",
    "db.client.connection.use_time": "The time between borrowing a connection and its return.",
}
"""Histograms, in seconds."""

_observed: "dict[int, Databases]" = {}


def readings(metric: Metric, databases: "Databases") -> Iterable[tuple[dict[str, str], float]]:
    """Read a metric of every open database: attributes and value."""
    for database in databases.values():
        if database.is_open:
            found = metric.read(database.pool)
            values = found.items() if isinstance(found, Mapping) else [("", found)]
            for name, value in values:
                yield {POOL: database.name} | ({metric.attribute: name} if name else {}), value


# OpenTelemetry


@contextmanager
def observed(databases: "Databases") -> Generator[None]:
    """Have OpenTelemetry see these databases until exit.

    Instruments on the global meter come alive when a provider is set; only the histograms, which
    cost something at each return, need one that is set before the service starts.
    """
    histograms = instruments()
    none_yet = type(metrics.get_meter_provider()).__module__ == "opentelemetry.metrics._internal"
    for name, database in () if none_yet else databases.items():
        attributes = {POOL: name}
        create, wait, use = (
            partial(each.record, attributes=attributes) for each in histograms.values()
        )
        database.pool.usage.on_connect = create
        database.pool.usage.on_wait = wait
        database.pool.usage.on_return = use
    if databases.service.metrics_token:
        import_module("prometheus_client")  # It takes a while: not while requests wait.
    _observed[id(databases)] = databases
    try:
        yield
    finally:
        del _observed[id(databases)]


@cache
def instruments() -> dict[str, Histogram]:
    """Make the instruments, once; return the histograms."""
    meter = metrics.get_meter("dbkit")
    for metric in METRICS:
        make = (
            meter.create_observable_counter
            if metric.kind == "counter"
            else meter.create_observable_up_down_counter
        )
        make(metric.name, [partial(observations, metric)], metric.unit, metric.description)
    return {
        name: meter.create_histogram(
            name, "s", text, explicit_bucket_boundaries_advisory=list(BUCKETS)
        )
        for name, text in TIMES.items()
    }


def observations(metric: Metric, _options: CallbackOptions) -> Iterable[Observation]:
    """Read a metric for OpenTelemetry."""
    for databases in tuple(_observed.values()):
        for attributes, value in readings(metric, databases):
            yield Observation(value, attributes)


# Prometheus


def metrics_router(databases: "Databases") -> APIRouter:
    """Serve `/metrics` for Prometheus, to who has `METRICS_TOKEN`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def metrics_(request: Request) -> Response:
        token = databases.service.metrics_token
        if not token:
            raise HTTPException(404)
        sent = request.headers.get("authorization", "")
        if not compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
        body, media_type = exposition(databases)
        return Response(body, media_type=media_type)

    return router


def exposition(databases: "Databases") -> tuple[bytes, str]:
    """Write the metrics of the pools, and of whoever uses prometheus_client in this process."""
    from prometheus_client import REGISTRY, CollectorRegistry, exposition  # noqa: PLC0415 -- not where it is off

    registry = CollectorRegistry()
    registry.register(Collector(databases))
    write, media_type = exposition.generate_latest, exposition.CONTENT_TYPE_LATEST
    return write(REGISTRY) + write(registry), media_type


class Collector:
    """What prometheus_client asks; names are as OpenTelemetry's exporter would write them."""

    def __init__(self, databases: "Databases") -> None:
        self._databases = databases

    def collect(self) -> Iterable[Any]:
        """Read every metric."""
        from prometheus_client import core  # noqa: PLC0415 -- not where it is off

        for metric in METRICS:
            labels = [POOL, metric.attribute] if metric.attribute else [POOL]
            name = underscores(metric.name) + ("_seconds" if metric.unit == "s" else "")
            make = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
            family = make(name, metric.description, labels=[underscores(each) for each in labels])
            for attributes, value in readings(metric, self._databases):
                family.add_metric([attributes[each] for each in labels], value)
            yield family
        yield from self._times(core)

    def _times(self, core: Any) -> Iterable[Any]:
        families = [
            make(f"{underscores(name)}_seconds", text, labels=[underscores(POOL)])
            for (name, text), make in zip(
                TIMES.items(),
                (core.SummaryMetricFamily, core.SummaryMetricFamily, core.HistogramMetricFamily),
                strict=True,
            )
        ]
        create, wait, use = families
        for name, database in self._databases.items():
            if database.is_open:
                pool, status = database.pool, database.pool.snapshot()
                returned = sum(pool.usage.buckets)
                create.add_metric([name], status.connects, status.connect_seconds)
                wait.add_metric([name], returned + status.in_use, status.wait_seconds)
                held = sum(each.held for each in pool.usage.routes.values())
                use.add_metric([name], cumulated(pool.usage.buckets), held)
        yield from families


def cumulated(buckets: list[int]) -> list[tuple[str, float]]:
    """Write a histogram as Prometheus has it: each bucket with all that are below it."""
    bounds = [*(str(each) for each in BUCKETS), "+Inf"]
    return [(bound, sum(buckets[: at + 1])) for at, bound in enumerate(bounds)]


def underscores(name: str) -> str:
    """Write a name as Prometheus takes it."""
    return name.replace(".", "_")


# The log


async def log_pools(databases: "Databases", interval: float) -> None:
    """Write a line for each pool every `interval` seconds, until cancelled; 0 is never."""
    before: dict[str, dict[str, float]] = {}
    while interval:
        await asyncio.sleep(interval)
        for name, database in databases.items():
            if database.is_open:
                now = totals(database.pool)
                grown = {key: now[key] - before.get(name, {}).get(key, 0) for key in now}
                before[name] = now
                logger.info(
                    "%s: %s", name, database.pool.snapshot(), extra=line(database.pool, grown)
                )


def totals(pool: FairPool) -> dict[str, float]:
    """Return what only grows."""
    status, routes = pool.snapshot(), pool.usage.routes.values()
    return {
        "checkouts": sum(each.checkouts for each in routes),
        "held_seconds": sum(each.held for each in routes),
        "wait_seconds": status.wait_seconds,
        "timeouts": status.timeouts,
        "shed": status.shed,
        "refused": status.refused,
        "connects": status.connects,
        "leaks": pool.usage.leaks,
    }


def line(pool: FairPool, grown: Mapping[str, float]) -> dict[str, str | float]:
    """Return the fields of a line: the pool now, and what was added in the interval."""
    status = pool.snapshot()
    return {
        "pool": status.name,
        "used": status.in_use,
        "idle": status.idle,
        "waiting": status.waiting,
        "max": status.limit,
        **{name: round(value, 3) for name, value in grown.items()},
    }
