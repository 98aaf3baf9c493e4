"""What pools tell to OpenTelemetry, and to the log."""

import asyncio
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Observation

from ..loggers import logger_named
from ..pool import FairPool
from ..pool.usage import BUCKETS, Usage
from .metrics import METRICS, POOL, TIMES, Metric, Source, readings

if TYPE_CHECKING:
    from ..pool.thread_pool import ThreadPool

logger = logger_named("telemetry")

_observed: list[Callable[[], Sequence[Source]]] = []
_ended: list[Source] = []
"""What was observed before: an exporter's last look comes when all is closed."""


@contextmanager
def observed(sources: Callable[[], Sequence[Source]]) -> Generator[None]:
    """Report these to OpenTelemetry; from exit on, their last values.

    Instruments on the global meter come alive when a provider is set.
    """
    instruments()
    _observed.append(sources)
    _ended.clear()
    try:
        yield
    finally:
        _observed.remove(sources)  # First: nobody may count twice.
        _ended[:] = sources()


def record_times(name: str, usage: Usage) -> None:
    """Fill the histograms from now on, if a provider is set: they cost something at each return."""
    if type(metrics.get_meter_provider()).__module__ != "opentelemetry.metrics._internal":
        attributes = {POOL: name}
        usage.on_connect, usage.on_wait, usage.on_return = (
            partial(each.record, attributes=attributes) for each in instruments().values()
        )


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
    for asked in (_ended.copy(), *(sources() for sources in _observed.copy())):
        for attributes, value in readings(metric, asked):
            yield Observation(value, attributes)


async def log_pools(
    pools: Callable[[], "Iterable[FairPool | ThreadPool]"], interval: float
) -> None:
    """Write a line for each pool every `interval` seconds, and when cancelled; 0 is never.

    It says what the pool does now, and what was added since the last one.
    """
    before: dict[str, dict[str, float]] = {}
    while interval:
        try:
            await asyncio.sleep(interval)
        finally:
            for pool in pools():
                before[pool.name] = log_pool(pool, before.get(pool.name, {}))


def log_pool(pool: "FairPool | ThreadPool", before: dict[str, float]) -> dict[str, float]:
    """Write the line of one pool; return its totals."""
    status, now = pool.snapshot(), totals(pool)
    fields = {
        "pool": pool.name,
        "used": status.in_use,
        "idle": status.idle,
        "waiting": status.waiting,
        "max": status.limit,
        **{key: round(now[key] - before.get(key, 0), 3) for key in now},
    }
    logger.info("%s: %s", pool.name, status, extra=fields)
    return now


def totals(pool: "FairPool | ThreadPool") -> dict[str, float]:
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
        "reclaimed": status.reclaimed,
    }
