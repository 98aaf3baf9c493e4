"""Run SQLAlchemy's own tests on its queue pool and on FairPool, and name what differs.

    uv run python -m benchmarks.sqlalchemy_suite [test/ext/asyncio ...]

Takes the tests from the source distribution of the locked release, whose hash is in `uv.lock`, and
a PostgreSQL of the embedded wheel. All of it takes some half an hour on two cores; the arguments
choose less. Ends with 1 if a test has another outcome on FairPool which `EXPECTED` does not list,
or is listed there and has none.
"""

import asyncio
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "template" / "src" / "{{package}}"))

import sqlalchemy  # noqa: E402
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from sqlalchemy import URL, NullPool  # noqa: E402
from sqlalchemy.ext.asyncio import create_async_engine  # noqa: E402
from sqlalchemy.schema import CreateSchema  # noqa: E402

TESTS = (
    "test/ext/asyncio",
    "test/dialect/postgresql",
    "test/dialect/test_suite.py",
    "test/engine/test_execute.py",
    "test/engine/test_reconnect.py",
    "test/engine/test_transaction.py",
    "test/orm/test_session.py",
    "test/orm/test_transaction.py",
    "test/sql/test_types.py",
)
ASKS_FOR_QUEUE_POOL = "asks for SQLAlchemy's own pool, and is skipped"
EXPECTED = {
    "*::AsyncEngineTest_*::test_dispose": ASKS_FOR_QUEUE_POOL,
    "*::AsyncEngineTest_*::test_dispose_no_close": ASKS_FOR_QUEUE_POOL,
    "*::AsyncEngineTest_*::test_invalidate": ASKS_FOR_QUEUE_POOL,
    "*::AsyncEngineTest_*::test_pool_exhausted_no_timeout": ASKS_FOR_QUEUE_POOL,
    "*::AsyncEngineTest_*::test_pool_exhausted_some_timeout": ASKS_FOR_QUEUE_POOL,
    "*::PoolRegenTest::test_gather_after_dispose?do_dispose?": ASKS_FOR_QUEUE_POOL,
    "*::PoolRegenTest::test_gather_after_dispose?not_do_dispose?": ASKS_FOR_QUEUE_POOL,
    "*::HandleErrorTest_*::test_alter_invalidate_pool_stays_true": (
        "after a disconnect FairPool pings the other connections, and keeps those that answer"
    ),
}
"""Tests that have another outcome on FairPool, by a pattern of their id, and why."""


SCHEMAS = ("test_schema", "test_schema_2")
"""As SQLAlchemy's README.unittests.rst has it, without the extensions, which the wheel lacks."""


def unpack(folder: Path) -> Path:
    """Download the sources that `uv.lock` names, and leave them their tests only."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    sdist = next(each for each in packages if each["name"] == "sqlalchemy")["sdist"]
    with urlopen(sdist["url"]) as response:  # noqa: S310 -- https, from our lock
        content = response.read()
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != sdist["hash"]:
        raise SystemExit(f"{sdist['url']}: not what uv.lock has the hash of")
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    source = folder / f"sqlalchemy-{sqlalchemy.__version__}"
    # Its tests import `../lib`: here that is the build which is installed.
    (source / "lib").rename(source / "lib-of-the-source")
    (source / "lib").symlink_to(Path(sqlalchemy.__file__).parents[1])
    return source


async def set_up(url: URL) -> None:
    """Make what the tests expect to find in their database."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for each in SCHEMAS:
            await connection.execute(CreateSchema(each))


def run(source: Path, pool: str, paths: list[str]) -> dict[str, str]:
    """Run the tests on one of the pools; return the outcome of each."""
    settings = {**TEST_SETTINGS, "max_prepared_transactions": "10"}
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder, "postgres"), settings=settings) as server,
    ):
        server.create_database("test")
        url = server.url("test")
        asyncio.run(set_up(url))
        outcomes = Path(folder, "outcomes.json")
        command = [sys.executable, "-m", "pytest", "--rootdir", str(source), "-q", "--tb=short"]
        command += ["-p", "benchmarks.sqlalchemy_suite.fair", "-p", "no:cacheprovider"]
        command += ["-p", "no:xdist", "--maxfail=100000", "--dburi"]
        command += [url.render_as_string(hide_password=False), *paths]
        environment = {"SUITE_POOL": pool, "SUITE_OUTCOMES": str(outcomes), "PYTHONPATH": str(ROOT)}
        log = Path(f"sqlalchemy-suite-{pool}.log")
        with log.open("wb") as output:
            subprocess.run(  # noqa: S603
                command, cwd=source, env=os.environ | environment, stdout=output, check=False
            )
        if not outcomes.exists():
            raise SystemExit(f"the tests did not run to their end: see {log}")
        return json.loads(outcomes.read_text())


def compare(stock: dict[str, str], fair: dict[str, str]) -> list[str]:
    """Say which tests differ, and were not expected to; and which were, and do not."""
    differing = {
        name: f"{name}: {stock.get(name, 'absent')} on SQLAlchemy's pool, {outcome} on FairPool"
        for name, outcome in fair.items()
        if outcome != stock.get(name)
    }
    listed = {pattern: fnmatch.filter(fair, pattern) for pattern in EXPECTED}
    expected = {name for names in listed.values() for name in names}
    faults = [said for name, said in differing.items() if name not in expected]
    for pattern, names in listed.items():
        if names and differing.keys().isdisjoint(names):
            faults.append(f"{pattern}: listed as different, and is not")
    return faults


def main(paths: list[str]) -> int:
    """Run both; print what differs."""
    with TemporaryDirectory() as folder:
        source = unpack(Path(folder))
        outcomes = {pool: run(source, pool, paths or list(TESTS)) for pool in ("stock", "fair")}
    for pool, of_pool in outcomes.items():
        counts = ", ".join(f"{count} {name}" for name, count in Counter(of_pool.values()).items())
        print(f"{pool}: {len(of_pool)} tests: {counts}")
    faults = compare(outcomes["stock"], outcomes["fair"])
    for name, reason in EXPECTED.items():
        print(f"expected: {name}: {reason}")
    for fault in faults:
        print(fault)
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
