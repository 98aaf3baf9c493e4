"""What pools tell of themselves: compared with the pool, and with what the server sees."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import yaml
from conftest import KIT
from dbkit import Database, Databases, PoolTimeout, install
from dbkit.pool.usage import NO_ROUTE, OTHERS
from dbkit.telemetry.metrics import METRICS, POOL, TIMES, split
from dbkit.web.prometheus import Collector, underscores
from fastapi import FastAPI
from opentelemetry import metrics
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL, NullPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from waiting import until

pytestmark = pytest.mark.anyio

TOKEN = "a token of many letters"  # noqa: S105 -- a test's
COUNT = "db.client.connection.count"

Readings = dict[tuple[str, str], float]
"""By name, and by the value of the attribute beside the pool's name."""


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    """Set a provider for this process, as OpenTelemetry's distributions do."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


class Service:
    """A service on one pool of three, and those who watch it."""

    def __init__(self, databases: Databases, url: URL, client: httpx.AsyncClient) -> None:
        self.databases = databases
        self.database = databases["primary"]
        self.url = url
        self.client = client
        self.held: list[AsyncConnection] = []

    async def take(self) -> None:
        """Hold one connection more."""
        self.held.append(await self.database.engine.connect())

    async def give(self) -> None:
        """Give one back."""
        await self.held.pop(0).close()

    async def backends(self) -> int:
        """Count the connections that the server sees, without the probe's."""
        engine = create_async_engine(self.url, poolclass=NullPool)
        query = (
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like '%\\:primary'"
        )
        async with engine.connect() as connection:
            return int(await connection.scalar(text(query)) or 0) - 1

    async def scrape(self) -> Readings:
        """Ask as Prometheus does."""
        answer = await self.client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        found: Readings = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                others = [v for k, v in sample.labels.items() if k != underscores(POOL)]
                found[sample.name, "".join(others)] = sample.value
        return found


@asynccontextmanager
async def serving(url: URL, patch: pytest.MonkeyPatch, **set_: str) -> AsyncGenerator[Service]:
    """Serve `/metrics`, and one route."""
    variables = {
        "PRIMARY_DATABASE_URL": url.set(drivername="postgresql").render_as_string(
            hide_password=False
        ),
        "PRIMARY_DATABASE_POOL_SIZE": "3",
        "PRIMARY_DATABASE_POOL_TIMEOUT": "0.1",
        "PRIMARY_DATABASE_QUEUE_TARGET": "0",
        "METRICS_TOKEN": TOKEN,
    } | set_
    for name, value in variables.items():
        patch.setenv(name, value)
    databases = Databases(Database("primary", "postgresql"))
    app = FastAPI()
    install(app, databases)

    @app.get("/items/{item_id}")
    async def read(item_id: int) -> Any:
        async with databases["primary"].session() as session:
            return await session.scalar(text("select cast(:id as int)"), {"id": item_id})

    transport = httpx.ASGITransport(app, root_path="/shop")
    async with (
        databases.open(),
        httpx.AsyncClient(transport=transport, base_url="http://test/shop") as client,
    ):
        service = Service(databases, url, client)
        yield service
        while service.held:
            await service.give()


def collect(reader: InMemoryMetricReader) -> Readings:
    """Ask as OpenTelemetry does; of a histogram, the count."""
    data: Any = reader.get_metrics_data()
    resources: list[Any] = list(data.resource_metrics) if data else []
    scopes: list[Any] = [scope for each in resources for scope in each.scope_metrics]
    ours: list[Any] = [scope for scope in scopes if scope.scope.name == "dbkit"]
    found: Readings = {}
    for metric in (metric for scope in ours for metric in scope.metrics):
        for point in metric.data.data_points:
            others = [str(v) for k, v in point.attributes.items() if k != POOL]
            value = point.count if hasattr(point, "count") else point.value
            found[metric.name, "".join(others)] = value
    return found


