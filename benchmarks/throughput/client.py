"""Clients that send one request after the other on connections that stay open, and time them.

python -m benchmarks.throughput.client PORT METHOD PATH CLIENTS SECONDS CORE
"""

import asyncio
import json
import os
import sys
import time
from itertools import count

WARM_UP, LONGEST_WARM_UP = 0.25, 5.0  # seconds in which nothing counts
FIRST_ID, IDS = 1, 1000  # rows that are read, in turns

numbers = count()


class Client(asyncio.Protocol):
    """One client."""

    def __init__(self, method: str, path: str, results: "Results") -> None:
        self.method, self.path, self.results = method, path, results
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Send the next request."""
        number = next(numbers)
        path = self.path.replace("{id}", str(FIRST_ID + number % IDS))
        body = b""
        if self.method == "POST":
            name = f"{os.getpid()}-{time.time_ns()}-{number}"
            body = json.dumps({"name": name, "quantity": 1}).encode()
        head = f"{self.method} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.sent = time.perf_counter()
        self.transport.write(f"{head}\r\n".encode() + body)

    def data_received(self, data: bytes) -> None:
        """Read an answer, and send the next request once it is whole."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return
        self.buffer = b""
        self.results.served.add(self)
        self.results.note(time.perf_counter() - self.sent, good=head[9:10] == b"2")
        if self.results.going:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note a connection that the server ended."""
        if self.results.going:
            self.results.errors += 1


class Results:
    """What all clients measured."""

    def __init__(self) -> None:
        self.going, self.counting = True, False
        self.times: list[float] = []
        self.served: set[Client] = set()
        """Clients that were answered."""
        self.answered = 0
        """All answers, counted or not."""
        self.errors = 0

    def note(self, seconds: float, *, good: bool) -> None:
        """Note an answer."""
        self.answered += 1
        if self.counting and self.going:
            self.times.append(seconds)
            self.errors += not good


async def main() -> None:
    """Send, and print what was measured."""
    port, method, path, clients, seconds, core = sys.argv[1:]
    if core != "-":
        os.sched_setaffinity(0, {int(core)})
    results = Results()
    loop = asyncio.get_running_loop()
    for _ in range(int(clients)):
        await loop.create_connection(lambda: Client(method, path, results), "127.0.0.1", int(port))
    # A server accepts one client in each turn of its event loop, and is busy with the others.
    began = time.perf_counter()
    while len(results.served) < int(clients) and time.perf_counter() < began + LONGEST_WARM_UP:  # noqa: ASYNC110 -- no event
        await asyncio.sleep(WARM_UP)
    await asyncio.sleep(WARM_UP)
    results.counting = True
    began = time.perf_counter()
    await asyncio.sleep(float(seconds))
    elapsed = time.perf_counter() - began
    results.going = False
    times = sorted(results.times) or [float("nan")]
    print(
        json.dumps(
            {
                "rate": len(results.times) / elapsed,
                "p50": times[len(times) // 2],
                "p99": times[len(times) * 99 // 100],
                "errors": results.errors,
                "answered": results.answered,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
