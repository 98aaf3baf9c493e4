"""The log of a service in a process of its own, as a platform reads it."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import KIT
from dbkit.errors import NotConfigured
from dbkit.settings.database import read_full_tracebacks, read_log_format
from dbkit.web.tracebacks import INNERMOST, add_hint, write_traceback
from running import PATIENCE, free_port, wait_until
from small_service import SERVICE
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ROUTES = """
import asyncio
import logging
from fastapi import APIRouter, BackgroundTasks, WebSocket
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from typing import Annotated
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from dbkit import session_from
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"])
things = APIRouter(prefix="/things")
@things.get("/{thing}")
async def look(thing: int):
    logging.getLogger("dbkit.things").info("looked at %d", thing, extra={"colour": "red"})
    logging.getLogger("library").info("chatter")
@app.get("/orders")
async def orders(session: Annotated[AsyncSession, session_from(databases["orders"])]):
    await session.execute(text("select 1"))
    await session.execute(text("select 2"))
@app.get("/broken")
async def broken():
    raise RuntimeError("no postgresql://me:hunter2@host/name\\nhere")
@app.get("/taken")
async def taken(session: Annotated[AsyncSession, session_from(databases["orders"])]):
    await session.execute(text("create table if not exists names (name text primary key)"))
    for _ in range(2):
        await session.execute(text("insert into names values (:name)"), {"name": f"hunter{1 + 1}"})
@app.get("/missing")
async def missing(session: Annotated[AsyncSession, session_from(databases["orders"])]):
    await session.execute(text("select colour from tags"))
@app.get("/committed")
async def committed(session: Annotated[AsyncSession, session_from(databases["orders"])]):
    await session.commit()
    await session.execute(text("select 1"))
@app.get("/gathered")
async def gathered(session: Annotated[AsyncSession, session_from(databases["orders"])]):
    await asyncio.gather(*(session.execute(text("select 1")) for _ in range(3)))
@app.get("/later")
async def later(
    session: Annotated[AsyncSession, session_from(databases["orders"])], tasks: BackgroundTasks
):
    tasks.add_task(session.execute, text("select 1"))
@app.websocket("/socket")
async def socket(websocket: WebSocket):
    await websocket.accept()
    async with databases["orders"].session() as session:
        await session.execute(text("select 1 from nowhere"))
