"""Measure both pools under the same load, and write `results.json` beside this file.

    uv run python -m benchmarks.overload [checkout_cost]

Takes some six minutes, or one for the cost of a checkout alone. Each request takes a connection,
runs a statement of `HOLD` seconds and gives the connection back; its client leaves after `PATIENCE`
seconds. Requests arrive at random (Poisson), at multiples of the capacity that was measured first;
those of the first `ONSET` seconds are not counted, for what a pool does with a burst is measured
apart. The stock pool has its defaults, and runs what it has begun; the kit's is made by
`create_engine()` from the default settings, and its requests are cancelled when their client
leaves, as the kit's middleware does. The two take turns, round by round; figures are medians of the
rounds. Then `plot.py` draws them.
"""

import asyncio
import json
import os
import platform
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from dbkit.database.engine import create_engine  # noqa: E402
from dbkit.pool import FairPool  # noqa: E402
from dbkit.settings.database import DatabaseSettings  # noqa: E402
from sqlalchemy import URL, event, text  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine  # noqa: E402
from sqlalchemy.util import await_only  # noqa: E402

POOL_SIZE = 4
HOLD = 0.02  # seconds
PATIENCE = 2.0  # seconds
PROMPT = 0.1  # seconds
ONSET = 1.0  # seconds of load before anything counts: bursts are measured apart
DURATION = 10.0  # seconds of load that count, in each round
ROUNDS = 3
LOADS = (0.7, 1.5, 3.0, 10.0)
CONTENDERS = ("stock", "fair")

Result = dict[str, float | None]


def make_engine(contender: str, url: URL, **changed: Any) -> AsyncEngine:
    """Make an engine of `POOL_SIZE` connections."""
    if contender == "stock":
        return create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0)
    settings = DatabaseSettings(url=url, pool_size=POOL_SIZE, **changed)
    return create_engine("primary", "DATABASE_", settings)


async def request(engine: AsyncEngine) -> None:
    """Hold a connection for as long as a statement runs."""
    async with engine.connect() as connection:
        await connection.execute(text(f"select pg_sleep({HOLD})"))


class Clients:
    """Those who send requests, and what became of them."""

    def __init__(self, contender: str, engine: AsyncEngine) -> None:
        self.contender = contender
        self.engine = engine
        self.good: list[float] = []
        self.errors: list[float] = []
        self.left = 0
        self.wasted = 0
        self.counted = True
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self) -> None:
        """Send a request."""
        task = asyncio.create_task(self._client())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _client(self) -> None:
        began, counted = time.monotonic(), self.counted
        work = asyncio.ensure_future(request(self.engine))
        done, _ = await asyncio.wait([work], timeout=PATIENCE)
        if done:
            times = self.errors if work.exception() else self.good
            times += [time.monotonic() - began] * counted
            return
        self.left += counted
        if self.contender == "fair":
            work.cancel()
        with suppress(BaseException):
            await work
            self.wasted += counted

    async def stop(self) -> None:
        """End what is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def offered(contender: str, url: URL, rate: float) -> Result:
    """Send `rate` requests a second; return rates per second, and times in seconds."""
    engine = make_engine(contender, url)
    await asyncio.gather(*(request(engine) for _ in range(POOL_SIZE)))
    clients = Clients(contender, engine)
    began = due = time.monotonic()
    while due - began < ONSET + DURATION:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        clients.counted = due - began >= ONSET
        clients.send()
        due += random.expovariate(rate)
    await asyncio.sleep(PATIENCE)
    result = summary(clients, DURATION)
    await clients.stop()
    await engine.dispose()
    return result


def summary(clients: Clients, seconds: float) -> Result:
    """Return the figures of a round."""
    sent = len(clients.good) + len(clients.errors) + clients.left
    served = len(clients.good) + clients.wasted
    return {
        "sent": sent / seconds,
        "good": len(clients.good) / seconds,
        "p50": median(clients.good) if clients.good else None,
        "p99": quantiles(clients.good, n=100)[-1] if len(clients.good) > 1 else None,
        "errors": len(clients.errors) / seconds,
        "time_to_error": median(clients.errors) if clients.errors else None,
        "left": clients.left / seconds,
        "wasted": clients.wasted / served if served else None,
    }


async def capacity(url: URL) -> float:
    """Return the requests per second that the connections serve when none of them rests."""
    engine = make_engine("stock", url)
    count = 0

    async def worker(until: float) -> None:
        nonlocal count
        while time.monotonic() < until:
            await request(engine)
            count += 1

    await asyncio.gather(*(worker(time.monotonic() + 3) for _ in range(POOL_SIZE)))
    await engine.dispose()
    return count / 3


async def burst(contender: str, url: URL) -> Result:
    """Send 80 requests at once, four times; return how many were served, and the slowest."""
    engine = make_engine(contender, url)
    clients = Clients(contender, engine)
    for _ in range(4):
        for _ in range(80):
            clients.send()
        await asyncio.sleep(1.5)
    await asyncio.sleep(PATIENCE)
    await clients.stop()
    await engine.dispose()
    return {
        "served": len(clients.good),
        "refused": len(clients.errors),
        "slowest": max(clients.good),
    }


async def cold_start(contender: str, url: URL) -> Result:
    """Send requests that wait for 30 ms to a pool that takes 60 ms to connect."""
    engine = make_engine(contender, url)

    @event.listens_for(engine.sync_engine, "do_connect", insert=True)
    def slowly(*_: object) -> None:
        await_only(asyncio.sleep(0.06))

    served = 0
    for _ in range(60):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.03):
                async with engine.connect() as connection:
                    await connection.execute(text("select 1"))
                served += 1
    await engine.dispose()
    return {"sent": 60, "served": served}


async def refused(contender: str, url: URL) -> Result:
    """Send 100 requests at once to a server that is not there; return the seconds to the last."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    engine = make_engine(contender, url.set(port=port))
    began = time.monotonic()
    answers: list[float] = []

    async def one() -> None:
        with suppress(Exception):
            await request(engine)
        answers.append(time.monotonic() - began)

    await asyncio.gather(*(one() for _ in range(100)))
    await engine.dispose()
    return {
        "within_0.1_s": sum(each <= PROMPT for each in answers),
        "median": median(answers),
        "last": max(answers),
    }


