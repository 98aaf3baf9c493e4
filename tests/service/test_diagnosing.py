"""The causes of an exhausted pool, planted in a service: each is named by route and line."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from collector import Collector, collecting
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, NumberDataPoint
from rendering import Renderer
from running import copy_of, manage, running, wait_until

TOKEN = "a token of some length"  # noqa: S105 -- of this test

FAULTS = """\
import asyncio
import time

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from .databases.primary import PrimarySession, primary

router = APIRouter(prefix="/faults")
kept: list[AsyncSession] = []


@router.get("/forget/{number}")
async def forget(number: int) -> None:
    session = AsyncSession(primary.engine)
    kept.append(session)
    await session.execute(text("select 'kept'"))


@router.get("/sleep")
async def sleep(session: PrimarySession) -> None:
    await session.execute(text("select 1"))
    await asyncio.sleep(5)


@router.get("/block")
async def block() -> None:
    time.sleep(2)
"""


def check_what_was_exported(collector: Collector) -> None:
    """FastAPI's own telemetry, which has set up the exporter, and the kit's beside it."""
    metrics, spans = collector.metrics(), collector.received["/v1/traces"]
    requests = metrics["fastapi", "http.server.request.duration"].histogram.data_points
    checkouts = metrics["dbkit", "dbkit.pool.route.checkouts"].sum.data_points
    assert metrics["dbkit", "db.client.connection.use_time"].histogram.data_points[0].count > 0
    assert b"http.route" in spans
    assert ("GET", "/faults/sleep") in routes_of(checkouts) <= routes_of(requests)


def routes_of(points: Iterable[NumberDataPoint | HistogramDataPoint]) -> set[tuple[str, str]]:
    """Return the methods and routes that a metric has values of."""
    named = [{each.key: each.value.string_value for each in point.attributes} for point in points]
    return {(each["http.request.method"], each["http.route"]) for each in named}


def line_of(text: str) -> str:
    """Name the line of the planted module that begins with a text, as messages do."""
    lines = FAULTS.splitlines()
    (number,) = (at for at, line in enumerate(lines, 1) if line.strip().startswith(text))
    return f"src/my_service/faults.py:{number}"


def test_each_fault_is_named_in_the_log_in_the_503_and_by_the_command_and_is_counted(
    render: Renderer, tmp_path: Path
) -> None:
    folder = copy_of(render(), tmp_path)
    (folder / "src/my_service/faults.py").write_text(FAULTS)
    main = folder / "src/my_service/main.py"
    main.write_text(
        f"{main.read_text()}\n\nfrom .faults import router\n\napp.include_router(router)\n"
    )
    settings = {
        "DATABASE_POOL_SIZE": "2",
        "DATABASE_POOL_TIMEOUT": "0.2",
        "DATABASE_LEAK_AFTER": "2",
        "POOLS_TOKEN": TOKEN,
    }
    export = {
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    with (
        collecting() as collector,
        running(folder, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **export, **settings) as service,
        ThreadPoolExecutor() as threads,
    ):
        service.client.headers["Authorization"] = f"Bearer {TOKEN}"
        service.client.get("/faults/forget/7").raise_for_status()
        slow = threads.submit(service.client.get, "/faults/sleep")
        wait_until(lambda: service.status("/items") == 503, "no connection is left")
        forgets, sleeps = service.client.get("/items").json()["holders"]
        assert slow.result().status_code == 200
        service.client.get("/faults/forget/8").raise_for_status()

        blocked = ""

        def is_blamed() -> bool:
            nonlocal blocked
            assert service.client.get("/faults/block").status_code == 200
            blocked = service.client.get("/items").json().get("blocked", "")
            return blocked != ""

        wait_until(is_blamed, "the 503 says what blocked the event loop")
        wait_until(lambda: "the event loop goes on" in service.log, "said what blocked")
        wait_until(lambda: "returned its connection" in service.log, "said what came back")
        said = service.log.splitlines()
        for name in (
            "dbkit.pool.leaks",
            "dbkit.event_loop.blocks",
            "db.client.connection.timeouts",
        ):
            wait_until(lambda name=name: collector.total(name) > 0, f"{name} is exported")
        show = "pools", "show", "--url", str(service.client.base_url)
        shown = manage(folder, *show, variables={"POOLS_TOKEN": TOKEN})
        assert service.stop() == 0

    check_what_was_exported(collector)

    def line_with(words: str) -> str:
        return next(each for each in said if words in each)

    route = "GET /faults/forget/{number} for"
    line = line_of("await session.execute(text(\"select 'kept'\"))")
    assert route in forgets
    assert line in forgets
    assert route in line_with("DATABASE_LEAK_AFTER")
    assert line in line_with("DATABASE_LEAK_AFTER")

    route, line = "GET /faults/sleep for", f"now at {line_of('await asyncio.sleep(5)')} in sleep"
    assert route in sleeps
    assert line in sleeps
    assert route in line_with("the database has nothing to do")
    assert line in line_with("the database has nothing to do")

    route, line = "GET /faults/block", f"{line_of('time.sleep(2)')} in block"
    assert f"by {route}, at {line};" in line_with("the event loop is blocked")
    assert f"by {route}, at {line}, until " in blocked

    assert shown.returncode == 0
    for words in (f"{route}  {line}", "GET /faults/forget/{number}, ended", "GET /faults/sleep"):
        assert words in shown.stdout
    assert TOKEN not in service.log + shown.stdout

    assert "no connection within 0.2 s" in service.log
    assert "held by GET /faults/sleep for" in service.log
