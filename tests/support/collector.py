"""An OpenTelemetry collector, or as much of one as an exporter needs: it keeps what it is sent."""

from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric


class Collector(ThreadingHTTPServer):
    """Listens on a port of its own; `received` has the latest body of each path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.received: dict[str, bytes] = {}

    def metrics(self) -> dict[tuple[str, str], Metric]:
        """Return the latest metrics, by who made the instrument, and its name."""
        request = ExportMetricsServiceRequest.FromString(self.received.get("/v1/metrics", b""))
        scopes = (scope for each in request.resource_metrics for scope in each.scope_metrics)
        return {(scope.scope.name, each.name): each for scope in scopes for each in scope.metrics}

    def total(self, name: str) -> float:
        """Return the sum of a counter of the kit."""
        found = self.metrics().get(("dbkit", name))
        return sum(each.as_int or each.as_double for each in found.sum.data_points) if found else 0


class Receiver(BaseHTTPRequestHandler):
    """Takes what an exporter sends."""

    def do_POST(self) -> None:
        """Keep a body."""
        assert isinstance(self.server, Collector)
        self.server.received[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- http.server's name
        """Say nothing."""


@contextmanager
def collecting() -> Generator[Collector]:
    """Collect until exit."""
    with Collector() as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()