async def test_gauges_are_the_truth_at_every_step(
    database_url: URL, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = collect(reader)
    async with serving(database_url, monkeypatch) as service:
        pool = service.database.pool

        async def agree(used: int, idle: int, waiting: int = 0, left_over: int = 0) -> None:
            """Compare all that tell, with each other and with what must be so."""
            seen, scraped = collect(reader), await service.scrape()
            for name, attribute, value in (
                (COUNT, "used", used),
                (COUNT, "idle", idle),
                ("db.client.connection.pending_requests", "", waiting),
                ("db.client.connection.max", "", 3),
                ("db.client.connection.idle.max", "", 3),
                ("db.client.connection.idle.min", "", service.database.pool.min_ready),
            ):
                assert seen[name, attribute] == value, (name, attribute)
                assert scraped[underscores(name), attribute] == value, (name, attribute)
            live = service.database.pool.snapshot()
            assert (live.in_use, live.idle, live.waiting) == (used, idle, waiting)
            expected = used + idle + left_over
            await until(lambda: is_(service, expected))

        await agree(used=0, idle=1)
        await service.take()
        await agree(used=1, idle=0)
        await service.take()
        await service.take()
        await agree(used=3, idle=0)
        waiter = asyncio.create_task(service.take())
        await until(lambda: pool.snapshot().waiting == 1)
        assert collect(reader)["db.client.connection.pending_requests", ""] == 1
        with suppress(PoolTimeout):
            await waiter
        await agree(used=3, idle=0)
        await service.give()
        await agree(used=2, idle=1)

        await service.database.engine.dispose()
        assert service.database.pool is not pool
        await agree(used=0, idle=0, left_over=2)
        await service.take()
        await agree(used=1, idle=0, left_over=2)
        await service.give()  # The pool that was disposed of closes it.
        await agree(used=1, idle=0, left_over=1)

        seen, scraped = collect(reader), await service.scrape()
        assert seen["db.client.connection.timeouts", ""] == 1
        assert scraped["db_client_connection_timeouts_total", ""] == 1
        assert seen["dbkit.pool.connects", "waiter"] == 3
        assert seen["dbkit.pool.connects", "min_ready"] == 1
        for name, more in (("wait_time", 2), ("use_time", 2), ("create_time", 4)):
            of = f"db.client.connection.{name}", ""
            assert seen[of] - before.get(of, 0) == more
        assert scraped["db_client_connection_use_time_seconds_count", ""] == 2
        assert scraped["db_client_connection_use_time_seconds_bucket", "+Inf"] == 2
        assert scraped["db_client_connection_create_time_seconds_count", ""] == 4


async def is_(service: Service, expected: int) -> bool:
    """Whether the server sees so many; it notices a closed socket a moment later."""
    return await service.backends() == expected


def queries() -> list[str]:
    """Return the queries of the alerts and of the dashboard that a service is given."""
    (folder,) = (KIT.parents[1]).glob("*/monitoring")
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"][0]["rules"]
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    found = [each["expr"] for each in rules]
    found += [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(found) > len(rules) + len(panels)
    return found


async def test_both_have_every_metric(
    database_url: URL, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(database_url, monkeypatch) as service:
        assert (await service.client.get("/items/7")).json() == 7
        readings, scraped = collect(reader), await service.scrape()
        seen = {name for name, _ in readings}
        families = {family.name for family in Collector(service.databases).collect()}
        samples = [
            each for family in Collector(service.databases).collect() for each in family.samples
        ]
    assert {each.name for each in METRICS} <= seen
    assert {underscores(each.name) for each in METRICS if each.unit != "s"} <= families
    assert {f"{underscores(name)}_seconds" for name in TIMES} <= families
    names = {each.name for each in samples}
    labels = {label for each in samples for label in each.labels} | {"job", "instance"}
    for query in queries():
        assert (
            set(re.findall(r"\b(?:db_client|dbkit)_\w+(?=[{\[) ]|$)", query)) - labels <= names
        ), query
        named = re.findall(r"by \(([^)]*)\)", query) + re.findall(r"[{,](\w+)=", query)
        assert {each.strip() for label in named for each in label.split(",")} <= labels, query
    assert readings["dbkit.pool.route.checkouts", "GET/shop/items/{item_id}"] == 1
    assert scraped["dbkit_pool_route_checkouts_total", "GET/shop/items/{item_id}"] == 1


@pytest.mark.parametrize(
    ("route", "attributes"),
    [
        ("GET /", ("GET", "/")),
        ("WEBSOCKET /news/{topic}", ("", "/news/{topic}")),
        (NO_ROUTE, ("", "")),
        (OTHERS, ("", OTHERS)),
    ],
)
def test_routes_have_the_attributes_of_semantic_conventions(
    route: str, attributes: tuple[str, str]
) -> None:
    assert split(route) == attributes


async def test_the_last_export_has_what_the_pools_came_to(
    database_url: URL, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkouts, closed = ("dbkit.pool.route.checkouts", ""), ("dbkit.pool.closed", "retired")
    async with serving(database_url, monkeypatch) as service:
        async with service.database.session() as session:
            await session.scalar(text("select 1"))
        assert collect(reader)[closed] == 0

    last = collect(reader)  # FastAPI and OpenTelemetry's distributions: after the lifespan.

    assert (last[COUNT, "used"], last[COUNT, "idle"]) == (0, 0)
    assert (last[checkouts], last[closed]) == (1, 1)
    async with serving(database_url, monkeypatch):
        assert checkouts not in collect(reader)


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [("", "", 404), (TOKEN, "", 401), (TOKEN, "Bearer no", 401), (TOKEN, f"Bearer {TOKEN}", 200)],
)
async def test_metrics_are_closed_without_the_token(token: str, header: str, status: int) -> None:
    databases = Databases()
    databases.service = databases.service.model_copy(update={"metrics_token": token})
    app = FastAPI()
    install(app, databases)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"Authorization": header} if header else {}
        assert (await client.get("/metrics", headers=headers)).status_code == status
    assert "/metrics" not in app.openapi()["paths"]


async def test_the_log_has_a_line_for_each_interval(
    database_url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbkit.telemetry")
    async with serving(database_url, monkeypatch, POOLS_LOG_INTERVAL="0.05") as service:
        async with service.database.session() as session:
            await session.scalar(text("select 1"))

        def lines() -> list[dict[str, Any]]:
            return [vars(each) for each in caplog.records if each.name == "dbkit.telemetry"]

        await until(lambda: any(each["checkouts"] == 1 for each in lines()))
        await until(lambda: lines()[-1]["checkouts"] == 0)  # Of the interval, not of all time.
        said = lines()[-1]
        async with service.database.session() as session:
            await session.scalar(text("select 1"))
    assert (said["pool"], said["used"], said["idle"], said["max"]) == ("primary", 0, 1, 3)
    assert sum(each["checkouts"] for each in lines()) == 2  # The last line comes at the end.


@pytest.mark.parametrize("first", ["install", "instrument"])
async def test_an_instrumented_application_has_traces_and_names_its_requests(first: str) -> None:
    """The instrumentor takes the stack of middleware apart, and knows only Starlette's."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = FastAPI()
    steps = {
        "install": lambda: install(app, Databases()),
        "instrument": lambda: FastAPIInstrumentor.instrument_app(app, tracer_provider=provider),
    }
    steps.pop(first)()
    for step in steps.values():
        step()

    @app.get("/fine")
    async def fine() -> None: ...

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answers = [await client.get(path) for path in ("/fine", "/broken")]

    assert [answer.status_code for answer in answers] == [200, 500]
    assert all(len(answer.headers.get_list("x-request-id")) == 1 for answer in answers)
    routes = [each for each in spans.get_finished_spans() if each.parent is None]
    assert [each.name for each in routes] == ["GET /fine", "GET /broken"]
