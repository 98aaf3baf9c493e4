"""Cancels requests whose client has disconnected, but never once they have begun to commit.

Without this, a service that was slow for a moment first works through requests that nobody waits
for. A request that has begun to commit is finished, with the commit of another database and the
background tasks.
"""

import asyncio

from starlette.types import Message, Receive

from ..context import RequestContext
from ..pool.timeouts import Timers

NOTICE_AFTER = 0.1
"""Seconds after which a request is watched; shorter ones cost no task."""


class Watch:
    """Watches for the end of one request's connection, and passes on the client's messages."""

    _messages: asyncio.Queue[Message]
    """What the watcher has read, once there is one."""

    def __init__(
        self, request: RequestContext, headers: dict[bytes, bytes], receive: Receive, timers: Timers
    ) -> None:
        self._request = request
        self._receive = receive
        self._waiting_body = (
            b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        )
        self._watcher: asyncio.Task[None] | None = None
        self._timers = timers
        self._timer = timers.call_later(NOTICE_AFTER, self._watch)

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

    def end(self) -> None:
        """Stop reading."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch(self) -> None:
        if not self._request.watched:
            return
        if self._waiting_body:
            # The application still reads: it sees the end.
            self._timer = self._timers.call_later(NOTICE_AFTER, self._watch)
        else:
            self._messages = asyncio.Queue(1)  # So that the rest is not read ahead of its reader.
            self._watcher = asyncio.get_running_loop().create_task(self._cancel_when_left())

    async def _cancel_when_left(self) -> None:
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()
            request = self._request
            if message["type"] == "http.disconnect" and request.watched:
                request.cancelled = True
                request.task.cancel("the client has left")
            await self._messages.put(message)
