"""The workers of one service on one machine: each of them answers for all.

Each worker of a server with several listens on a Unix socket in a folder that only its user may
enter. Whichever is asked asks the others. A worker has the lowest number that is free, held by a
lock that ends with its process: one that takes another's place goes on with its number.
"""

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from multiprocessing import parent_process
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from ..database.engine import SERVICE
from ..loggers import logger_named
from ..telemetry.repeats import is_watching

if sys.platform != "win32":
    import fcntl

logger = logger_named("workers")

PATIENCE = 0.5
"""Seconds that other workers have to answer."""


class Workers:
    """All workers of this service that have the same parent, seen from one of them."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {}
        """What answers each question, of this worker alone."""
        self.number: int | None = None
        """This worker's number; None if the process is not one of several workers."""
        self.silent = 0
        """Workers that did not answer the latest question in time."""
        self._folder = Path()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Answer the others until exit."""
        parent = supervisor()
        if not parent:
            yield
            return
        try:
            self._folder = private_folder(parent)
            number, lock = claim(self._folder)
            server = await asyncio.start_unix_server(self._serve, self._socket(number))
        except OSError as error:
            logger.warning("/pools and /metrics show one worker each: %s", error)
            yield
            return
        self.number = number
        try:
            yield
        finally:
            self.number = None
            server.close()
            self._socket(number).unlink(missing_ok=True)
            os.close(lock)

    async def ask(self, question: str, argument: Any = None) -> dict[int | None, Any]:
        """Ask all, this one first; return what each answers, by number."""
        answers: dict[int | None, Any] = {self.number: self.answers[question](argument)}
        if self.number is not None:
            others = [n for n in numbers(self._folder) if n != self.number]
            asked = [self._ask(each, question, argument) for each in others]
            found = dict(zip(others, await asyncio.gather(*asked), strict=True))
            self.silent = sum(each is TimeoutError for each in found.values())
            answers |= {n: each for n, each in found.items() if not isinstance(each, type)}
        return answers

    async def _ask(self, number: int, question: str, argument: Any) -> Any:
        """Ask another; return the class of the error if it does not answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._socket(number))
                try:
                    writer.write(json.dumps([question, argument]).encode() + b"\n")
                    return json.loads(await reader.read())
                finally:
                    writer.close()
        except (OSError, ValueError) as error:  # It has ended, or does so now.
            return type(error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            question, argument = json.loads(await reader.readline())
            writer.write(json.dumps(self.answers[question](argument)).encode())
            await writer.drain()
        writer.close()

    def _socket(self, number: int) -> Path:
        return self._folder / f"{number}.sock"


def supervisor() -> int:
    """Return the process that starts the workers of this server; 0 if this is no worker."""
    if sys.platform == "win32" or is_watching():
        return 0
    if (parent := parent_process()) is not None:  # of uvicorn, granian, hypercorn
        return parent.pid or 0
    return os.getppid() if "gunicorn.arbiter" in sys.modules else 0


def private_folder(parent: int) -> Path:
    """Make the folder of the workers of a parent, where nobody else may enter."""
    top = Path(gettempdir()) / f"{SERVICE}-{os.getuid()}"
    top.mkdir(mode=0o700, exist_ok=True)
    found = top.lstat()
    others = stat.S_IRWXG | stat.S_IRWXO
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & others:
        raise PermissionError(f"{top} is not a folder of this user alone")
    for each in top.iterdir():  # Of workers that were killed with their parent.
        with suppress(OSError, ValueError):
            if not is_alive(int(each.name)):
                for file in each.iterdir():
                    file.unlink(missing_ok=True)
                each.rmdir()
    folder = top / str(parent)
    folder.mkdir(exist_ok=True)
    return folder


def is_alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is another user's.
    return True


def claim(folder: Path) -> tuple[int, int]:
    """Take the lowest number that no living worker has; return it, and the file of its lock."""
    for number in count():
        lock = os.open(folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return number, lock
    raise AssertionError  # There is no last number.


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the workers, living or dead."""
    return sorted(int(each.stem) for each in folder.glob("*.sock"))
