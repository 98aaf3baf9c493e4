"""asyncpg behind PgBouncer in transaction mode, where nothing lasts beyond a transaction.

The next one may be on another connection to the server, in the middle of what others do. So
each statement is described and parsed anew, without a name: the one way that stayed right with
PgBouncer 1.18 and 1.24, inside transactions and outside, also after ALTER TABLE.
"""

from contextlib import nullcontext
from importlib import import_module
from typing import Any


def behind_pgbouncer(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make asyncpg's arguments for a server into those for a PgBouncer before it.

    PgBouncer refuses all startup parameters but the name. The timeouts go with BEGIN instead,
    in one message; outside a transaction, only the driver's own `command_timeout` holds.
    """
    parameters = dict(arguments["server_settings"])
    name = parameters.pop("application_name")
    # `default_transaction_read_only` would be for the next transaction.
    begin = "".join(
        f" SET LOCAL {key.removeprefix('default_')} = {value};" for key, value in parameters.items()
    )

    connection: Any = import_module("asyncpg").Connection  # Not where all databases are others.

    class PooledConnection(connection):
        async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
            if query.startswith("BEGIN"):
                query += begin
            status: str = await connection.execute(self, query, *args, timeout=timeout)
            return status

        async def _introspect_types(self, *arguments: Any) -> Any:
            # asyncpg sets `jit` off before and back after: here on the same connection.
            outside = nullcontext() if self.is_in_transaction() else self.transaction()
            async with outside:
                return await connection._introspect_types(self, *arguments)  # noqa: SLF001 -- ours

    return arguments | {
        "server_settings": {"application_name": name},
        "connection_class": PooledConnection,
        "statement_cache_size": 0,  # asyncpg's own; names are for statements that it keeps.
        "prepared_statement_cache_size": 0,  # SQLAlchemy's
    }
