"""Run 10,000 mixed pieces of work through PgBouncer, and write `results.json` beside this file.

    uv run python -m benchmarks.pgbouncer [PGBOUNCER ...]

Twenty clients on two server connections; half of the work is outside of transactions. Each piece
checks its own answer. Without arguments, PgBouncer is the one that is installed; name others to
compare versions. The contenders take turns, round by round; rates are medians, and what counts is
their ratio to the kit's on the server itself. `changed column` is what is read after a `bigint`
became a `timestamptz`, by a connection that had read it before.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [
    str(ROOT / "template" / "src" / "{{package}}"),
    str(ROOT / "tests" / "dbkit"),
    str(ROOT / "tests" / "support"),
    str(ROOT / "tools"),
]

from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from dbkit.database.engine import create_engine  # noqa: E402
from dbkit.settings.database import DatabaseSettings  # noqa: E402
from mixed_statements import Base, run  # noqa: E402
from pooler import find_pgbouncer, pgbouncer  # noqa: E402
from sqlalchemy import URL, text  # noqa: E402
from sqlalchemy.exc import DBAPIError  # noqa: E402
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine  # noqa: E402
from sqlalchemy.pool import NullPool  # noqa: E402

CLIENTS = 20
TURNS = 500  # by each client, over all rounds: 10,000 pieces of work
ROUNDS = 5
WAYS: dict[str, dict[str, Any]] = {
    "asyncpg's defaults": {},
    "uuid names, NullPool": {"prepared_statement_name_func": lambda: f"__{uuid4()}__"},
    "statement_cache_size=0": {"statement_cache_size": 0},
}


def make_engine(way: str, url: URL) -> AsyncEngine:
    """Make the engine of one contender."""
    if way.startswith("DATABASE_PGBOUNCER"):
        settings = DatabaseSettings(url=url, pool_size=CLIENTS, pgbouncer=way.endswith("true"))
        return create_engine("primary", "DATABASE_", settings)
    if way.endswith("NullPool"):
        return create_async_engine(url, connect_args=WAYS[way], poolclass=NullPool)
    return create_async_engine(url, connect_args=WAYS[way], pool_size=CLIENTS, max_overflow=0)


async def execute(url: URL, *statements: str) -> None:
    """Execute on the server itself."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def changed_column(way: str, url: URL, server: URL) -> str:
    """Read a column before and after its type has changed."""
    await execute(
        server,
        "DROP TABLE IF EXISTS moments",
        "CREATE TABLE moments (at bigint)",
        "INSERT INTO moments VALUES (5)",
    )
    engine = make_engine(way, url)
    change = "ALTER TABLE moments ALTER at TYPE timestamptz USING to_timestamp(at)"
    answers: list[str] = []
    try:
        for step in range(4):
            if step == 1:
                await execute(server, change)
            try:
                async with engine.connect() as connection:
                    found = await connection.scalar(text("SELECT at FROM moments"))
                answers.append("right" if str(found).startswith("1970") else f"wrong: {found}")
            except DBAPIError:
                answers.append("error")
    finally:
        await engine.dispose()
    return answers[-1]


async def measure(targets: dict[str, URL], server: URL) -> dict[str, Any]:
    """Let all contenders take turns."""
    contenders = [(target, way) for target in targets for way in (*WAYS, "DATABASE_PGBOUNCER=true")]
    contenders = [("the server", "DATABASE_PGBOUNCER=false"), *contenders]
    rates: dict[tuple[str, str], list[float]] = {each: [] for each in contenders}
    wrong: dict[tuple[str, str], Counter[str]] = {each: Counter() for each in contenders}
    for _ in range(ROUNDS):
        for target, way in contenders:
            async with create_async_engine(server, poolclass=NullPool).begin() as connection:
                await connection.run_sync(Base.metadata.drop_all)
                await connection.run_sync(Base.metadata.create_all)
            engine = make_engine(way, targets.get(target, server))
            began = time.monotonic()
            wrong[target, way] += await run(engine, clients=CLIENTS, turns=TURNS // ROUNDS)
            rates[target, way].append(CLIENTS * TURNS / ROUNDS / (time.monotonic() - began))
            await engine.dispose()
    best = median(rates[contenders[0]])
    found: dict[str, Any] = {}
    for target, way in contenders:
        found.setdefault(target, {})[way] = {
            "ratio": round(median(rates[target, way]) / best, 2),
            "not right": dict(wrong[target, way]),
            "changed column": await changed_column(way, targets.get(target, server), server),
        }
    return found


def main() -> None:
    """Measure, and write the results."""
    programs = sys.argv[1:] or [str(find_pgbouncer())]
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder, "postgres"), settings=TEST_SETTINGS) as postgres,
    ):
        found: dict[str, Any] = {}
        postgres.create_database("load")
        for program in programs:
            said = subprocess.run(  # noqa: S603 -- named by whoever measures
                [program, "--version"], capture_output=True, text=True, check=True
            )
            version = re.search(r"PgBouncer \S+", said.stdout)
            os.environ["PGBOUNCER"] = program
            with pgbouncer(postgres.url("load")) as url:
                name = version.group() if version else program
                found |= asyncio.run(measure({name: url}, postgres.url("load")))
    print(json.dumps(found, indent=2))
    (HERE / "results.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