app.include_router(things, prefix="/api")
tenants = FastAPI()
tenants.include_router(things)
app.mount("/tenants/{tenant}", tenants)
"""


WORKER = "uvicorn_worker.UvicornWorker"
UVICORN = ("-m", "uvicorn", "service:app", "--port", "{port}")


class Logged:
    """A service, and what it has logged."""

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str],
        variables: Mapping[str, str],
        server: Sequence[str] = UVICORN,
    ) -> None:
        port = free_port()
        self.file = folder / "log"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        (folder / "service.py").write_text(SERVICE + ROUTES)
        with self.file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(each.format(port=port) for each in server), *flags],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(KIT), **variables},
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """Stop it, if it still runs."""
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.client.close()

    def answers(self) -> bool:
        """Whether it listens already."""
        try:
            return self.client.get("/livez").is_success
        except httpx.TransportError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        """Read all lines of JSON; the server's first come before the application."""
        lines = self.file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Send a request that is named by its id."""
        return self.client.get(path, headers={"X-Request-ID": path.strip("/")[:4], **headers})

    def lines_of(self, request_id: str, count: int) -> list[dict[str, Any]]:
        """Wait for so many lines of a request: they are written after the response."""

        def found() -> list[dict[str, Any]]:
            return [each for each in self.lines() if each.get("request_id") == request_id]

        wait_until(lambda: len(found()) >= count, f"{count} lines of {request_id}")
        return found()


@contextmanager
def logged(
    folder: Path, *flags: str, server: Sequence[str] = UVICORN, **variables: str
) -> Generator[Logged]:
    service = Logged(folder, flags, variables, server)
    try:
        wait_until(service.answers, "it listens")
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    """Run a service as in production, for all tests."""
    with logged(tmp_path_factory.mktemp("logs")) as service:
        yield service


def test_a_request_is_one_line_with_its_route_and_without_its_query(service: Logged) -> None:
    response = service.get("/api/things/7?token=hunter2", **{"X-Request-ID": "from-a.proxy"})

    assert response.headers["x-request-id"] == "from-a.proxy"
    assert response.headers["x-content-type-options"] == "nosniff"
    own, line = service.lines_of("from-a.proxy", 2)
    assert (own["message"], own["colour"]) == ("looked at 7", "red")
    assert line["duration_ms"] >= 0
    assert {key: line[key] for key in ("level", "message", "method", "route", "status")} == {
        "level": "info",
        "message": "GET /api/things/{thing} 200",
        "method": "GET",
        "route": "/api/things/{thing}",
        "status": 200,
    }


def test_a_request_says_what_it_used_of_each_database(service: Logged) -> None:
    service.get("/orders")

    (line,) = service.lines_of("orde", 1)
    used = line["databases"]["orders"]
    assert list(used) == ["statements", "sql_ms", "held_ms", "waited_ms"]
    assert used["statements"] == 3  # BEGIN IMMEDIATE is one on SQLite.
    assert line["duration_ms"] >= used["held_ms"] >= used["sql_ms"] >= 0


def test_a_route_of_a_mounted_application_has_the_mount_before_it(service: Logged) -> None:
    service.get("/tenants/ACME/things/7", **{"X-Request-ID": "mounted"})

    _, line = service.lines_of("mounted", 2)
    assert line["route"] == "/tenants/{tenant}/things/{thing}"
    assert "ACME" not in str(line)


def test_a_path_of_no_route_is_shown_and_does_not_break_the_line(service: Logged) -> None:
    service.get("/none%0Aof%20these?token=hunter2")

    (line,) = service.lines_of("none", 1)
    assert (line["path"], line["status"]) == ("/none%0Aof%20these", 404)
    assert "route" not in line


def test_an_exception_has_its_request_and_no_password(service: Logged) -> None:
    assert service.get("/broken").status_code == 500

    line, exception = service.lines_of("brok", 2)
    assert (line["route"], line["status"]) == ("/broken", 500)
    assert exception["logger"] == "uvicorn.error"
    assert "RuntimeError: no postgresql://me:***@host/name\nhere" in exception["exception"]


def test_a_request_that_a_middleware_refuses_has_its_line(service: Logged) -> None:
    response = service.get("/api/things/7", host="elsewhere", **{"X-Request-ID": "host"})

    assert response.status_code == 400
    assert service.lines_of("host", 1)[0]["status"] == 400


def test_an_id_that_is_not_plain_is_replaced(service: Logged) -> None:
    for wrong in ('a"b', "a b", ""):
        response = service.get("/api/things/7", **{"X-Request-ID": wrong})
        assert len(response.headers["x-request-id"]) == 16


def test_an_error_in_a_websocket_is_logged_as_it_is(service: Logged) -> None:
    url = f"ws{str(service.client.base_url).removeprefix('http')}/socket"
    named = {"X-Request-ID": "sock"}
    with connect(url, additional_headers=named) as socket, pytest.raises(ConnectionClosed):
        socket.recv()

    wait_until(lambda: any("exception" in each for each in service.lines_of("sock", 1)), "it")
    (said,) = [each["exception"] for each in service.lines_of("sock", 1) if "exception" in each]
    assert "no such table: nowhere" in said
    assert "ASGI message" not in said


def test_health_and_libraries_are_quiet_and_nothing_secret_is_logged(service: Logged) -> None:
    service.get("/api/things/7", **{"X-Request-ID": "last"})
    service.lines_of("last", 2)

    text = service.file.read_text()
    assert "livez" not in text
    assert "chatter" not in text
    assert "hunter2" not in text


def test_every_line_is_json_from_the_applications_start_to_the_servers_last(
    service: Logged,
) -> None:
    """The last test of this service."""
    service.stop()

    lines = service.lines()
    assert lines[0]["message"] == "Application startup complete."
    assert len(service.file.read_text().splitlines()) == len(lines) + 2
    assert lines[-1]["message"].startswith("Finished server process")
    assert all(list(each)[:4] == ["time", "level", "logger", "message"] for each in lines)


def test_text_is_for_people(tmp_path: Path) -> None:
    with logged(tmp_path, LOG_FORMAT="text") as service:
        service.get("/api/things/7", **{"X-Request-ID": "api_things_7"})
        service.get("/orders")

    text = service.file.read_text()
    assert " INFO    GET /api/things/{thing} 200  duration_ms=" in text
    assert "  orders=3 in " in text
    assert " INFO    looked at 7  colour=red  [api_thin]\n" in text
    assert " INFO    Application startup complete.\n" in text


def test_flags_of_the_server_count(tmp_path: Path) -> None:
    with logged(tmp_path, "--no-access-log", "--log-level", "warning") as service:
        service.get("/api/things/7")
        service.get("/broken")

    assert [each["logger"] for each in service.lines()] == ["uvicorn.error"]


def test_a_log_config_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    handlers = {"own": {"class": "logging.StreamHandler"}}
    root = {"level": "INFO", "handlers": ["own"]}
    config = {"version": 1, "disable_existing_loggers": False, "handlers": handlers, "root": root}
    (tmp_path / "log.json").write_text(json.dumps(config))
    with logged(tmp_path, "--log-config", "log.json") as service:
        service.get("/api/things/7")

    assert "\nGET /api/things/{thing} 200\n" in service.file.read_text()


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(NotConfigured, match="LOG_FORMAT: 'xml' is neither json nor text"):
        read_log_format({"LOG_FORMAT": "xml"})


def test_text_shows_the_lines_of_the_service_the_message_and_the_right_way(tmp_path: Path) -> None:
    with logged(tmp_path, LOG_FORMAT="text") as service:
        for path in ("broken", "missing", "committed", "taken"):
            service.get(f"/{path}", Connection="close")  # The server closes after an error.
        wait_until(
            lambda: "lines of libraries" in service.file.read_text()[-600:], "the last error"
        )
        short = service.file.read_text()
        # These are raised when the session ends, where no line is the service's own.
        for path in ("gathered", "later"):
            service.get(f"/{path}", Connection="close")

    text = service.file.read_text()
    assert "site-packages" not in short
    assert 0 < text.count("site-packages") <= 4 * INNERMOST
    assert 'service.py", line ' in text
    assert "lines of libraries are hidden: " in text
    assert "RuntimeError: no postgresql://me:***@host/name\nhere\n" in text
    assert "OperationalError: no such table: tags\n[SQL: select colour from tags]\n" in text
    assert "where you need what the database makes, use await session.flush()" in text
    assert "begin one in each task" in text
    assert "as it has in background tasks" in text
    assert "orders: SQLSTATE 23505: UNIQUE constraint failed: names.name; answered 500" in text
    assert "hunter2" not in text


def test_an_error_that_led_to_itself_is_written_once() -> None:
    """As one that starlette's `BaseHTTPMiddleware` takes out of a group, and raises again."""
    inner = ValueError("inner")
    inner.__context__ = ExceptionGroup("unhandled errors in a TaskGroup", [inner])

    add_hint(inner)

    assert write_traceback(inner, full=True).count("ValueError: inner") == 1


