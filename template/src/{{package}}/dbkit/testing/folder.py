"""The folder of a test run: shared by its workers, removed by the last process that uses it."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ..database.engine import SERVICE

if sys.platform != "win32":
    import fcntl

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- Linux's tmpfs; our folder in it is 0700
ROOM = 1 << 30
"""Bytes that must be free there. CREATE DATABASE takes 8 ms in memory, 300 ms on a disk."""

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex


@contextmanager
def run_folder() -> Generator[Path]:
    """Make the folder of this run, or share it; the last of its processes removes it."""
    parent = run_parent()
    if sys.platform == "win32":  # No shared locks: each worker has a folder and a server.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
            yield Path(own)
        return
    remove_unused(parent)
    folder = parent / f"{SERVICE}-tests-{RUN}"
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            used = (folder / "used").open("ab")
            fcntl.flock(used, fcntl.LOCK_SH)
            if (folder / "used").exists():
                break
            used.close()  # Somebody took it for one that is left over.
    try:
        yield folder
    finally:
        used.close()
        remove_unused(parent)


def run_parent() -> Path:
    """Return where the folders of runs are."""
    room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    return SHARED_MEMORY if room else Path(tempfile.gettempdir())


def remove_unused(parent: Path) -> None:
    """Remove our folder, and those of runs that crashed: whatever no process uses."""
    if sys.platform == "win32":
        return
    for folder in parent.glob(f"{SERVICE}-tests-*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            with (folder / "used").open("ab") as used:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for lock in folder.glob("*/lock"):
                    wait_for_server(lock)
                shutil.rmtree(folder)


def wait_for_server(lock: Path) -> None:
    """Wait until the server, which stops after its last user, has gone."""
    if sys.platform == "win32":
        return
    end = time.monotonic() + 10
    with lock.open("rb") as held:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.01)
