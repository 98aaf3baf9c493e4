"""Several workers of one service: each answers for all, and those that have ended are gone."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbkit.commands.pools import cli
from dbkit.web.workers import claim, private_folder
from prometheus_client.parser import text_string_to_metric_families
from running import free_port, wait_until
from small_service import SERVICE
from typer.testing import CliRunner

TOKEN = "a token of some length"  # noqa: S105 -- of these tests
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROUTES = """
import os, time
from sqlalchemy import text
@app.get("/read/{name}")
async def read(name: str) -> int:
    await databases["orders"].reader.scalar(text("select 1"))
    return os.getpid()
@app.get("/stand")
async def stand() -> None:
    time.sleep(3600)
"""
UVICORN = ("-m", "uvicorn", "service:app", "--port", "{port}", "--workers", "2")


class Service:
    """A service of several processes."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def get(self, path: str) -> httpx.Response:
        """Ask whichever worker takes a new connection."""
        return httpx.get(f"{self.url}{path}", headers=BEARER, timeout=30)

    @property
    def state(self) -> dict[str, Any]:
        return self.get("/pools/state").json()

    def checkouts_of_state(self) -> int:
        """Return what `/pools` has counted of it."""
        return sum(each["checkouts"] for each in self.state["databases"]["orders"]["routes"])

    def read(self) -> Counter[int]:
        """Read until two processes have, and return how often each did."""
        served: Counter[int] = Counter()
        while len(served) < 2:
            served[self.get("/read/lamp").json()] += 1
        return served

    def checkouts(self) -> dict[str, float]:
        """Return what `/metrics` has counted of the route, by worker."""
        return {
            each.labels.get("worker", ""): each.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for each in family.samples
            if each.name == "dbkit_pool_route_checkouts_total"
            and each.labels["http_route"] == "/read/{name}"
        }


@contextmanager
def serving(folder: Path, *server: str) -> Generator[Service]:
    (folder / "service.py").write_text(SERVICE + ROUTES)
    (folder / "run").mkdir()
    port = free_port()
    kit = next(each for each in sys.path if each.endswith("{{package}}"))
    variables = {"PYTHONPATH": kit, "POOLS_TOKEN": TOKEN, "METRICS_TOKEN": TOKEN}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *(each.format(port=port) for each in server)],
            cwd=folder,
            env=os.environ | variables | {"TMPDIR": str(folder / "run")},
            stdout=log,
            stderr=log,
        )
    service = Service(f"http://127.0.0.1:{port}", folder)

    def is_complete() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return len(service.state["workers"]) == 2
        except httpx.HTTPError:
            return False

    try:
        wait_until(is_complete, "two workers")
        yield service
    finally:
        process.terminate()
        process.wait(30)


def test_each_worker_answers_for_all_and_the_dead_are_gone(tmp_path: Path) -> None:
    """So it is under gunicorn too; granian ends with a worker that is killed."""
    with serving(tmp_path, *UVICORN) as service:
        served = service.read()
        for _ in range(5):
            assert service.checkouts().keys() == {"0", "1"}
            assert sorted(service.checkouts().values()) == sorted(served.values())
        wait_until(lambda: service.checkouts_of_state() == served.total(), "all are shown")
        assert set(service.state["workers"]) == served.keys()

        changed = CliRunner().invoke(
            cli,
            ["set", "LOG_LEVEL=debug", "ORDERS_DATABASE_ECHO=true", "--url", service.url],
            env={"POOLS_TOKEN": TOKEN},
        )
        assert changed.output.count("in processes ") == 2, changed.output
        log = tmp_path / "log"
        assert log.read_text().count("ORDERS_DATABASE_ECHO: changed from False to True") == 2

        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{service.url}/stand", timeout=0.5)
        wait_until(lambda: service.state["silent"] == 1, "one does not answer")
        (left,) = service.state["workers"]
        (blocked,) = served.keys() - {left}
        os.kill(blocked, signal.SIGKILL)
        wait_until(lambda: service.state["silent"] == 0, "it is gone")
        wait_until(lambda: len(service.state["workers"]) == 2, "another is in its place")
        again = service.read()
        assert service.checkouts().keys() == {"0", "1"}
        assert sum(service.checkouts().values()) == served[left] + again.total()

    assert [*(tmp_path / "run").glob("*/*/*.sock")] == []


def test_the_folder_is_of_its_user_alone_and_forgets_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbkit.web.workers.gettempdir", lambda: str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = private_folder(dead.pid)
    (folder / "0.sock").touch()

    ours = private_folder(os.getpid())

    assert not folder.exists()
    assert ours.parent.stat().st_mode & 0o777 == 0o700
    (zero, lock), (one, other) = claim(ours), claim(ours)
    assert (zero, one) == (0, 1)
    os.close(lock)
    (again, lock) = claim(ours)
    assert again == 0
    for each in (lock, other):
        os.close(each)
    ours.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        private_folder(os.getpid())
