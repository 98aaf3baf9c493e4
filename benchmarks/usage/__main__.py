"""Count the instructions that noting holders costs, and print them.

    uv run python -m benchmarks.usage

Needs valgrind, and takes some five minutes. Of two services on one PostgreSQL, one notes nothing;
nothing else differs. What a request with one statement executes is counted by callgrind, on which
the rest of the machine has no say: the same process with few and with many of them, and the
difference by each. What a bare checkout costs, `benchmarks.overload` counts.
"""

import asyncio
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

import httpx  # noqa: E402
from dbkit import Database, Databases, DatabaseSettings, install, session_from  # noqa: E402
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from dbkit.web import disconnects  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from sqlalchemy import make_url, select  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncSession  # noqa: E402

FEW, MANY = 100, 500


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


async def serve(how: str, times: int, url: str) -> None:
    """Answer so many requests: what is counted."""
    database = Database("primary", "postgresql")
    # Everything is slow under callgrind: nothing that looks at the clock has its turn.
    disconnects.NOTICE_AFTER = 86400.0
    patient = DatabaseSettings(
        url=make_url(url),
        pool_size=4,
        connect_timeout=60,
        ping_after=86400,
        pool_recycle=86400,
        keepalive=0,
    )
    # No probe and no detectors, which `start()` would add.
    with database.replaced(database.make(patient)):
        if how == "nothing":
            note_nothing(database)
        transport = httpx.ASGITransport(make_app(database))
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        for _ in range(times):
            answer = await transport.handle_async_request(client.build_request("GET", "/one"))
            assert answer.status_code == 200  # noqa: PLR2004 -- else it counts an error
        await database.engine.dispose()


def count(how: str, times: int, url: str) -> int:
    """Return the instructions of a process that answers so many requests."""
    done = subprocess.run(  # noqa: S603 -- ourselves
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-m", "benchmarks.usage", how, str(times), url),
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def measure(url: str) -> None:
    """Count a request with and without holders."""
    hows, times, urls = ("noting", "noting", "nothing", "nothing"), (FEW, MANY) * 2, (url,) * 4
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        few_with, many_with, few_without, many_without = threads.map(count, hows, times, urls)
    with_holders = (many_with - few_with) / (MANY - FEW)
    without = (many_without - few_without) / (MANY - FEW)
    print(
        f"a request: {without:,.0f} instructions without holders, {with_holders:,.0f} with:"
        f" x {with_holders / without:.4f}"
    )


def main() -> None:
    """Run."""
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder) / "postgres", settings=TEST_SETTINGS) as server,
    ):
        measure(server.url("postgres").render_as_string(hide_password=False))


if __name__ == "__main__":
    if sys.argv[1:]:
        how, times, url = sys.argv[1:]
        asyncio.run(serve(how, int(times), url))
    else:
        main()
