"""SQLSTATE codes: the one name that an error has on every server.

Source: PostgreSQL's appendix A, "PostgreSQL Error Codes". Errors of other servers are translated
to the SQLSTATE that PostgreSQL gives for the same thing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import ArgumentError, DataError, InvalidRequestError

# The server is leaving, or is no longer the primary: the connection is of no more use.
READ_ONLY = "25006"
DISCONNECTED = frozenset({READ_ONLY, "57P01", "57P02", "57P03"})
# A statement in a transaction that is aborted already: another one has failed before.
IN_ABORTED = "25P02"
INTERRUPTED = "57014"
# A prepared statement is there already, or is gone: somebody else uses the connection too.
UNKNOWN_STATEMENT = frozenset({"26000", "42P05"})

# Of limits without a SQLSTATE that says so: of a driver, of SQLite, of PostgreSQL's memory.
LIMITS = {
    "the number of query arguments cannot exceed": "54023",
    "too many SQL variables": "54023",
    "invalid memory alloc request size": "54000",
}

TRANSLATIONS: dict[str, Callable[[Any], str | None]] = {}
"""By the package of a driver: what finds the SQLSTATE of an error that has none of its own."""

BUGS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, NotImplementedError, TypeError, ValueError),
    *(ArgumentError, InvalidRequestError),
)
"""What a mistake in Python raises, or in what SQLAlchemy is told."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told about an error of the database."""

    status: int
    detail: str


CONFLICT = "conflicts with another transaction; try again"
STALE = Answer(503, "the tables have just changed; try again")

ANSWERS = {
    "22": Answer(422, "a value is out of range or has a wrong form"),
    "23502": Answer(422, "a value is missing"),
    "23001": Answer(409, "another row refers to this one"),
    "23503": Answer(409, "another row refers to this one, or the row referred to is gone"),
    "23505": Answer(409, "a row with the same value exists"),
    "23514": Answer(422, "a value is not allowed"),
    "23P01": Answer(409, "conflicts with another row"),
    "25006": Answer(503, "the database is read-only at the moment"),
    "25P03": Answer(504, "the transaction was idle for too long"),
    "25P04": Answer(504, "the transaction took too long"),
    "40": Answer(503, CONFLICT),
    "53": Answer(503, "the database is out of resources"),
    "54": Answer(422, "a value is too large"),
    "55P03": Answer(503, "the row is locked by another transaction; try again"),
    "57014": Answer(504, "the statement took too long"),
    "57P": Answer(503, "the database is restarting"),
    "08": Answer(503, "the connection to the database was lost"),
}


def is_retryable(code: str | None) -> bool:
    """Whether another transaction was in the way: the same work, begun again, may succeed."""
    return code in {"40001", "40P01"}


def is_bug(error: BaseException) -> bool:
    """Whether what a connect raised is a mistake: in Python, or in a statement that it ran."""
    return isinstance(error, BUGS) or (sqlstate(error) or "")[:2] in {"22", "42"}


def is_stale(error: BaseException) -> bool:
    """Whether a statement was prepared before a migration changed what it is about.

    Nothing was done, and SQLAlchemy forgets what it has prepared: asked again, it succeeds.
    """
    error = getattr(error, "orig", None) or error
    if type(error).__name__ == "InvalidCachedStatementError":
        return True
    return sqlstate(error) == "XX000" and "cache lookup failed" in str(error)


def may_succeed_again(error: BaseException) -> bool:
    """Whether the same work, begun again, may succeed."""
    return is_retryable(sqlstate(error)) or is_stale(error)


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, however deep it is wrapped."""
    unknown = "22000" if isinstance(error, DataError) else None
    while error is not None:
        code = getattr(error, "sqlstate", None)
        translate = TRANSLATIONS.get(type(error).__module__.partition(".")[0])
        if translate is not None:
            return translate(error) or unknown
        if isinstance(code, str):
            return code if code != "XX000" else limit_of(error) or code
        unknown = unknown or limit_of(error)
        error = getattr(error, "orig", None) or error.__cause__
    return unknown


def limit_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a limit that only the message names."""
    said = str(error)
    return next((code for text, code in LIMITS.items() if text in said), None)


def answer(code: str | None) -> Answer | None:
    """Return the answer for a SQLSTATE, or for its class; None where the fault is ours."""
    for length in (5, 3, 2):
        if code and (found := ANSWERS.get(code[:length])):
            return found
    return None
