"""Services that run: on their own folder, in processes of their own, on real databases."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from rendering import Service

PATIENCE = 90.0
"""Seconds until a thing that must happen counts as not happening; busy machines are slow."""

IN_TURN = """\
import os
import sys

from manage import cli

for command in sys.argv[1:]:
    if not os.fork():
        cli(command.split())
    if code := os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit(code)
"""


def copy_of(service: Service, folder: Path) -> Path:
    """Copy a rendered service, which many tests share, to where one may write."""
    return shutil.copytree(service.path, folder / "service")


def environment(**added: str) -> dict[str, str]:
    """Return our environment for a service's processes: none of its variables, none of pytest's.

    The services run in the environment of this repository, which has all they depend on.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if "DATABASE_" not in name
        and not name.startswith(("PYTEST_", "UV_PROJECT"))
        and name not in {"VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}
        and name not in {"SHUTDOWN_DELAY", "WEB_CONCURRENCY", "POOLS_TOKEN"}
    }
    return kept | {"PYTHONPATH": "src", "NO_COLOR": "1"} | added


def run(
    folder: Path, *command: str | Path, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a service's folder; its output goes together into `stdout`."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables or {}),
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=5 * PATIENCE,
    )


def manage(
    folder: Path, *arguments: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `manage.py` in a service's folder."""
    return run(folder, sys.executable, "manage.py", *arguments, variables=variables)


def manage_in_turn(
    folder: Path, *commands: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run commands of `manage.py` until one fails, in forks of one: each would import all anew."""
    return run(folder, sys.executable, "-c", IN_TURN, *commands, variables=variables)


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look until something is true; fail with `what` when it does not become so."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)


class RunningService:
    """A service that listens, and a client of it; stopped as a platform stops it."""

    def __init__(self, folder: Path, command: Sequence[str | Path], **variables: str) -> None:
        self.folder = folder
        self.log_file = folder.parent / f"{folder.name}.log"
        port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "runserver", "--no-reload", "--port", str(port)],
                cwd=folder,
                env=environment(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def servers(self) -> list[int]:
        """The processes of its embedded servers."""
        pid_files = self.folder.glob(".*/data/*.pid")
        return [int(each.read_text().split()[0]) for each in pid_files]

    def status(self, path: str) -> int | None:
        """Get the status of a route, None while nothing listens."""
        assert self.process.poll() is None, f"it ended:\n{self.log}"
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return None

    def stop(self) -> int:
        """Stop it by SIGTERM and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it whatever it does; its embedded servers end with it."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(
    folder: Path,
    command: Sequence[str | Path] = (sys.executable, "manage.py"),
    **variables: str,
) -> Generator[RunningService]:
    """Run a service until exit, entered once it is ready."""
    service = RunningService(folder, command, **variables)
    try:
        wait_until(lambda: service.status("/readyz") == 200, "ready")
        yield service
    finally:
        service.close()


def is_alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """Find a port on which nothing listens now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def write_and_read(client: httpx.Client, databases: list[str]) -> None:
    """Write a row into each database and read it back; the first has items, the others notes."""
    item = client.post("/items", json={"name": f"lamp {time.time_ns()}", "quantity": 3})
    assert item.status_code == 201, item.text
    assert client.get(f"/items/{item.json()['id']}").json() == item.json()
    for name in databases[1:]:
        body = {"item_id": item.json()["id"], "text": f"bright, says {name}"}
        note = client.post(f"/{name}/notes", json=body)
        assert note.status_code == 201, note.text
        read = client.get(f"/{name}/notes/{note.json()['id']}")
        assert read.json() == {"id": note.json()["id"], **body}
