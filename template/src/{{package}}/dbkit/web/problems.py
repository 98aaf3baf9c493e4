"""What a client is told when a database, or a body, is at fault: no SQL and no values."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import wraps
from http import HTTPStatus
from math import ceil
from typing import Any, cast

from fastapi import Request
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ..callsites import raising_lines, write
from ..engines.failures import Failure, can_be_input, failure_of
from ..engines.sqlstates import CONFLICT, STALE, Answer, answer, is_retryable, is_stale
from ..errors import (
    DatabaseError,
    PoolClosed,
    PoolOverloaded,
    PoolTimeout,
    TransactionAborted,
    Unreachable,
)
from ..loggers import logger_named
from .access import may_see
from .routing import mounted_in

logger = logger_named("exception_handlers")

Handler = Callable[[Request, Exception], Awaitable[Response]]

UNREADABLE = HTTPException(400, "There was an error parsing the body")  # FastAPI's


class Problem(BaseModel):
    """Problem details, RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    holders: list[str] | None = None
    """Who holds the connections of the pool, the longest first; only for who may see it."""
    blocked: str | None = None
    """What blocked the event loop meanwhile; only for who may see it."""


class ProblemResponse(JSONResponse):
    """A response whose body is a `Problem`."""

    media_type = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    retry_after: float = 1,
    holders: list[str] | None = None,
    blocked: str | None = None,
) -> ProblemResponse:
    """Make the response that says what went wrong; a 503 also in how many seconds to try again."""
    title = HTTPStatus(status).phrase
    body = Problem(title=title, status=status, detail=detail, holders=holders, blocked=blocked)
    headers = None
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": str(ceil(retry_after))}
    return ProblemResponse(body.model_dump(exclude_none=True), status, headers)


def declare(description: str, **more: Any) -> dict[str, Any]:
    """Describe a `Problem` response for OpenAPI."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {"description": description, "content": content, **more}


RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which trying again may help",
        "schema": {"type": "integer"},
    }
}

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
READS = {"GET", "HEAD", "OPTIONS"}

LEVELS = {409: logging.INFO, 422: logging.WARNING}
"""Conflicts are daily bread; what only the database finds wrong, the route's schema lets in."""

# What routes that use a database may answer; `install()` declares it.
DATABASE_RESPONSES: dict[int | str, dict[str, Any]] = {
    409: declare("Conflicts with what is stored"),
    503: declare("A database is overloaded or away", headers=RETRY_AFTER),
    504: declare("A database took too long"),
}


async def database_failed(request: Request, error: Exception) -> JSONResponse:
    """Answer for an error that the driver reported, by its SQLSTATE; the log has its reason.

    What no input can have caused is our own mistake, and no client's.
    """
    failure = failure_of(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated and failure.code is None:
        failure = replace(failure, code="08006")
    found = STALE if is_stale(error) else answer(failure.code)
    if (
        found is not None
        and found.status < HTTPStatus.INTERNAL_SERVER_ERROR
        and not (may_have_sent_it(request, found.status) and can_be_input(failure, error))
    ):
        found = None
    database = getattr(error, "database", "the database")  # Noted by `create_engine()`.
    log_failure(request, database, failure, error, found)
    if found is None:
        raise error
    if found.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return unprocessable([{"type": "database", "loc": ["body"], "msg": found.detail}])
    if found.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return problem(found.status, found.detail)
    return problem(found.status, f"{database}: {found.detail}")


def may_have_sent_it(request: Request, status: int) -> bool:
    """Whether a request has input that can have caused this.

    A request to write needs none to conflict with what is stored: who sends it is in a header.
    """
    scope = request.scope
    if status == HTTPStatus.CONFLICT and scope["method"] not in READS:
        return True
    length = request.headers.get("content-length", "0")
    has_body = length != "0" or "transfer-encoding" in request.headers
    return has_body or bool(scope.get("path_params")) or bool(scope["query_string"])


def log_failure(
    request: Request, database: str, failure: Failure, error: Exception, found: Answer | None
) -> None:
    """Write the line of an error: its reason and place, in names."""
    if vars(error).get("is_logged"):
        return  # Starlette asks for the handler of a route's error twice when the first raises.
    vars(error)["is_logged"] = True
    status = found.status if found else HTTPStatus.INTERNAL_SERVER_ERROR.value
    where = raising_lines(error) or endpoint_of(request)
    logger.log(
        LEVELS.get(status, logging.ERROR),
        "%s: SQLSTATE %s: %s; answered %d, at %s",
        *(database, failure.code, failure.reason, status, " <- ".join(where) or "no line of ours"),
        extra={"database": database, "sqlstate": failure.code, **failure.names, "where": where},
    )


def endpoint_of(request: Request) -> tuple[str, ...]:
    """Say which function answers a request: one whose session fails at its end is on no stack."""
    code = getattr(request.scope.get("endpoint"), "__code__", None)
    return (write(code, code.co_firstlineno),) if code else ()


async def database_unavailable(request: Request, error: Exception) -> JSONResponse:
    """Answer for a state of ours: time may cure it, unless it is our own mistake.

    Routes and lines are for whoever may see /pools: the public is not told who holds what.
    """
    assert isinstance(error, DatabaseError)  # noqa: S101 -- what it is registered for.
    # The pool has logged the beginning of the overload or the outage, and will log its end.
    if isinstance(error, TransactionAborted) and is_retryable(error.sqlstate):
        logger.error("%s", error)
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.database}: {CONFLICT}")
    if (detail := UNAVAILABLE.get(type(error))) is None:
        raise error
    open_ = may_see(request, request.app.state.databases.service.pools_token)
    holders = [str(each) for each in error.holders] if open_ else None
    return problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{error.database}: {detail}",
        retry_after=error.retry_after,
        holders=holders or None,
        blocked=(open_ and error.blocked) or None,
    )


