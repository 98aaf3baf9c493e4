"""Clients that wait for their answer before they ask again, on both pools.

    uv run python -m benchmarks.overload.closed

Takes some seven minutes on a machine that does nothing else, and prints a table, which docs/pool.md
shows where it has the mark for it. `CLIENTS` clients share `POOL_SIZE` connections; each request
runs a statement of `HOLD` seconds. Patient clients pause for `RETRY_AFTER` seconds after a refusal,
as `Retry-After` asks; impatient ones ask again at once. The contenders take turns, round by round;
figures are medians of the rounds. Requests come through FastAPI, in this process, so that the cost
of a refusal is that of a service.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Annotated, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

from dbkit import Database, Databases, install, session_from  # noqa: E402
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from fastapi import Depends, FastAPI  # noqa: E402
from httpx import ASGITransport, AsyncClient  # noqa: E402
from sqlalchemy import URL, text  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine  # noqa: E402

CLIENTS = 60
POOL_SIZE = 5
HOLD = 0.1  # seconds
RETRY_AFTER = 1.0  # seconds
ONSET = 2.0  # seconds that do not count
DURATION = 10.0  # seconds that count
ROUNDS = 3
PAGE = HERE.parents[1] / "docs" / "pool.md"
BLOCK = re.compile(r"(?<=<!-- closed: written by benchmarks/overload/closed.py -->\n\n)(?:\|.*\n)*")
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "SQLAlchemy's pool": None,
    "default": {},
    "`QUEUE_TARGET=1`": {"queue_target": 1},
    "`QUEUE_TARGET=0`": {"queue_target": 0},
}


def service(url: URL, settings: dict[str, Any] | None) -> tuple[FastAPI, Any]:
    """Make an application, and what it is open in."""
    app = FastAPI()
    if settings is None:
        engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0)

        async def session() -> AsyncGenerator[AsyncSession]:
            async with AsyncSession(engine) as session, session.begin():
                yield session

        depends, opened = Depends(session, scope="function"), engine.connect()
    else:
        plain = url.render_as_string(hide_password=False)
        database = Database("primary", "postgresql", url=plain, pool_size=POOL_SIZE, **settings)
        databases = Databases(database)
        install(app, databases)
        depends, opened = session_from(database), databases.open()

    @app.get("/")
    async def answer(session: Annotated[AsyncSession, depends]) -> int:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await session.execute(text(f"select pg_sleep({HOLD})"))
        return 1

    return app, opened


async def measure(url: URL, settings: dict[str, Any] | None, *, patient: bool) -> dict[str, float]:
    """Return the answers of 200 and the refusals per second, and the slowest of the former."""
    app, opened = service(url, settings)
    good: list[float] = []
    refused = 0
    begin = time.monotonic() + ONSET
    end = begin + DURATION

    async def client(http: AsyncClient) -> None:
        nonlocal refused
        while (asked := time.monotonic()) < end:
            answer = await http.get("/")
            now = time.monotonic()
            if answer.status_code == 200:  # noqa: PLR2004 -- a status
                good.extend([now - asked] * (begin <= now < end))
                continue
            refused += begin <= now < end
            await asyncio.sleep(RETRY_AFTER if patient else 0)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:
        if settings is None:
            await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
        else:
            async with opened:
                await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    p99 = quantiles(good, n=100)[-1]
    return {"good": len(good) / DURATION, "refused": refused / DURATION, "p99": p99}


async def run(url: URL) -> list[str]:
    """Measure all in turn; return the lines of the table."""
    lines = [
        "| | patient: 200s a second | 503s | p99 | at once again: 200s a second | 503s | p99 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, settings in CONTENDERS.items():
            for patient in (True, False):
                result = await measure(url, settings, patient=patient)
                found.setdefault(f"{name} {patient}", []).append(result)
                print(name, patient, {key: round(value, 2) for key, value in result.items()})
    for name in CONTENDERS:
        cells = [name]
        for patient in (True, False):
            of = {
                key: median(each[key] for each in found[f"{name} {patient}"])
                for key in ("good", "refused", "p99")
            }
            cells += [f"{of['good']:.1f}", f"{of['refused']:.0f}", f"{of['p99']:.2f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run."""
    with (
        TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder,  # noqa: S108 -- a 0700 folder in memory
        EmbeddedPostgres(Path(folder) / "postgres", settings=TEST_SETTINGS) as server,
    ):
        lines = asyncio.run(run(server.url("postgres")))
    table = "\n".join(lines) + "\n"
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda _: table, page), encoding="utf-8")


if __name__ == "__main__":
    main()
