"""Measure services beside each other, and write `results.json` beside this file.

    uv run --group benchmarks python -m benchmarks.throughput [--quick]

Takes some fifteen minutes, `--quick` two; on two cores or more, of which the service has the first
and its clients the second. Services take turns, round by round, each started anew; figures are
medians of the rounds, with the least and the most. The PostgreSQL is a real one, over TCP, with
passwords. Then `plot.py` writes them into the documentation. To measure a service of your own,
name its application: `--also package.module:app`; it needs the four routes of `contenders/`.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [
    str(REPOSITORY / "template" / "src" / "{{package}}"),
    str(REPOSITORY / "tests" / "support"),
]

from dbkit.commands.embedded import EmbeddedPostgres  # noqa: E402
from sqlalchemy import URL, make_url  # noqa: E402
from sqlalchemy.ext.asyncio import create_async_engine  # noqa: E402

Proxy: Any = import_module("pool_proxy").Proxy  # Of the tests.

PACKAGE = "benchmarked"
DATABASES = ("primary", "analytics")
CONTENDERS = {
    "raw_asgi": "raw ASGI on asyncpg",
    "starlette_asyncpg": "Starlette on asyncpg",
    "fastapi_asyncpg": "FastAPI on asyncpg",
    "rendered": "**the rendered service**",
    "rendered_logging": "the same, with its line of log for each request",
    "rendered_collected": "the same, with the garbage collector as Python sets it",
    "example": "the same, with its example's own routes",
    "commit_at_end": "async session, committed at the end, pool of 10",
    "naive": "async session, pool of 5+10",
    "sync_session": "sync session in the thread pool",
    "no_pool": "async session, no pool",
}
SCENARIOS = {
    "read": ("GET", "/items/{id}"),
    "list": ("GET", "/items?limit=20"),
    "insert": ("POST", "/items"),
    "both": ("GET", "/both/{id}"),
}
LOADS = [(name, 32) for name in SCENARIOS] + [("read", 1), ("read", 256)]
MANY = 64
STEPS = {"read": "/items/{id}", "object": "/object/{id}", "session": "/session/{id}"}
STEPS["driver"] = "/driver/{id}"
PROFILED = ("rendered", "fastapi_asyncpg", "naive")
POOL_SIZES = (1, 4, 10, 32)
NUMBERS_OF_DATABASES = (1, 4, 16)
RELEASES = tomllib.loads((REPOSITORY / "releases.toml").read_text())["release"]
AUTHOR = ("-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.com")

SCHEMA = """
    CREATE TABLE items (
        id serial PRIMARY KEY, name varchar(100) NOT NULL UNIQUE, quantity integer NOT NULL
    );
    CREATE TABLE notes (
        id serial PRIMARY KEY, item_id integer NOT NULL, text varchar(1000) NOT NULL
    );
    INSERT INTO items (name, quantity) SELECT 'item ' || n, n FROM generate_series(1, 1000) n;
    INSERT INTO notes (item_id, text) SELECT n, 'note ' || n FROM generate_series(1, 1000) n;
    VACUUM ANALYZE
"""

Figures = dict[str, float]


def cores() -> tuple[str, str]:
    """Return the core of the service, and that of its clients; "-" where there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    return (str(usable[0]), str(usable[1])) if len(usable) > 1 else ("-", "-")


