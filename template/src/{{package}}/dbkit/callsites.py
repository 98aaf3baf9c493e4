"""Lines of the service and its tests: what led to a call, and where a task waits."""

import asyncio
import gc
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any

from greenlet import getcurrent
from sqlalchemy.util import greenlet_spawn

SHOWN = 3
"""Lines shown of the way to a call."""

NOT_OURS = (
    "<",
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""Where no line of the service or its tests is."""

FRAMES = ("cr_frame", "ag_frame", "gi_frame")
AWAITED = ("cr_await", "ag_await", "gi_yieldfrom")
"""What coroutines, asynchronous generators and generators call the same things."""


def calling_lines() -> tuple[str, ...]:
    """Find the lines that led here, the innermost first."""
    # SQLAlchemy runs in a greenlet; what awaits it is on the stack of the greenlet's parent.
    parent = getcurrent().parent
    return lines_of(callers(parent.gr_frame if parent else inspect.currentframe()))


def waiting_lines(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """Find the lines where a task waits, the innermost first; none if it has ended."""
    return lines_of(reversed(list(suspended_frames(task))))


def raising_lines(error: BaseException) -> tuple[str, ...]:
    """Find the lines that led to an error, the innermost first."""
    steps = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    return lines_at(reversed(steps))


def calling_place() -> tuple[CodeType, int] | None:
    """Find the innermost line of the service that led here, for `write` to write; takes 1 us."""
    parent = getcurrent().parent
    frame = parent.gr_frame if parent else sys._getframe()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- documented
    while frame is not None and not is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code, frame.f_lineno) if frame is not None else None


def lines_of(frames: Iterable[FrameType]) -> tuple[str, ...]:
    """Write the first frames that are in functions of the service's own files."""
    return lines_at((frame.f_code, frame.f_lineno) for frame in frames)


def lines_at(places: Iterable[tuple[CodeType, int]]) -> tuple[str, ...]:
    """Write the first places that are in functions of the service's own files."""
    own = (
        write(code, line)
        for code, line in places
        if is_ours(code.co_filename) and code.co_name != "<module>"
    )
    return tuple(islice(own, SHOWN))


@cache
def is_ours(filename: str) -> bool:
    """Whether a file is one of the service's own, or of its tests."""
    return filename.endswith(".py") and not filename.startswith(NOT_OURS)


def write(code: CodeType, line: int) -> str:
    """Write a line for people."""
    return f"{shorten(code.co_filename)}:{line} in {code.co_name}"


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Go from a frame to whatever called it, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def suspended_frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Go along what a task awaits, the outermost frame first; `Task.get_stack` has only that."""
    step: Any = task.get_coro()
    while step is not None:
        frame = attribute(step, FRAMES)
        if frame is not None:
            yield frame
            if frame.f_code is greenlet_spawn.__code__:
                yield from reversed(list(callers(frame.f_locals["context"].gr_frame)))
            step = attribute(step, AWAITED)
        else:  # `anext()` hides its generator, and `__await__()` its coroutine.
            step = next((each for each in gc.get_referents(step) if attribute(each, FRAMES)), None)


def attribute(step: Any, names: tuple[str, ...]) -> Any:
    """Return the attribute that a step has by one of these names."""
    return next((found for name in names if (found := getattr(step, name, None))), None)


def shorten(filename: str) -> str:
    """Write a path as seen from the project's folder."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
