"""What a service answers to those who mean it harm: quickly, in bounds, and never a 5xx."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pooler import listens
from rendering import ROOT, Renderer
from running import PATIENCE, RunningService, copy_of, environment, free_port, running, wait_until
from variants import VARIANTS

JSON = {"Content-Type": "application/json"}
GET = b"GET /livez HTTP/1.1\r\nhost: test\r\n"
POST = b"POST /items HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
MOST = 16_000_000
"""Bytes of an endless header; the kernel takes some before they are read."""

# By what docs/security.md calls them. Bodies, and what is answered:
BODIES = {
    "JSON, 100,000 arrays deep": (b"[" * 100_000, 422),
    "JSON, 100,000 objects deep": (b'{"a":' * 100_000, 422),
    "the same, closed again": (b"[" * 50_000 + b"]" * 50_000, 422),
    "a number of 5,000 digits": (b'{"name": "lamp", "quantity": ' + b"9" * 5000 + b"}", 422),
    "`NaN`": (b'{"name": "lamp", "quantity": NaN}', 422),
    "a lone surrogate": (b'{"name": "\\ud800", "quantity": 1}', 422),
    "NUL": (b'{"name": "\\u0000", "quantity": 1}', 422),
    "what is no UTF-8": (b"\xff\xfe{", 422),
    "a body of more than `max_body_size`": (b'{"name": "' + b"x" * 1_000_000 + b'"}', 413),
}
# Whole requests, in parts:
REQUESTS = {
    "the same in chunks": ([POST, b"transfer-encoding: chunked\r\n\r\n", *[CHUNK] * 16], 413),
    "the same, only announced": ([POST, b"content-length: 99999999999\r\n\r\n{"], 413),
    "TLS": ([b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n"], 400),
    "a URL of 100 kB": ([b"GET /livez?" + b"a" * 100_000 + GET[10:], b"\r\n"], 400),
    "two lengths": (
        [GET, b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
        400,
    ),
    "a negative length": ([GET, b"content-length: -1\r\n\r\n"], 400),
}
# What does not end; with `uvicorn --http h11`:
FLOODS = {
    "headers without end": (GET, b"x: " + b"a" * 60_000 + b"\r\n"),
    "a header without end": (GET + b"x: ", b"a" * 65536),
    "a URL without end": (b"GET /", b"a" * 65536),
}


@pytest.fixture(scope="module")
def folder(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a service on SQLite, for all tests."""
    answers = next(each.answers for each in VARIANTS if each.name == "one-sqlite")
    return copy_of(render(**answers), tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RunningService]:
    """Run it, as in development."""
    with running(folder) as service:
        yield service


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_a_body_is_refused_for_what_it_is(
    service: RunningService, body: bytes, status: int
) -> None:
    response = service.client.post("/items", content=body, headers=JSON)

    assert response.status_code == status
    assert len(response.content) < 1000
    items = service.client.get("/openapi.json").json()["paths"]["/items"]
    for documented in (each["responses"][str(status)] for each in items.values()):
        assert response.headers["content-type"].partition(";")[0] in documented["content"]


@pytest.mark.parametrize(("parts", "status"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_is_refused_before_it_is_read(
    service: RunningService, parts: list[bytes], status: int
) -> None:
    with connect(service.client.base_url.port) as connection:
        for part in parts:
            connection.sendall(part)
        assert connection.recv(1000).startswith(b"HTTP/1.1 %d " % status)


def connect(port: int | None) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or 0), timeout=PATIENCE)


def test_it_serves_on_and_nothing_was_an_error(service: RunningService) -> None:
    """The last test of this service."""
    assert service.client.get("/readyz").status_code == 200
    assert " ERROR " not in service.log
    assert "Traceback" not in service.log


@pytest.fixture(scope="module")
def h11(folder: Path) -> Iterator[int]:
    """Run the same by uvicorn, with the parser that has a limit; return its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "my_service.main:app", "--http", "h11", f"--port={port}"],
        cwd=folder,
        env=environment(DATABASE_URL="sqlite:///primary.sqlite3"),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(port), "it listens")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("begin", "flood"), FLOODS.values(), ids=FLOODS)
def test_h11_bounds_what_comes_before_a_body(h11: int, begin: bytes, flood: bytes) -> None:
    sent = begin + flood * (MOST // len(flood))

    with connect(h11) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(sent)

    with connect(h11) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_the_documentation_lists_what_each_got() -> None:
    page = (ROOT / "docs" / "security.md").read_text()

    assert re.findall(r"^\| (.*) \| (\d+)(?:, .*)? \|$", page, re.MULTILINE) == [
        *((name, str(status)) for name, (_, status) in BODIES.items()),
        *((name, str(status)) for name, (_, status) in REQUESTS.items()),
        *((name, "400") for name in FLOODS),
    ]