async def group_failed(request: Request, error: Exception) -> JSONResponse:
    """Respond to a task group as to its first error, if all are database errors."""
    errors = list(members(error))
    if not all(isinstance(each, DatabaseError | DBAPIError) for each in errors):
        raise error
    answer_for = database_unavailable if isinstance(errors[0], DatabaseError) else database_failed
    return await answer_for(request, errors[0])


def members(error: Exception) -> Iterator[Exception]:
    """Yield the errors of a group, and of those in it; or else the error itself."""
    if isinstance(error, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from members(each)
    else:
        yield error


UNAVAILABLE: dict[type[DatabaseError], str] = {
    PoolClosed: "the service is stopping",
    PoolOverloaded: "overloaded; try again later",
    PoolTimeout: "no connection became free in time; try again later",
    Unreachable: "cannot be reached; try again later",
}


async def invalid_request(_request: Request, error: Exception) -> JSONResponse:
    """Answer as FastAPI does, without the input: NaN and lone surrogates cannot be sent back."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- what it is registered for.
    return unprocessable(
        [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
    )


async def http_exception(request: Request, error: Exception) -> Response:
    """Answer as FastAPI does, but 422 for a body that is not UTF-8: its 400 is in no OpenAPI."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- what it is registered for.
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = methods_of(request)
        if allowed and request.method not in allowed:  # else the route itself raised it
            error.headers = {**(error.headers or {}), "Allow": ", ".join(allowed)}
    if (error.status_code, error.detail) == (UNREADABLE.status_code, UNREADABLE.detail):
        return unprocessable([{"type": "json_invalid", "loc": ["body"], "msg": "not JSON"}])
    return await http_exception_handler(request, error)


def methods_of(request: Request) -> list[str]:
    """List the methods that this path has: Starlette names those of its first route only."""
    scope = {key: request.scope[key] for key in ("app", "type", "path", "root_path", "headers")}
    routes = request.app.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def for_http(answer_: Handler) -> Handler:
    """Leave errors of a WebSocket as they are: there is no response to make of them."""

    @wraps(answer_)
    async def answer_request(request: Request, error: Exception) -> Response:
        if request.scope["type"] != "http":
            raise error
        return await answer_(request, error)

    return answer_request


def unprocessable(detail: list[dict[str, Any]]) -> JSONResponse:
    """Answer 422 in the one form that FastAPI declares for it."""
    return JSONResponse({"detail": detail}, HTTPStatus.UNPROCESSABLE_ENTITY)


def add_exception_handlers(app: Starlette) -> None:
    """Turn database errors, and what FastAPI rejects, into responses; handlers of its own stay."""
    handlers = app.exception_handlers
    for kind, handler in OF_DATABASES.items():
        handlers.setdefault(kind, handler)
    for kind, default, handler in OF_FASTAPI:
        if handlers.get(kind) is default:
            handlers[kind] = handler


def add_to_mounted(app: Starlette) -> None:
    """Do the same for applications mounted in this one: each answers its own errors."""
    for _, inner in mounted_in(app):
        if not hasattr(inner.state, "databases"):
            inner.state.databases = app.state.databases
        add_exception_handlers(inner)
        add_to_mounted(inner)


OF_DATABASES: dict[type[Exception], Any] = {
    DBAPIError: for_http(database_failed),
    DatabaseError: for_http(database_unavailable),
    ExceptionGroup: for_http(group_failed),
}
OF_FASTAPI: tuple[tuple[type[Exception], Any, Any], ...] = (
    (RequestValidationError, request_validation_exception_handler, invalid_request),
    (HTTPException, http_exception_handler, http_exception),
)
"""Kinds of errors, FastAPI's handlers, and ours."""
