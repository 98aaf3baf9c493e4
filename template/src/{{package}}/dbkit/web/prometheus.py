"""What pools tell to Prometheus: the route `/metrics`."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException, Request, Response

from ..database.databases import Databases
from ..pool.usage import BUCKETS
from ..telemetry.metrics import METRICS, POOL, TIMES, readings
from .access import bearer, is_same
from .routing import KitRouter
from .workers import Workers


def metrics_router(databases: Databases, workers: Workers) -> KitRouter:
    """Serve `/metrics` for Prometheus, to clients that send `METRICS_TOKEN`."""
    router = KitRouter(include_in_schema=False)
    workers.answers["metrics"] = lambda _: families(databases)

    @router.get("/metrics")
    async def metrics_(request: Request) -> Response:
        token = databases.service.metrics_token
        if not token:
            raise HTTPException(404)
        if not is_same(bearer(request) or "", token):
            raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
        body, media_type = exposition(await workers.ask("metrics"))
        return Response(body, media_type=media_type)

    return router


def families(databases: Databases) -> list[Any]:
    """Read the metrics of the pools, and those of prometheus_client in this process."""
    from prometheus_client import REGISTRY  # noqa: PLC0415 -- not where it is off

    return [
        (
            *(each.name, each.documentation, each.type),
            [(sample.name, sample.labels, sample.value) for sample in each.samples],
        )
        for each in (*REGISTRY.collect(), *Collector(databases).collect())
    ]


def exposition(answers: Mapping[int | None, Any]) -> tuple[bytes, str]:
    """Write the metrics of all workers, each with its number, if there are several."""
    from prometheus_client import Metric, exposition  # noqa: PLC0415 -- not where it is off

    found: dict[str, Metric] = {}
    for number, its_families in answers.items():
        worker = {} if number is None else {"worker": str(number)}
        for name, documentation, kind, samples in its_families:
            metric = found.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                metric.add_sample(sample, labels | worker, value)
    registry: Any = SimpleNamespace(collect=found.values)
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class Collector:
    """What prometheus_client asks; names are as OpenTelemetry's exporter would write them."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases

    def collect(self) -> Iterable[Any]:
        """Read every metric."""
        from prometheus_client import core  # noqa: PLC0415 -- not where it is off

        for metric in METRICS:
            name = underscores(metric.name) + ("_seconds" if metric.unit == "s" else "")
            make = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
            family = make(
                name, metric.description, labels=[underscores(each) for each in metric.labels]
            )
            for attributes, value in readings(metric, self._databases.sources()):
                family.add_metric([attributes.get(each, "") for each in metric.labels], value)
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
        for pool in self._databases.pools():
            name, status = pool.name, pool.snapshot()
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
