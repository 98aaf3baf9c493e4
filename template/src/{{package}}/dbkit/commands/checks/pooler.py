"""Whether what lies between us and the server is what was declared."""

from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncConnection

from ...database.engine import undeclared
from .finding import Finding, Subject


async def check_pooler(subject: Subject) -> AsyncGenerator[Finding]:
    """Look for a pooler, by the server processes that answer two connections."""
    if subject.database.dialect != "postgresql":
        return
    prefix = subject.database.env_prefix
    # As behind a pooler, whatever is declared: it works in either case.
    settings = subject.settings.model_copy(update={"pgbouncer": True, "server_settings": {}})
    engine = subject.database.connecting(settings)
    options = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with options.connect() as one, options.connect() as other:
        promised, first = await processes(one)
        _, second = await processes(other)
    if subject.settings.pgbouncer and promised == first:
        yield subject.finding(
            "database.W005",
            f"{prefix}PGBOUNCER is set, but the server itself answers",
            f"unset {prefix}PGBOUNCER: every statement takes a second round trip for it",
        )
    elif not subject.settings.pgbouncer and first == second:
        yield subject.finding("database.E004", undeclared(prefix))
    elif not subject.settings.pgbouncer and promised != first:
        yield subject.finding(
            "database.W006",
            "a pooler lies between, in session mode by the look of it",
            f"if it is in transaction mode, set {prefix}PGBOUNCER=true",
        )


async def processes(connection: AsyncConnection) -> tuple[int, int]:
    """Return the server process that a connection was given, and the one that answers now."""
    raw = await connection.get_raw_connection()
    driver_connection = raw.driver_connection
    assert driver_connection is not None  # noqa: S101 -- the connection is open
    answers = await driver_connection.fetchval("SELECT pg_backend_pid()")
    return driver_connection.get_server_pid(), answers