def environment(urls: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the variables of a service."""
    return {
        "PRIMARY_URL": urls["primary"],
        "ANALYTICS_URL": urls["analytics"],
        "DATABASE_URL": urls["primary"],
        "ANALYTICS_DATABASE_URL": urls["analytics"],
        "BENCHMARK_PACKAGE": PACKAGE,
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(REPOSITORY)]),
    }


class Service:
    """A service that runs; `started` is how long it took to its first answer, in seconds."""

    def __init__(self, contender: str, urls: dict[str, str], folder: Path, **extra: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        logs = contender == "rendered_logging"
        module = "rendered" if logs else contender
        app = module if ":" in module else f"benchmarks.throughput.contenders.{module}:app"
        pin = ["taskset", "-c", cores()[0]] if cores()[0] != "-" else []
        began = time.perf_counter()
        self.process = subprocess.Popen(  # noqa: S603 -- our own
            [
                *(*pin, sys.executable, "-m", "uvicorn", app, "--port", str(self.port)),
                *("--log-level", "info" if logs else "warning"),
                *(() if logs else ("--no-access-log",)),
            ],
            cwd=folder,
            env=os.environ | environment(urls, folder) | extra,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not self._answers():
            if self.process.poll() is not None:
                raise SystemExit(f"{contender}: ended with {self.process.returncode}")
            time.sleep(0.01)
        self.started = time.perf_counter() - began

    def _answers(self) -> bool:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/items/1", timeout=5).close()
            return True
        return False

    def cpu(self) -> float:
        """Return the seconds of CPU that were used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return the MiB in use."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def load(self, method: str, path: str, clients: int, seconds: float) -> Figures:
        """Have clients ask for so many seconds."""
        arguments = [str(self.port), method, path, str(clients), str(seconds), cores()[1]]
        before = self.cpu()
        done = subprocess.run(  # noqa: S603 -- our own
            [sys.executable, "-m", "benchmarks.throughput.client", *arguments],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        )
        figures: Figures = json.loads(done.stdout)
        used = self.cpu() - before
        figures["cpu"] = used / max(figures["answered"], 1)
        return figures

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(contender: str, urls: dict[str, str], folder: Path, **extra: str) -> Generator[Service]:
    """Run a service until exit."""
    service = Service(contender, urls, folder, **extra)
    try:
        yield service
    finally:
        service.stop()


def render(target: Path, databases: int, ref: str = "HEAD") -> float:
    """Render a service of so many databases; return the seconds that it took."""
    names = [*DATABASES, *(f"extra{number}" for number in range(2, databases))][:databases]
    listed = [{"name": name, "engine": "postgresql"} for name in names]
    name, data = f"project_name={PACKAGE}", f"databases={json.dumps(listed)}"
    return copier("copy", "--vcs-ref", ref, "--data", name, "--data", data, REPOSITORY, target)


def update(folder: Path) -> float:
    """Update a service that was committed; return the seconds that it took."""
    return copier("update", "--vcs-ref", "HEAD", folder)


def copier(*arguments: str | Path) -> float:
    """Run Copier; return the seconds that it took."""
    program, command, *others = Path(sys.executable).with_name("copier"), *arguments
    began = time.perf_counter()
    subprocess.run(  # noqa: S603 -- our own
        [program, command, "--quiet", "--defaults", *others], check=True
    )
    return time.perf_counter() - began


@contextmanager
def server() -> Generator[dict[str, str]]:
    """Run a PostgreSQL with both databases; yields their URLs."""
    with (
        TemporaryDirectory() as directory,
        EmbeddedPostgres(
            Path(directory) / "postgres",
            settings={"max_connections": "400", "synchronous_commit": "off"},
        ) as postgres,
    ):
        urls = {name: postgres.url(name) for name in DATABASES}
        for name, url in urls.items():
            postgres.create_database(name)
            asyncio.run(fill(url))
        yield {name: url.render_as_string(hide_password=False) for name, url in urls.items()}


async def fill(url: URL) -> None:
    """Make the tables, with a thousand rows in each."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in SCHEMA.split(";"):
            await connection.exec_driver_sql(statement)
    await engine.dispose()


async def round_trips(contender: str, urls: dict[str, str], folder: Path) -> Figures:
    """Count what is sent to the server for each request, on the wire, and the connections."""
    counts: Figures = {}
    async with (
        Proxy(make_url(urls["primary"])) as first,
        Proxy(make_url(urls["analytics"])) as second,
    ):
        proxied = {
            "primary": first.url.render_as_string(hide_password=False),
            "analytics": second.url.render_as_string(hide_password=False),
        }
        service = await asyncio.to_thread(Service, contender, proxied, folder)
        try:
            for name, (method, path) in SCENARIOS.items():
                await asyncio.to_thread(service.load, method, path, 1, 0.1)  # Statements prepared.
                before = first.round_trips + second.round_trips
                found = await asyncio.to_thread(service.load, method, path, 1, 0.2)
                sent = first.round_trips + second.round_trips - before
                counts[name] = sent / max(found["answered"], 1)
            await asyncio.to_thread(service.load, *SCENARIOS["read"], 32, 0.2)
            counts["connections"] = first.accepted
        finally:
            await asyncio.to_thread(service.stop)
    return counts


def summary(rounds: list[Figures]) -> dict[str, Any]:
    """Return the median of each figure; of the rate also the least and the most."""
    found: dict[str, Any] = {name: median([each[name] for each in rounds]) for name in rounds[0]}
    if "rate" in found:
        found["least"] = min(each["rate"] for each in rounds)
        found["most"] = max(each["rate"] for each in rounds)
    return found


def measure(contenders: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Measure everything."""
    figures: dict[str, dict[str, list[Figures]]] = {}

    def note(contender: str, what: str, found: Figures) -> None:
        figures.setdefault(contender, {}).setdefault(what, []).append(found)

    with TemporaryDirectory() as directory, server() as urls:
        folder = Path(directory) / PACKAGE
        render(folder, len(DATABASES))
        for number in range(rounds):
            for contender in contenders:
                with running(contender, urls, folder) as service:
                    for name, clients in LOADS:
                        # So long that each of many clients is answered some times.
                        window = seconds * max(clients // MANY, 1)
                        found = service.load(*SCENARIOS[name], clients, window)
                        note(contender, f"{name} {clients}", found)
                    note(contender, "start", {"s": service.started, "MiB": service.memory()})
                    if contender == "rendered":
                        for name, path in STEPS.items():
                            found = service.load("GET", path, 32, seconds)
                            note("steps", name, found)
            for size in POOL_SIZES:
                pool = {"DATABASE_POOL_SIZE": str(size)}
                with running("rendered", urls, folder, **pool) as service:
                    found = service.load(*SCENARIOS["read"], 32, seconds)
                    note("pool sizes", str(size), found)
            print(f"round {number + 1} of {rounds}", flush=True)
        trips = {each: asyncio.run(round_trips(each, urls, folder)) for each in contenders}
        profiles = {each: profile(each, urls, folder) for each in PROFILED}
        growth = {n: grow(Path(directory), urls, n, min(rounds, 3)) for n in NUMBERS_OF_DATABASES}
    return {
        name: {what: summary(rounds_) for what, rounds_ in each.items()}
        for name, each in figures.items()
    } | {"round trips": trips, "profiles": profiles, "growth": growth}


def profile(contender: str, urls: dict[str, str], folder: Path) -> dict[str, float]:
    """Count the calls of each layer for one request."""
    done = subprocess.run(  # noqa: S603 -- our own
        [sys.executable, "-m", "benchmarks.throughput.calls", contender],
        cwd=REPOSITORY,
        env=os.environ | environment(urls, folder),
        check=True,
        capture_output=True,
        text=True,
    )
    calls: dict[str, float] = json.loads(done.stdout)
    return calls


def grow(directory: Path, urls: dict[str, str], databases: int, rounds: int) -> Figures:
    """Measure what a service of so many databases costs."""
    folder = directory / f"of_{databases}"
    rendered = render(folder, databases)
    names = [f"EXTRA{number}_DATABASE_URL" for number in range(2, databases)]
    extra = dict.fromkeys(names, urls["analytics"])
    found: list[Figures] = []
    for _ in range(rounds):
        with running(f"{PACKAGE}.main:app", urls, folder, **extra) as service:
            found.append({"start": service.started, "MiB": service.memory()})
    earlier = directory / f"earlier_of_{databases}"
    render(earlier, databases, RELEASES[0]["commit"])
    for command in (("init", "-q"), ("add", "-A"), (*AUTHOR, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", earlier, *command], check=True)  # noqa: S603, S607 -- our own
    return summary(found) | {"render": rendered, "update": update(earlier)}


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, to see it work")
    parser.add_argument("--also", action="append", default=[], help="package.module:app")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.1) if arguments.quick else (5, 1)
    began = time.monotonic()
    results = measure([*CONTENDERS, *arguments.also], rounds, seconds)
    results["run"] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "seconds": seconds,
        "took": time.monotonic() - began,
    }
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
