"""What a service answers to those who mean it harm: quickly, in bounds, and never a 5xx."""

import socket
from collections.abc import Iterator

import pytest
from rendering import Renderer
from running import PATIENCE, RunningService, copy_of, running
from variants import VARIANTS

JSON = {"Content-Type": "application/json"}
GET = b"GET /livez HTTP/1.1\r\nhost: test\r\n"


@pytest.fixture(scope="module")
def service(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Run a service on SQLite, for all tests."""
    answers = next(each.answers for each in VARIANTS if each.name == "one-sqlite")
    with running(copy_of(render(**answers), tmp_path_factory.mktemp("hostile"))) as service:
        yield service


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 100_000, 422),
        (b'{"a":' * 100_000, 422),
        (b"[" * 50_000 + b"]" * 50_000, 422),
        (b'{"name": "lamp", "quantity": ' + b"9" * 5000 + b"}", 422),
        (b'{"name": "lamp", "quantity": NaN}', 422),
        (b'{"name": "\\ud800", "quantity": 1}', 422),
        (b'{"name": "\\u0000", "quantity": 1}', 422),
        (b"\xff\xfe{", 422),
        (b'{"name": "' + b"x" * 1_000_000 + b'"}', 413),
    ],
    ids=lambda value: "" if isinstance(value, int) else repr(value[:12]),
)
def test_a_body_is_refused_for_what_it_is(
    service: RunningService, body: bytes, status: int
) -> None:
    response = service.client.post("/items", content=body, headers=JSON)

    assert response.status_code == status
    assert len(response.content) < 1000
    items = service.client.get("/openapi.json").json()["paths"]["/items"]
    for documented in (each["responses"][str(status)] for each in items.values()):
        assert response.headers["content-type"].partition(";")[0] in documented["content"]


def answer(service: RunningService, *parts: bytes) -> bytes:
    """Send bytes, and return the first line of the answer."""
    address = ("127.0.0.1", service.client.base_url.port or 0)
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
        return connection.recv(1000).partition(b"\r\n")[0]


def test_a_body_without_a_length_is_limited_too(service: RunningService) -> None:
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head = b"POST /items HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"

    line = answer(service, head + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 16)

    assert line == b"HTTP/1.1 413 Request Entity Too Large"


def test_a_length_that_is_announced_is_refused_before_it_is_sent(service: RunningService) -> None:
    head = b"POST /items HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"

    line = answer(service, head + b"content-length: 99999999999\r\n\r\n{")

    assert line == b"HTTP/1.1 413 Request Entity Too Large"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n",
        b"GET /livez?" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: test\r\n\r\n",
        GET + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"content-length: -1\r\n\r\n",
    ],
    ids=["TLS", "long URL", "two lengths", "negative length"],
)
def test_what_is_no_http_is_a_400(service: RunningService, request_: bytes) -> None:
    assert answer(service, request_) == b"HTTP/1.1 400 Bad Request"


def test_it_serves_on_and_nothing_was_an_error(service: RunningService) -> None:
    """The last test of this service."""
    assert service.client.get("/readyz").status_code == 200
    assert " ERROR " not in service.log
    assert "Traceback" not in service.log
