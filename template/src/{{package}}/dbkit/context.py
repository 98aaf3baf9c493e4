"""The request or job that is being served: one object, and all that belongs to it ends with it.

Tasks inherit context variables, so a task that a request leaves behind still finds its context.
`current()` and `shield()` tell such tasks apart: the request is not theirs.
"""

import asyncio
import secrets
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

from .clock import monotonic

JOB = "job"
"""The type of the scope of what is no request."""


class RequestContext:
    """One request or WebSocket, from its first line to the end of its response; or one job."""

    __slots__ = (
        "cancelled",
        "ended",
        "id",
        "positions",
        "scope",
        "since",
        "task",
        "uses",
        "watched",
        "written",
    )

    def __init__(self, scope: Scope, id_: str) -> None:
        self.id = id_
        """Its `X-Request-ID`, that of its trace, or a new one."""
        self.scope = scope
        self.task: Any = this_task()
        """The task in which the server runs it; None of a job that has no event loop."""
        self.since = monotonic()
        self.uses: dict[str, Any] = {}
        """What it has used of each database: a `RouteUse`."""
        self.watched = True
        """Whether it is cancelled when its client leaves; not once it commits or responds."""
        self.cancelled = False
        """Whether it was."""
        self.ended = False
        self.positions: dict[str, int] = {}
        """Where the log of each primary was when this client last wrote to it; see `replicas`."""
        self.written: set[str] | None = None
        """The primaries that it wrote to, if it may write and there are replicas."""

    def includes(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is part of this request: its own, or one that it waits for."""
        if self.ended:
            return False
        return task is self.task or task is None or any(map(self.includes, waiters(task)))


_request: ContextVar[RequestContext | None] = ContextVar("request", default=None)

enter = _request.set
"""Begin a request, in its task; it is left by its end."""
inherited = _request.get
"""Return the request in which this task began, whether it still runs or not."""


def current() -> RequestContext | None:
    """Return the request that the current task is part of."""
    request = _request.get()
    return request if request and request.includes(this_task()) else None


def this_task() -> asyncio.Task[Any] | None:
    """Return the current task; None in a thread without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@contextmanager
def job(name: str) -> Generator[None]:
    """Name what runs outside of a request, until exit.

    Errors, the log, metrics and /pools show it where a request's route would be: `job purge`.
    """
    before = _request.get()
    running = RequestContext({"type": JOB, "name": name}, secrets.token_hex(8))
    _request.set(running)
    try:
        yield
    finally:
        running.ended = True
        _request.set(before)  # Not by a token: a cell of a notebook is a context of its own.


def job_name() -> str:
    """Return the name of the job that a line of the log is about, or ""."""
    request = _request.get()
    if request is None or request.ended or request.scope["type"] != JOB:
        return ""
    name: str = request.scope["name"]
    return name


def shield() -> None:
    """Finish the current request, if there is one, even if its client disconnects.

    Raises `CancelledError` if the client has disconnected already and the request's task has not
    been told yet.
    """
    if (request := current()) is not None:
        if request.cancelled:
            raise asyncio.CancelledError("the client has left")
        request.watched = False


def request_id() -> str:
    """Return the id of the request that a line of the log is about, or ""."""
    request = _request.get()
    if request is None:
        return ""
    if request.ended:  # Then only the server logs for it: an exception, in the request's task.
        task = this_task()
        return request.id if task and task is request.task else ""
    return request.id


def waiters(future: asyncio.Future[Any]) -> Iterator[asyncio.Task[Any] | None]:
    """Yield who waits for a task: by `await`, `gather`, a task group; None for what is not known.

    For a task that was only created nobody does, nor for one in `shield()`, which outlives its
    waiter.
    """
    for callback, _ in getattr(future, "_callbacks", None) or ():
        # Python 3.11's `wait_for` has a partial.
        function = getattr(callback, "func", callback)
        name: str = getattr(function, "__qualname__", "")
        module: str = getattr(function, "__module__", None) or ""
        if name.startswith("Task."):
            yield function.__self__
        elif module.startswith(("asyncio.", "anyio.")) and not name.startswith("shield."):
            held = [getattr(function, "__self__", None), *getattr(callback, "args", ())]
            held += (cell.cell_contents for cell in getattr(function, "__closure__", None) or ())
            yield from of_a_group(held) or of_futures(held)


def of_a_group(held: list[Any]) -> list[asyncio.Task[Any]]:
    """Find the task of asyncio's or anyio's task group in what a callback holds."""
    found = (getattr(each, "_parent_task", None) for each in held)
    scopes = (getattr(each, "cancel_scope", None) for each in held)
    hosts = (getattr(each, "_host_task", None) for each in scopes)
    return [task for task in (*found, *hosts) if task is not None]


def of_futures(held: list[Any]) -> Iterable[asyncio.Task[Any] | None]:
    """Find who waits for what a callback of `gather`, `wait` or `wait_for` will set."""
    futures = [each for each in held if asyncio.isfuture(each) and not hasattr(each, "get_coro")]
    if not futures:
        return [None]  # From a thread, in `as_completed`.
    return (task for future in futures for task in waiters(future))