async def checkout_cost(url: URL) -> dict[str, Any]:
    """Take and return a connection without a statement; CPU microseconds.

    The engines differ in nothing but their pool. What else the machine does only adds to a
    round, so that the fifth of rounds that took least is what counts.
    """
    engines = {
        "stock": create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0),
        "fair": create_async_engine(
            url, poolclass=FairPool, settings=DatabaseSettings(url=url, pool_size=POOL_SIZE)
        ),
    }
    costs: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for turn in range(201):
        for contender in CONTENDERS if turn % 2 else reversed(CONTENDERS):
            began = time.process_time()
            for _ in range(200):
                async with engines[contender].connect() as connection:
                    await connection.get_raw_connection()
            if turn:  # The first is a warm-up.
                costs[contender].append((time.process_time() - began) / 200 * 1e6)
    for engine in engines.values():
        await engine.dispose()
    fifth = {contender: quantiles(costs[contender], n=5)[0] for contender in CONTENDERS}
    return fifth | {"ratio": fifth["fair"] / fifth["stock"]}


async def in_turns(measure: Callable[[str], Awaitable[Result]]) -> dict[str, Result]:
    """Measure the contenders in turn, and return the medians."""
    rounds: dict[str, list[Result]] = {contender: [] for contender in CONTENDERS}
    for _ in range(ROUNDS):
        for contender in CONTENDERS:
            rounds[contender].append(await measure(contender))
    return {contender: medians(results) for contender, results in rounds.items()}


def medians(results: list[Result]) -> Result:
    """Return the median of each figure, over the rounds that have it."""
    figures: Result = {}
    for key in results[0]:
        values = [value for each in results if (value := each[key]) is not None]
        figures[key] = round(median(values), 4) if values else None
    return figures


async def measure(url: URL) -> dict[str, Any]:
    """Measure everything, and say each figure as it comes."""
    rate = await capacity(url)
    results: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "capacity": round(rate, 1),
    }
    print(json.dumps(results))
    for load in LOADS:
        results[f"{load:g}"] = await in_turns(
            lambda each, load=load: offered(each, url, rate * load)
        )
        print(f"{load:g} x capacity:", json.dumps(results[f"{load:g}"], indent=2))
    for name, one in (("burst", burst), ("cold_start", cold_start)):
        results[name] = await in_turns(lambda each, one=one: one(each, url))
        print(f"{name}:", json.dumps(results[name]))
    results["refused"] = {each: await refused(each, url) for each in CONTENDERS}
    print("refused:", json.dumps(results["refused"]))
    return results


def main() -> None:
    """Run."""
    file = HERE / "results.json"
    with (
        TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder,  # noqa: S108 -- a 0700 folder in memory
        EmbeddedPostgres(Path(folder) / "postgres", settings=TEST_SETTINGS) as server,
    ):
        url = server.url("postgres")
        only_cost = sys.argv[1:] == ["checkout_cost"]
        results = json.loads(file.read_text()) if only_cost else asyncio.run(measure(url))
        results["checkout_cost"] = asyncio.run(checkout_cost(url))
        print("checkout_cost:", json.dumps(results["checkout_cost"]))
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
