"""The routes of the page, and the stream that it listens to."""

import asyncio
import json
from collections.abc import AsyncGenerator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Match, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from ...database.databases import Databases
from ..access import is_closed, is_same, let_in, may_see
from ..workers import Workers
from .changes import change, check
from .state import State

HERE = Path(__file__).parent
PATH = "/pools"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
OPEN = {"page.css", "login"}
"""Files and routes that need no token."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Accel-Buffering": "no",  # nginx would collect the events.
}
MOST_VIEWERS = 20
LONGEST_FORM = 1000
INTERVAL = 1.0
"""Seconds between two events."""
LOOKS = 5
"""Looks in each interval at whether the service stops."""


class Pages(Mount):
    """`/pools`, its events, its state and its settings; not there while closed, or taken."""

    def __init__(self, databases: Databases, workers: Workers) -> None:
        self._databases = databases
        self._workers = workers
        workers.answers["change"] = lambda changes: change(databases, changes)
        self._state = State(databases, workers)
        self.viewers = 0
        """Streams that are open."""
        self._router = Router(
            [
                Route("/", self._show_file),
                Route("/page.css", self._show_file),
                Route("/page.js", self._show_file),
                Route("/login", self._log_in, methods=["POST"]),
                Route("/state", self._show_state),
                Route("/settings", self._change, methods=["PATCH"]),
                Route("/events", self._stream),
            ]
        )
        super().__init__(PATH, app=self._guarded)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Leave the path to the service's own routes while the page is closed."""
        match, child = super().matches(scope)
        if match is not Match.NONE and (is_closed(self._token) or is_taken(scope)):
            return Match.NONE, {}
        return match, child

    @property
    def _token(self) -> str:
        return self._databases.service.pools_token

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        page = request.url.path.rpartition("/")[2]
        if page in OPEN or may_see(request, self._token):
            await self._router(scope, receive, send)
        else:
            await self._refuse(page)(scope, receive, send)

    def _refuse(self, page: str) -> Response:
        if not self._token:
            return Response("set POOLS_TOKEN, or ask on 127.0.0.1", HTTPStatus.FORBIDDEN, HEADERS)
        if page:
            return Response("the token is POOLS_TOKEN", HTTPStatus.UNAUTHORIZED, HEADERS)
        return file("login.html", HTTPStatus.UNAUTHORIZED)

    async def _log_in(self, request: Request) -> Response:
        body = await read_body(request)
        (sent, *_) = parse_qs(body.decode("latin-1")).get("token", [""])
        if not self._token or not is_same(sent, self._token):
            return file("login.html", HTTPStatus.UNAUTHORIZED)
        response = RedirectResponse("./", HTTPStatus.SEE_OTHER, HEADERS)
        let_in(request, response, self._token)
        return response

    async def _show_file(self, request: Request) -> Response:
        return file(request.url.path.rpartition("/")[2] or "page.html")

    async def _show_state(self, _request: Request) -> Response:
        return JSONResponse(await self._state.current(), headers=HEADERS)

    async def _change(self, request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.url.netloc:  # A page elsewhere asks.
            return Response("not from another site", HTTPStatus.FORBIDDEN, HEADERS)
        try:
            changes = check(self._databases, json.loads(await read_body(request)))
        except ValueError as error:
            return Response(str(error), HTTPStatus.UNPROCESSABLE_ENTITY, HEADERS)
        answers = await self._workers.ask("change", changes)
        answer = {
            "changed": changes,
            "workers": [*answers.values()],
            "silent": self._workers.silent,
        }
        return JSONResponse(answer, headers=HEADERS)

    async def _stream(self, _request: Request) -> Response:
        if self.viewers >= MOST_VIEWERS:
            return Response("too many viewers", HTTPStatus.SERVICE_UNAVAILABLE, HEADERS)
        return StreamingResponse(self._events(), headers=HEADERS, media_type="text/event-stream")

    async def _events(self) -> AsyncGenerator[str]:
        """Send the state each second, the first time with its history, until the service stops."""
        self.viewers += 1
        try:
            history = True
            while not self._databases.stopping:
                yield event(await self._state.current(history=history))
                history = False
                for _ in range(LOOKS):
                    await asyncio.sleep(INTERVAL / LOOKS)
                    if self._databases.stopping:
                        break
        finally:
            self.viewers -= 1


async def read_body(request: Request) -> bytes:
    """Read a body, and no more of it than what is of use."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_FORM:
            break
    return body[:LONGEST_FORM]


def file(name: str, status: int = HTTPStatus.OK) -> Response:
    """Answer with a file of this folder."""
    path = HERE / name
    return Response(path.read_bytes(), status, HEADERS, TYPES[path.suffix])


def event(state: dict[str, Any]) -> str:
    """Write a state as a server-sent event."""
    return f"data: {json.dumps(state, separators=(',', ':'))}\n\n"


def is_taken(scope: Scope) -> bool:
    """Whether the service has routes of its own there: they come first."""
    paths: dict[str, Any] = scope["app"].openapi().get("paths", {})
    return any(path == PATH or path.startswith(f"{PATH}/") for path in paths)