def test_full_tracebacks_are_a_setting_away(tmp_path: Path) -> None:
    with logged(tmp_path, LOG_FORMAT="text", LOG_TRACEBACKS="full") as service:
        service.get("/taken")

    text = service.file.read_text()
    assert "site-packages" in text
    assert "sqlite3.IntegrityError: UNIQUE constraint failed: names.name\n" in text
    assert "are hidden" not in text
    assert "hunter2" not in text


def test_a_start_that_fails_says_why_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE.replace(', url="sqlite:///orders"', ""))
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(KIT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert done.returncode == 3
    assert lines[0]["message"].startswith("settings are missing or wrong:\n  ORDERS_DATABASE_URL:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "server",
    [
        ("-m", "hypercorn", "service:app", "--bind", "127.0.0.1:{port}", "--access-logfile", "-"),
        ("-m", "granian", "service:app", "--interface", "asgi", "--port", "{port}", "--access-log"),
        ("-m", "gunicorn", "service:app", "-b", "127.0.0.1:{port}", "-k", "asgi"),
        ("-m", "gunicorn", "service:app", "-b", "127.0.0.1:{port}", "-k", WORKER),
    ],
    ids=["hypercorn", "granian", "gunicorn-asgi", "gunicorn-uvicorn"],
)
def test_the_log_is_the_same_under_another_server(tmp_path: Path, server: Sequence[str]) -> None:
    with logged(tmp_path, server=server, SHUTDOWN_DELAY="1") as service:
        service.get("/api/things/7", **{"X-Request-ID": "thing"})
        service.get("/broken")
        own, line = service.lines_of("thing", 2)
        service.lines_of("brok", 2)

    assert own["message"] == "looked at 7"
    assert line["message"] == "GET /api/things/{thing} 200"
    text = service.file.read_text()
    assert text.count("RuntimeError: no postgresql") == 1
    assert text.count("api/things") == 2  # its line's message and route, and no access log
    assert text.count("Running on") <= 1
    assert "hunter2" not in text
    assert ("SHUTDOWN_DELAY=1 is kept by uvicorn alone" in text) is (WORKER not in server)


def test_an_unknown_extent_of_tracebacks_is_refused_by_name() -> None:
    with pytest.raises(NotConfigured, match="LOG_TRACEBACKS: 'all' is neither full nor short"):
        read_full_tracebacks({"LOG_TRACEBACKS": "all"}, "json")
