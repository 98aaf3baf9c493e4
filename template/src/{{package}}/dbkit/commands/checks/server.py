"""Whether a server is set up as a service in production needs it."""

import time
from collections.abc import AsyncGenerator

from sqlalchemy import text

from .finding import Finding, Subject

SKEW = 1.0
"""Seconds between two clocks that are too many."""

CLOCKS = {
    "postgresql": text("SELECT extract(epoch FROM clock_timestamp())::float8"),
    "mysql": text("SELECT unix_timestamp(sysdate(6)) + 0e0"),
}
IS_READ_ONLY = {
    "postgresql": text("SELECT pg_is_in_recovery()"),
    # A number, and on newer ones a word.
    "mysql": text("SELECT concat(@@global.read_only) NOT IN ('0', 'OFF')"),
}


async def check_clock(subject: Subject) -> AsyncGenerator[Finding]:
    """Compare the server's clock with ours."""
    if (question := CLOCKS.get(subject.database.dialect)) is None:
        return
    await subject.connection.execute(text("SELECT 1"))  # What is slow the first time is over.
    asked = time.time()
    clock = await subject.connection.scalar(question)
    ahead = clock - (asked + time.time()) / 2
    if abs(ahead) > SKEW:
        where = "ahead of" if ahead > 0 else "behind"
        yield subject.finding(
            "database.W012",
            f"the server's clock is {abs(ahead):.1f} s {where} ours",
            "have both machines set their clocks by NTP",
        )


async def check_writable(subject: Subject) -> AsyncGenerator[Finding]:
    """Find a database of ours whose server takes no writes."""
    question = IS_READ_ONLY.get(subject.database.dialect)
    if question is None or subject.database.base is None or subject.database.replica_of:
        return
    if await subject.connection.scalar(question):
        yield subject.finding(
            "database.W016",
            "its server takes no writes: it is a replica, or was made read-only",
            f"set {subject.database.env_prefix}URL to the server that is written to",
        )


async def check_timeouts(subject: Subject) -> AsyncGenerator[Finding]:
    """Look for what would let one statement, or one transaction, hold a connection for ever."""
    if subject.database.dialect == "sqlite":
        return
    for id_, field, what in (
        ("database.W014", "statement_timeout", "a statement may run"),
        ("database.W015", "idle_in_transaction_timeout", "a transaction may do nothing"),
    ):
        if not getattr(subject.settings, field):
            yield subject.finding(
                id_,
                f"{field} is 0: {what} for ever, and hold a connection and its locks",
                f"set {subject.database.env_prefix}{field.upper()} to what the slowest may take",
            )
