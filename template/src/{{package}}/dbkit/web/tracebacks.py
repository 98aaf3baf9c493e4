"""Tracebacks for people: the service's own lines, a driver's message without values, and a hint."""

import traceback
from collections.abc import Iterator
from typing import Any, cast

from sqlalchemy.exc import (
    DBAPIError,
    EmulatedDBAPIException,
    InvalidRequestError,
    MissingGreenlet,
    StatementError,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from ..callsites import is_ours
from ..engines.failures import failure_of, reason_of
from ..errors import DatabaseError

DRIVERS = {"asyncpg", "asyncmy", "sqlite3", "aiosqlite"}
LONGEST_STATEMENT = 1000
INNERMOST = 5
"""Lines shown of an error to which no line of the service led."""

ONE_TASK = (
    "a session, and its connection, serve one task at a time: begin one in each task, or run the"
    " statements one after the other"
)
LOADED = (
    "what is not loaded cannot be loaded here: load it by the query, as by"
    " options(selectinload(...)), or before by await session.refresh(it, [...])"
)
HINTS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        InvalidRequestError,
        "Can't operate on closed transaction",
        (
            "a session of the kit commits at its end, before the response is sent: where you need"
            " what the database makes, use await session.flush()"
        ),
    ),
    (
        InvalidRequestError,
        "permanently closed",
        (
            "the request's session has ended, as it has in background tasks and streamed responses:"
            " begin one there, by async with DATABASE.session()"
        ),
    ),
    (DetachedInstanceError, "", LOADED),
    (MissingGreenlet, "", LOADED),
    (InvalidRequestError, "concurrent operations are not permitted", ONE_TASK),
    (InvalidRequestError, "is already in progress", ONE_TASK),
    (DBAPIError, "another operation is in progress", ONE_TASK),
    (DBAPIError, "manually started transaction", ONE_TASK),
)
"""What SQLAlchemy or a driver says of a session that is used in a wrong way, and the right one."""


def add_hint(error: BaseException) -> None:
    """Note the right way on an error that says that a session was used in a wrong one."""
    for each in chain(error):
        for kind, said, hint in HINTS:
            if isinstance(each, kind) and said in str(each):
                if hint not in getattr(each, "__notes__", ()):
                    each.add_note(hint)
                return


def chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    """Yield an error, what is in it, and what led to it; each once.

    An error that `BaseHTTPMiddleware` takes out of a group and raises again has led to itself.
    """
    seen = set() if seen is None else seen
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
                yield from chain(each, seen)
        error = before(cast("BaseException", error))


def before(error: BaseException) -> BaseException | None:
    """Return what led to an error."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def write_traceback(error: BaseException, *, full: bool) -> str:
    """Write an error and what led to it, without the values that drivers name.

    Unless `full`, only the service's own lines, or the innermost where there are none, and of a
    database error only the outermost.
    """
    return "".join(lines_of(error, set(), full=full, of_driver=False)).rstrip("\n")


def lines_of(error: BaseException, seen: set[int], *, full: bool, of_driver: bool) -> Iterator[str]:
    """Yield the lines of an error; with `of_driver`, it is what a driver's error came from."""
    seen.add(id(error))
    is_database = of_driver or is_of_database(error)
    cause = before(error)
    if cause is not None and id(cause) not in seen and (full or not is_database):
        yield from lines_of(cause, seen, full=full, of_driver=is_database)
        yield f"\n{CAUSE if error.__cause__ else CONTEXT}\n\n"
    steps = traceback.extract_tb(error.__traceback__)
    own = [step for step in steps if is_ours(step.filename)]
    shown = steps if full else own or steps[-INNERMOST:]
    hidden = len(steps) - len(shown)
    hint = f"; lines of libraries are hidden: {hidden}, LOG_TRACEBACKS=full shows them"
    yield f"Traceback (most recent call last{hint if hidden else ''}):\n"
    yield from traceback.format_list(shown)
    if not is_database:
        yield from traceback.format_exception_only(error)
    else:
        yield f"{name_of(error)}: {said(error)}\n"
        yield from (f"{note}\n" for note in getattr(error, "__notes__", ()))
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            if id(each) in seen:
                continue
            inner = "".join(lines_of(each, seen, full=full, of_driver=is_database))
            yield from (f"  | {line}" for line in inner.splitlines(keepends=True))
            yield "  +---\n"


CAUSE = "The above exception was the direct cause of the following exception:"
CONTEXT = "During handling of the above exception, another exception occurred:"


def is_of_database(error: BaseException) -> bool:
    """Whether the message is a driver's, or the kit's."""
    of_driver = type(error).__module__.partition(".")[0] in DRIVERS
    return of_driver or isinstance(error, StatementError | EmulatedDBAPIException | DatabaseError)


def name_of(error: BaseException) -> str:
    """Name the class of an error, as Python does."""
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def said(error: Any) -> str:
    """Say what a database error says, without values."""
    if isinstance(error, DatabaseError):
        return str(error)
    if not is_of_database(error):
        return reason_of(error)
    if not getattr(error, "hide_parameters", True):
        return str(error)  # DATABASE_ECHO shows them.
    statement = str(getattr(error, "statement", None) or "")
    shown = f"\n[SQL: {statement[:LONGEST_STATEMENT]}]" if statement else ""
    return f"{failure_of(error).reason}{shown}"
