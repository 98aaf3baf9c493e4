"""asyncpg behind PgBouncer in transaction mode, where nothing lasts beyond a transaction.

The next one may be on another connection to the server, in the middle of what others do. So
each statement is described and parsed anew, without a name: the one way that stayed right with
PgBouncer 1.18 and 1.24, inside transactions and outside, also after ALTER TABLE.
"""

from contextlib import nullcontext
from typing import Any

from sqlalchemy.exc import InvalidRequestError

from ..settings.server import TRACKED
from .session_state import Left

SHOWN = 200
"""Characters that are shown of a statement."""
OUTLASTS = """\
{name}: what this leaves on its connection would be found by others, behind PgBouncer: {statement}
  1. for a transaction alone: SET LOCAL, set_config(..., true), pg_advisory_xact_lock(),
     CREATE TEMP TABLE ... ON COMMIT DROP;
  2. for all, ALTER ROLE ... SET or ALTER DATABASE ... SET;
  3. or a database of this service that does not go through PgBouncer."""


def behind_pgbouncer(name: str, arguments: dict[str, Any], *, pooled: bool) -> dict[str, Any]:
    """Make asyncpg's arguments for a server into those for a PgBouncer before it.

    PgBouncer refuses startup parameters but for those that it tracks. The timeouts go with BEGIN
    instead, in one message; outside a transaction, only the driver's own `command_timeout` holds.
    """
    parameters = dict(arguments["server_settings"])
    tracked = {key: parameters.pop(key) for key in TRACKED & parameters.keys()}
    # `default_transaction_read_only` would be for the next transaction.
    begin = "".join(
        f" SET LOCAL {key.removeprefix('default_')} = {value};" for key, value in parameters.items()
    )

    connection: Any = arguments["connection_class"]

    class PooledConnection(connection):
        def leave(self, statement: str, left: Left) -> None:
            # It would be on a connection to the server that no reset of ours can find again.
            if not pooled:
                connection.leave(self, statement, left)
                return
            shown = " ".join(statement.split())[:SHOWN]
            raise InvalidRequestError(OUTLASTS.format(name=name, statement=shown))

        async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
            if query.startswith("BEGIN"):
                query = f"{query.rstrip('; ')};{begin}"
            status: str = await connection.execute(self, query, *args, timeout=timeout)
            return status

        async def _introspect_types(self, *arguments: Any) -> Any:
            # asyncpg sets `jit` off before and back after: here on the same connection.
            outside = nullcontext() if self.is_in_transaction() else self.transaction()
            async with outside:
                return await connection._introspect_types(self, *arguments)  # noqa: SLF001 -- ours

    return arguments | {
        "server_settings": tracked,
        "connection_class": PooledConnection,
        "statement_cache_size": 0,  # asyncpg's own; names are for statements that it keeps.
        "prepared_statement_cache_size": 0,  # SQLAlchemy's
    }
