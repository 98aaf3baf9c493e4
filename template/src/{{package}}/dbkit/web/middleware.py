"""The kit's one ASGI middleware: it gives each request its context, and ends it."""

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..context import RequestContext, enter
from ..errors import DatabaseError
from ..pool.timeouts import Timers
from ..telemetry.repeats import is_watching, say_repeats
from .disconnects import Watch
from .logs import find_id, say, say_failed, take_over
from .problems import add_to_mounted
from .tracebacks import add_hint
from .workers import Workers

SERVED = "dbkit.served"
NO_SNIFFING = (b"x-content-type-options", b"nosniff")


class RequestMiddleware:
    """ASGI middleware around all others: names a request, watches its client, writes its line.

    With `replicas`, a client carries in cookies how far a replica must have come.
    """

    def __init__(self, app: ASGIApp, workers: Workers, *, replicas: bool = False) -> None:
        self.app = app
        self._workers = workers
        self._replication: Any = (
            import_module("..database.replicas", __package__) if replicas else None
        )
        self._asked = False
        self._say = say_all if is_watching() else say
        self._timers: Timers | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            take_over()
            async with self._workers.listening():
                await self.app(scope, receive, explaining(send))
            return
        if SERVED in scope:  # This application is mounted in another that has all this.
            await self.app(scope, receive, send)
            return
        scope[SERVED] = True
        if not self._asked:
            self._asked = True
            take_over()
            add_to_mounted(scope["app"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request = RequestContext(scope, find_id(headers))
        enter(request)  # Until its task ends: the server logs our exceptions after us.
        if scope["type"] == "http":
            await self._serve(request, headers, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            add_hint(error)
            say_failed(error)
            raise
        finally:
            request.ended = True

    async def _serve(
        self, request: RequestContext, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        status = 0
        timers = self._timers
        if timers is None or timers.loop is not asyncio.get_running_loop():
            timers = self._timers = Timers()

        async def send_noting(message: Message) -> None:
            nonlocal status
            request.watched = False  # From its first byte on, the response is the server's to end.
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request.id.encode()), NO_SNIFFING]
                message["headers"] = [*message.get("headers", ()), *added]
                if request.written:
                    self._replication.set_cookies(request, message)
            await send(message)

        if self._replication:
            self._replication.read_positions(request)
        watch = Watch(request, headers, receive, timers)
        try:
            await self.app(request.scope, watch.receive, send_noting)
        except Exception as error:
            add_hint(error)
            say_failed(error)
            raise
        except asyncio.CancelledError:
            if not request.cancelled or request.task.uncancel() > 0:
                raise
        finally:
            request.ended = True
            watch.end()
            self._say(request, status)


def say_all(request: RequestContext, status: int) -> None:
    """Write the line of a request, and what it has asked again and again."""
    say(request, status)
    say_repeats(request)


def explaining(send: Send) -> Send:
    """Have a start or a stop that failed say why in few words, where the message is the kit's."""

    async def send_explaining(message: Message) -> None:
        error = sys.exception()
        if message["type"].endswith(".failed") and isinstance(error, DatabaseError):
            message["message"] = str(error)
        await send(message)

    return send_explaining


class Outermost(ServerErrorMiddleware):
    """An application's first middleware, of the type that Starlette has there.

    OpenTelemetry's `FastAPIInstrumentor` takes the first one apart to stand around `app`, and
    gives up if it is of another type. What is inside has answered 500 by then.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.app(scope, receive, send)


def serve_requests(app: FastAPI, workers: Workers, *, replicas: bool) -> None:
    """Stand around the whole application, so that no middleware of the service is left out.

    FastAPI has no public way to: `add_middleware` adds inside of what answers 500.
    """
    build: Callable[[], Any] = app.build_middleware_stack

    def build_stack() -> ASGIApp:
        stack = build()
        served = RequestMiddleware(stack, workers, replicas=replicas)
        if not isinstance(stack, ServerErrorMiddleware):
            return served
        return Outermost(served, stack.handler, stack.debug)

    app.build_middleware_stack = build_stack
