"""Requests whose client has left are cancelled: while they wait, while they read, in no commit.

Without this, a service that was slow for a moment first works off what nobody waits for. What has
begun to commit is finished, with the commit of another database and the background tasks.
"""

import asyncio
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
            request.end()
            _request.reset(token)


class WatchedRequest:
    """One request: its task, and the messages of its client."""

    _messages: asyncio.Queue[Message]
    """What the watcher has read, once there is one."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a server runs each request in a task
        self.task = task
        self.cancelled = False
        self._watched = True
        self._receive = receive
        self._waiting_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )
        self._watcher: asyncio.Task[None] | None = None
        self._timer = self._watch_later()

    async def receive(self) -> Message:
        """Pass a message on to the application."""
        if self._watcher is None:
            message = await self._receive()
            self._waiting_body = message.get("more_body", False)
        else:  # It reads, to the end.
            message = await self._messages.get()
            if message["type"] == "http.disconnect":
                self._messages.put_nowait(message)  # Whoever asks again is told again.
        return message

    def unwatch(self) -> None:
        """Leave the rest to the server."""
        self._watched = False
        self._timer.cancel()

    def end(self) -> None:
        """Stop reading."""
        self.unwatch()
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(NOTICE_AFTER, self._watch)

    def _watch(self) -> None:
        if self._waiting_body:
            self._timer = self._watch_later()  # The application still reads: it sees the end.
        else:
            self._messages = asyncio.Queue(1)  # So that the rest is not read ahead of its reader.
            self._watcher = asyncio.get_running_loop().create_task(self._cancel_when_left())

    async def _cancel_when_left(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
            if message["type"] == "http.disconnect" and self._watched:
                self.cancelled = True
                self.task.cancel("the client has left")
            await self._messages.put(message)


def begin_commit() -> None:
    """Have the current request, if there is one, end whether its client leaves or not.

    Cancelled if the client has left already, and the task of the request does not know yet.
    """
    if (request := _request.get()) is not None:
        if request.cancelled:
            raise asyncio.CancelledError("the client has left")
        request.unwatch()
