"""Measure what noting holders costs, and print it.

    uv run python -m benchmarks.usage

Takes some 40 seconds. Two engines on one PostgreSQL differ in nothing but that one of them notes
nothing; they take turns in short rounds, and the figures are those of the fastest tenth: what else
the machine does only adds.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

import httpx  # noqa: E402
from dbkit import Database, Databases, DatabaseSettings, install, session_from  # noqa: E402
from dbkit.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from sqlalchemy import URL, select  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncSession  # noqa: E402

ROUNDS = 300
PER_ROUND = 40


def make_app(database: Database) -> FastAPI:
    """Make an application with one route: one session, one statement."""
    app = FastAPI()
    install(app, Databases(database))
    of_this_request: AsyncSession = session_from(database)

    @app.get("/one")
    async def one(session: AsyncSession = of_this_request) -> int | None:
        return await session.scalar(select(1))

    return app


def nothing(*_: object) -> None:
    """Note nothing."""


def note_nothing(database: Database) -> None:
    """Have the database's pool and dialect note nothing."""
    usage: Any = database.pool.usage
    usage.take = usage.give = nothing
    dialect: Any = database.engine.dialect
    for name in ("do_execute", "do_executemany", "do_execute_no_params", "do_commit"):
        delattr(dialect, name)
    del dialect.do_rollback


async def compare(act: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, float]:
    """Return the CPU microseconds of each in its fastest tenth, and the ratio."""
    costs: dict[str, list[float]] = {name: [] for name in act}
    for turn in range(ROUNDS + 1):
        for name in random.sample(list(act), len(act)):
            began = time.process_time()
            for _ in range(PER_ROUND):
                await act[name]()
            if turn:  # The first is a warm-up.
                costs[name].append((time.process_time() - began) / PER_ROUND * 1e6)
    found = {name: quantiles(each, n=10)[0] for name, each in costs.items()}
    return found | {"ratio": found["noting"] / found["nothing"]}


async def measure(url: URL) -> None:
    """Measure a checkout, and a request."""
    databases = {name: Database("primary", "postgresql") for name in ("noting", "nothing")}
    checkouts: dict[str, Callable[[], Awaitable[object]]] = {}
    requests: dict[str, Callable[[], Awaitable[object]]] = {}
    for name, database in databases.items():
        await database.start(DatabaseSettings(url=url, pool_size=4))
        if name == "nothing":
            note_nothing(database)
        transport = httpx.ASGITransport(make_app(database))
        client = httpx.AsyncClient(transport=transport, base_url="http://test")

        async def checkout(database: Database = database) -> None:
            async with database.engine.connect() as connection:
                await connection.get_raw_connection()

        async def request(transport: httpx.ASGITransport = transport, of: Any = client) -> None:
            await transport.handle_async_request(of.build_request("GET", "/one"))

        checkouts[name], requests[name] = checkout, request
    for what, act in (("checkout", checkouts), ("request", requests)):
        found = await compare(act)
        print(
            f"{what}: {found['nothing']:.1f} us without, {found['noting']:.1f} us with holders:"
            f" x {found['ratio']:.3f}"
        )
    for database in databases.values():
        await database.stop()


def main() -> None:
    """Run."""
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder) / "postgres", settings=TEST_SETTINGS) as server,
    ):
        asyncio.run(measure(server.url("postgres")))


if __name__ == "__main__":
    main()
