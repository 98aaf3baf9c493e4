"""A copy on PostgreSQL made what it was by deleting: 2 ms, where to copy anew takes 15.

Tables that migrations left empty are emptied, and sequences set back. Then no row may be new, or
missing, in any table and in the server's own of what there is: else the copy is of no more use.
"""

from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

PREPARE = """
SELECT set_config('row_security', 'off', false), set_config('lock_timeout', '1s', false),
CASE current_setting('is_superuser')
WHEN 'on' THEN set_config('session_replication_role', 'replica', false) END
"""
"""Rows that a policy hides are an error; where it is allowed, no trigger runs."""
RELATIONS = """
SELECT oid::regclass::text AS name, quote_literal(oid::regclass) AS literal,
relkind = 'S' AS is_sequence, relkind = 'r' AND pg_relation_size(oid) = 0
AND relnamespace <> 'pg_catalog'::regnamespace AS is_empty  -- never a row
FROM pg_class WHERE relkind IN ('r', 'm', 'S') AND relpersistence <> 't'
AND (relname = 'pg_db_role_setting' OR NOT relisshared) AND has_table_privilege(oid, 'SELECT')
"""
"""All that belongs to the database, but what the user may not read, as large objects."""
OTHERS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""  # No autovacuum.


class Cleaner:
    """Knows what a new copy was, and makes it so again."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._clean = self._count = ""

    async def look(self) -> None:
        """Note what the copy is; where not all can be read, it will never be clean."""
        with suppress(SQLAlchemyError):
            await self._look()

    async def _look(self) -> None:
        run = self.connection.exec_driver_sql
        await run(PREPARE)
        tables: list[str] = []
        deletes: list[str] = []
        set_back: list[str] = []
        for each in await run(RELATIONS):
            if each.is_sequence:
                state = f"format('setval(%L, %s, %L)', {each.literal}, last_value, is_called)"
                set_back.append((await run(f"SELECT {state} FROM {each.name}")).scalar_one())  # noqa: S608 -- quoted
                continue
            tables.append(f"SELECT xmin FROM ONLY {each.name}")  # noqa: S608 -- quoted
            if each.is_empty:
                deletes.append(f"d{len(deletes)} AS (DELETE FROM ONLY {each.name})")  # noqa: S608 -- quoted
        self._clean = f"SELECT {', '.join(set_back) or 1}"
        if deletes:
            self._clean = f"WITH {', '.join(deletes)} {self._clean}"
        now = (await run("SELECT pg_current_xact_id()::xid::text")).scalar_one()
        is_new = f"age(xmin) < age('{now}'::xid)"
        rows = " UNION ALL ".join(tables)
        count = f"SELECT count(*), count(*) FILTER (WHERE {is_new}) FROM ({rows}) AS rows"  # noqa: S608 -- quoted
        self._was = (await run(count)).one()
        self._count = count

    async def clean(self) -> bool:
        """Make the copy what it was; return whether it is."""
        if not self._count:
            return False
        try:
            await self.connection.exec_driver_sql(self._clean)
            return (await self.connection.exec_driver_sql(self._count)).one() == self._was
        except SQLAlchemyError:  # A table that is gone, a rule, a lock, a lost connection.
            return False

    async def others(self) -> int:
        """Count the other connections to the copy."""
        try:
            return (await self.connection.exec_driver_sql(OTHERS)).scalar_one()
        except SQLAlchemyError:  # The test has ended all connections; this copy is not used again.
            return 0
