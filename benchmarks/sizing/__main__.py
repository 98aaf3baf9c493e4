"""Measure how long callers wait for a connection, and write `results.json` beside this file.

    uv run python -m benchmarks.sizing

Takes some seven minutes. Callers come at random (Poisson), `RATE` a second; each takes a connection
of the kit's pool, runs a statement whose time is drawn from an exponential distribution with the
mean `HOLD`, and gives the connection back. Nobody is turned away, and no load is chosen: each size
has the first that is drawn. The waits are set beside those that `dbkit.sizing` predicts from what
was measured (the rate, the mean of the hold times, and how much they vary), and beside those of a
simulated queue with the same callers. Then `plot.py` draws them.
"""

import asyncio
import json
import os
import platform
import random
import sys
from heapq import heappop, heappush
from pathlib import Path
from statistics import mean, pvariance
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from dbkit.database.engine import create_engine  # noqa: E402
from dbkit.pool import FairPool  # noqa: E402
from dbkit.settings.database import DatabaseSettings  # noqa: E402
from dbkit.telemetry.sizing import Load, mean_wait, wait  # noqa: E402
from sqlalchemy import URL, text  # noqa: E402

RATE = 150.0  # callers per second
HOLD = 0.02  # seconds
SIZES = (4, 5, 6)
DURATION = 120.0
"""Seconds for each size; in 60, chance alone takes the 99 % of one load in 13 off by a quarter."""
SHARE = 0.99

Arrivals = list[tuple[float, float]]


def draw(chance: random.Random) -> Arrivals:
    """Draw when callers come, and for how long they hold."""
    drawn: Arrivals = []
    now = chance.expovariate(RATE)
    while now < DURATION:
        drawn.append((now, chance.expovariate(1 / HOLD)))
        now += chance.expovariate(RATE)
    return drawn


def simulate(arrivals: Arrivals, size: int) -> list[float]:
    """Return the waits of callers that are served in the order in which they come."""
    free, waits = [0.0] * size, list[float]()
    for arrival, hold in arrivals:
        begins = max(heappop(free), arrival)
        waits.append(begins - arrival)
        heappush(free, begins + hold)
    return waits


def late(waits: list[float]) -> float:
    """Return the wait that `SHARE` of the callers do not exceed."""
    return sorted(waits)[int(SHARE * len(waits))]


async def measure(url: URL, size: int) -> dict[str, Any]:
    """Load a pool of one size; return what was measured, and what is predicted from it."""
    settings = DatabaseSettings(
        url=url, pool_size=size, queue_target=0, pool_timeout=300, max_waiting=100_000
    )
    engine = create_engine("primary", "DATABASE_", settings)
    pool = engine.pool
    assert isinstance(pool, FairPool)
    await pool.warm(size, 10)
    waits: list[float] = []
    holds: list[float] = []
    sleep = text("select pg_sleep(:seconds)")

    async def caller(seconds: float) -> None:
        async with engine.connect() as connection:
            await connection.execute(sleep, {"seconds": seconds})

    async with asyncio.TaskGroup() as group:
        await asyncio.gather(*(group.create_task(caller(0)) for _ in range(size)))
        arrivals = draw(random.Random(size))  # noqa: S311 -- no secret
        pool.usage.on_wait, pool.usage.on_return = waits.append, holds.append
        began = monotonic()
        for arrival, hold in arrivals:
            await asyncio.sleep(max(began + arrival - monotonic(), 0))
            group.create_task(caller(hold))
    await engine.dispose()
    slower = mean(holds) / mean(hold for _, hold in arrivals)
    simulated = simulate([(arrival, slower * hold) for arrival, hold in arrivals], size)
    load = Load(len(waits) / DURATION, mean(holds), pvariance(holds) / mean(holds) ** 2)
    return {
        "callers": len(waits),
        "rate": load.rate,
        "hold": load.hold,
        "variation": load.variation,
        "busy": load.busy,
        "mean": {
            "measured": mean(waits),
            "simulated": mean(simulated),
            "predicted": mean_wait(load, size),
        },
        "share": {
            "measured": late(waits),
            "simulated": late(simulated),
            "predicted": wait(load, size, SHARE),
        },
    }


async def main() -> None:
    """Measure each size."""
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder) / "postgres", settings=TEST_SETTINGS) as server,
    ):
        server.create_database("sizing")
        url = server.url("sizing")
        sizes = {str(size): await measure(url, size) for size in SIZES}
    results = {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "seconds": DURATION,
        "sizes": sizes,
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for size, each in sizes.items():
        print(size, each)


if __name__ == "__main__":
    asyncio.run(main())
