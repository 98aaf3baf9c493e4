"""Count what each layer does for one request: calls of Python and of C, which load has no say in.

    python -m benchmarks.throughput.calls CONTENDER

It asks the application itself, without a server around it, in the environment that `__main__.py`
gives to a service; it prints the calls by layer, as JSON.
"""

import asyncio
import cProfile
import json
import sys
from collections import Counter
from importlib import import_module
from types import CodeType
from typing import Any
from uuid import uuid4

from uvicorn import Config

WARM_UP, REQUESTS = 100, 500
LAYERS = {
    "/site-packages/fastapi/": "FastAPI",
    "/site-packages/starlette/": "Starlette",
    "/site-packages/pydantic": "Pydantic",
    "/site-packages/sqlalchemy/": "SQLAlchemy",
    "/site-packages/asyncpg/": "asyncpg",
    "/dbkit/pool/usage.py": "the kit: who holds what",
    "/dbkit/pool/": "the kit: pool",
    "/dbkit/": "the kit: readers, log, disconnects",
    "/items/": "the route",
    "/contenders/": "the route",
    "/benchmarks/": "",
}
OTHERS = "Python's library, and other packages"


def layer_of(code: CodeType) -> str:
    """Name the layer that code belongs to; "" is ours."""
    return next((name for part, name in LAYERS.items() if part in code.co_filename), OTHERS)


def by_layer(profile: cProfile.Profile) -> Counter[str]:
    """Count the calls; what is written in C counts for who calls it."""
    found: Counter[str] = Counter()
    stats: Any = profile.getstats()
    for entry in stats:
        if isinstance(entry.code, CodeType):
            layer = layer_of(entry.code)
            in_c = [each for each in entry.calls or () if isinstance(each.code, str)]
            found[layer] += entry.callcount + sum(each.callcount for each in in_c)
    del found[""]
    return found


async def ask(app: Any, method: str, path: str, number: int) -> None:
    """Send one request; `{id}` in its path is the number of a row."""
    path, _, query = path.replace("{id}", str(1 + number % 1000)).partition("?")
    body = json.dumps({"name": uuid4().hex}).encode() if method == "POST" else b""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] not in {200, 201}:
            raise SystemExit(f"{path}: {message['status']}")

    await app(scope, receive, send)


async def count(app: Any) -> dict[str, float]:
    """Count the calls for a request, by layer, most first."""
    profile = cProfile.Profile()
    async with app.router.lifespan_context(app):
        for number in range(WARM_UP):
            await ask(app, "GET", "/items/{id}", number)
        with profile:
            for number in range(REQUESTS):
                await ask(app, "GET", "/items/{id}", number)
    return {name: calls / REQUESTS for name, calls in by_layer(profile).most_common()}


if __name__ == "__main__":
    contender = import_module(f"benchmarks.throughput.contenders.{sys.argv[1]}")
    Config(contender.app, log_level="warning", access_log=False)  # Sets up logging, as there.
    print(json.dumps(asyncio.run(count(contender.app))))
