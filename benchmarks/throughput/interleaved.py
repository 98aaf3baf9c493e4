"""Compare services within one process, in small batches that take turns.

    uv run --group benchmarks python -m benchmarks.throughput.interleaved [--batches 60]

What else the machine does slows all of them alike, so that ratios hold to a few percent where those
of whole rounds differ by a factor. It asks each application itself, one request at a time, without
a server around it, and takes the process's CPU time, of which it reports the 10th percentile of
the batches. It writes `interleaved.json` beside this file, and prints a table of each scenario.
"""

import argparse
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from uvicorn import Config

from .__main__ import DATABASES, HERE, PACKAGE, cores, environment, render, server
from .calls import ask

REQUESTS = 50
"""Requests in a batch."""
WARM_UP = 200

STRUCTURED = "structured_asyncpg"
NAMES = {
    STRUCTURED: "FastAPI on asyncpg, in the service's structure",
    "fastapi_asyncpg": "FastAPI on asyncpg, nothing else",
    "rendered": "**the rendered service**",
    "rendered fresh": "the same, statement built at each request",
    "rendered object": "the same, an object by its key",
    "rendered session": "the same, in a session",
    "example": "the same, with its example's own routes",
    "commit_at_end": "async session, committed at the end",
    "naive": "async session, pool of 5+10",
}
EVERYWHERE = (STRUCTURED, "fastapi_asyncpg", "rendered", "example", "commit_at_end", "naive")
SCENARIOS: dict[str, tuple[str, dict[str, str]]] = {
    "one row by key": (
        "GET",
        dict.fromkeys(EVERYWHERE, "/items/{id}")
        | {
            "rendered fresh": "/fresh/{id}",
            "rendered object": "/object/{id}",
            "rendered session": "/session/{id}",
        },
    ),
    "list of 20": ("GET", dict.fromkeys(EVERYWHERE, "/items?limit=20")),
    "insert": ("POST", dict.fromkeys(EVERYWHERE, "/items") | {"rendered session": "/session"}),
    "one row from each of two databases": ("GET", dict.fromkeys(EVERYWHERE, "/both/{id}")),
}
SHARED = {"fastapi_asyncpg": STRUCTURED, "example": "rendered"}
"""Contenders whose pools another one opens."""


async def measure(batches: int) -> dict[str, dict[str, float]]:
    """Return microseconds of CPU for a request, by scenario and contender."""
    apps: dict[str, Any] = {
        name: import_module(f"benchmarks.throughput.contenders.{name}").app for name in EVERYWHERE
    }
    Config(apps["rendered"], log_level="warning", access_log=False)  # Sets up logging, as there.
    found: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        for name in EVERYWHERE:
            if name not in SHARED:
                lifespan = apps[name].router.lifespan_context(apps[name])
                await stack.enter_async_context(lifespan)
        for scenario, (method, paths) in SCENARIOS.items():
            times = found[scenario] = {name: [] for name in paths}
            for batch in range(-WARM_UP // REQUESTS, batches):
                for name, path in paths.items():
                    began = time.process_time()
                    for number in range(REQUESTS):
                        await ask(apps[name.partition(" ")[0]], method, path, number + 1)
                    if batch >= 0:
                        times[name].append((time.process_time() - began) / REQUESTS * 1e6)
            print(f"\n{scenario}\n\n{table(summary(times))}", flush=True)
    return {scenario: summary(times) for scenario, times in found.items()}


def summary(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the 10th percentile of each contender's batches."""
    return {name: quantiles(each, n=10)[0] for name, each in times.items()}


def table(found: dict[str, float]) -> str:
    """Write a table: how many requests there are in the time of one of the first contender."""
    lines = ["| | us of CPU | ratio |", "| --- | ---: | ---: |"]
    for name, each in found.items():
        lines.append(f"| {NAMES[name]} | {each:.0f} | {found[STRUCTURED] / each:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--output", type=Path, default=HERE / "interleaved.json")
    arguments = parser.parse_args()
    with TemporaryDirectory() as directory, server() as urls:
        folder = Path(directory) / PACKAGE
        render(folder, len(DATABASES))
        os.environ |= environment(urls, folder)
        os.chdir(folder)
        sys.path.insert(0, str(folder / "src"))
        if cores()[0] != "-":
            os.sched_setaffinity(0, {int(cores()[0])})  # The server keeps both.
        found = uvloop.run(measure(arguments.batches))
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
