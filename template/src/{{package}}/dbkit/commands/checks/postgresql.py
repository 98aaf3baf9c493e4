"""What a server of PostgreSQL, and what lies between us and it, should be like."""

from collections.abc import AsyncGenerator

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ...database.engine import undeclared
from .finding import Finding, Subject

SETTINGS = text("""
    SELECT current_setting('TimeZone'), current_setting('server_encoding'),
        current_setting('autovacuum'),
        (SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
            WHERE 'autovacuum_enabled=false' = ANY (reloptions)
                OR 'autovacuum_enabled=off' = ANY (reloptions))
""")


async def check_pooler(subject: Subject) -> AsyncGenerator[Finding]:
    """Look for a pooler, by the server processes that answer two connections."""
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


async def check_server(subject: Subject) -> AsyncGenerator[Finding]:
    """Look at the time zone, the encoding, and autovacuum of a PostgreSQL."""
    zone, encoding, autovacuum, without = (await subject.connection.execute(SETTINGS)).one()
    name = subject.settings.url.database
    if zone not in {"UTC", "Etc/UTC", "GMT"}:
        yield subject.finding(
            "database.W010",
            f"its time zone is {zone}: current_date and date_trunc() go by that",
            f"ALTER DATABASE {name} SET timezone = 'UTC'",
        )
    if encoding != "UTF8":
        yield subject.finding(
            "database.W011",
            f"its encoding is {encoding}: it refuses text that the service accepts",
            "make a new one with ENCODING 'UTF8' TEMPLATE template0, and move the data there",
        )
    if autovacuum != "on" or without:
        yield subject.finding(
            "database.W013",
            f"autovacuum is off{f' for {without}' if autovacuum == 'on' else ''}:"
            " dead rows stay, and queries become slower",
            "switch it on: autovacuum in postgresql.conf, autovacuum_enabled of a table",
        )


CHECKS = (check_pooler,)
DEPLOY_CHECKS = (check_server,)
