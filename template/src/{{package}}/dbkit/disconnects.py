"""Requests whose client has left are cancelled: while they wait, while they read, in no commit.

Without this, a service that was slow for a moment first works off what nobody waits for.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .usage import current_scope

NOTICE_AFTER = 0.1
"""Seconds from which on a request is worth watching; shorter ones cost a timer and no task."""

_request: ContextVar["WatchedRequest | None"] = ContextVar("request", default=None)


class CancelOnDisconnect:
    """ASGI middleware that cancels a request once its client has left.

    It also notes which request is served, for whoever asks what holds connections.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what is no HTTP passes through."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        token = current_scope.set(scope)
        try:
            if scope["type"] == "http":
                await self._serve(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            current_scope.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = WatchedRequest(scope, receive)

        async def send_unwatched(message: Message) -> None:
            request.unwatch()  # From its first byte on, the response is the server's to end.
            await send(message)

        token = _request.set(request)
        try:
            await self.app(scope, request.receive, send_unwatched)
        except asyncio.CancelledError:
            if not request.cancelled or request.task.uncancel() > 0:
                raise
        finally:
            request.unwatch()
            _request.reset(token)


class WatchedRequest:
    """One request: its task, and the messages of its client."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a server runs each request in a task
        self.task = task
        self.cancelled = False
        self.commits = 0
        self._receive = receive
        self._waiting_body = any(
            name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"]
        )
        self._kept: list[Message] = []
        self._left = asyncio.Event()
        self._commits_ended = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch_later()

    async def receive(self) -> Message:
        """Pass a message on to the application."""
        if self._kept:
            return self._kept.pop(0)
        if self._watcher is not None:  # It reads; nothing but the end can follow.
            await self._left.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._waiting_body = message["type"] == "http.request" and message.get("more_body", False)
        return message

    def unwatch(self) -> None:
        """Leave the rest to the server."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None and not self._left.is_set():
            self._watcher.cancel()
            self._watcher = None

    def _watch_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(NOTICE_AFTER, self._watch)

    def _watch(self) -> None:
        if self._waiting_body:
            self._watch_later()  # The application still reads: it sees the end by itself.
        else:
            self._watcher = asyncio.get_running_loop().create_task(self._cancel_when_left())

    async def _cancel_when_left(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            self._kept.append(message)
        self._left.set()
        while self.commits:
            self._commits_ended.clear()
            await self._commits_ended.wait()
        self.cancelled = True
        self.task.cancel("the client has left")

    def end_commit(self) -> None:
        """Let the client's leaving count again."""
        self.commits -= 1
        self._commits_ended.set()


@contextmanager
def commit_guard() -> Generator[Callable[[], None]]:
    """Yield what to call when a commit begins.

    From then on until exit, the leaving client of the current request, if there is one, cancels
    nothing.
    """
    request, begun = _request.get(), False

    def begin() -> None:
        nonlocal begun
        if request is not None:
            request.commits += 1
            begun = True

    try:
        yield begin
    finally:
        if request is not None and begun:
            request.end_commit()
