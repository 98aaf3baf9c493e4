"""What a client is told when a database, or a body, is at fault: no SQL and no values."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from .errors import DatabaseError, NotConfigured, NotOpen
from .sqlstates import answer, sqlstate

logger = logging.getLogger(__name__)

RETRY_AFTER = "1"  # seconds


class Problem(BaseModel):
    """Problem details, RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class ProblemResponse(JSONResponse):
    """A response whose body is a `Problem`."""

    media_type = "application/problem+json"


def problem(status: int, detail: str) -> ProblemResponse:
    """Make the response that says what went wrong; 503 also says when to try again."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    headers = {"Retry-After": RETRY_AFTER} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return ProblemResponse(body.model_dump(), status, headers)


# For `responses=` of a router whose routes use a database: what they may answer, in OpenAPI.
DATABASE_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
    for status, description in {
        409: "Conflicts with what is stored",
        503: "A database is overloaded or away; try again",
        504: "A database took too long",
    }.items()
}


async def database_failed(_request: Request, error: Exception) -> JSONResponse:
    """Answer for an error that the driver reported, by its SQLSTATE."""
    code = sqlstate(error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        code = code or "08006"
    found = answer(code)
    if found is None:
        raise error
    if found.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return unprocessable([{"type": "database", "loc": ["body"], "msg": found.detail}])
    if found.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("SQLSTATE %s: %s", code, error)
    return problem(found.status, found.detail)


async def database_unavailable(_request: Request, error: Exception) -> JSONResponse:
    """Answer for a state of ours: time may cure it, unless it is our own mistake."""
    if isinstance(error, NotConfigured | NotOpen):
        raise error
    logger.error("%s", error)
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the database cannot serve this request now")


async def invalid_request(_request: Request, error: Exception) -> JSONResponse:
    """Answer as FastAPI does, without the input: NaN and lone surrogates cannot be sent back."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- what it is registered for.
    return unprocessable(
        [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
    )


def unprocessable(detail: list[dict[str, Any]]) -> JSONResponse:
    """Answer 422 in the one form that FastAPI declares for it."""
    return JSONResponse({"detail": detail}, HTTPStatus.UNPROCESSABLE_ENTITY)


def add_exception_handlers(app: FastAPI) -> None:
    """Turn database errors, and invalid requests, into responses."""
    app.add_exception_handler(DBAPIError, database_failed)
    app.add_exception_handler(DatabaseError, database_unavailable)
    app.add_exception_handler(RequestValidationError, invalid_request)
