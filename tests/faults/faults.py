"""The faults: each hurts what is behind an engine under load, and returns when that is cured."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pool_proxy import Proxy
from replication import Server
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

MEMORY = next(filter(Path.is_dir, [Path("/dev/shm")]), None)  # noqa: S108 -- ours in it is 0700
"""Where Linux has a tmpfs."""
OUTAGE = 1.5
"""Seconds for which something does not answer."""
TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = 'orders' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
SETUP = (
    "CREATE TABLE marks (at timestamptz DEFAULT now())",
    """CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'no space left on device' USING ERRCODE = 'disk_full'; END $$""",
    "CREATE TRIGGER disk_full BEFORE INSERT ON marks EXECUTE FUNCTION disk_full()",
    "ALTER TABLE marks DISABLE TRIGGER disk_full",
    "CREATE ROLE service LOGIN PASSWORD 's3cret'",
    "GRANT ALL ON marks TO service",
)
BACKENDS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = 'orders' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True)
class Site:
    """A primary, its replica, and the address by which services know the primary."""

    primary: Server
    replica: Server
    way: Proxy
    password: str = "s3cret"  # noqa: S105 -- of servers that live for a test

    @property
    def url(self) -> str:
        """The primary's URL, by way of the address, for the service's own user."""
        url = self.way.url.set(username="service", password=self.password)
        return url.render_as_string(hide_password=False)

    @property
    def hosts(self) -> str:
        """The URL that names both servers."""
        url = self.primary.url("orders").set(
            username="service", password=self.password, host=None, port=None
        )
        hosts = [f"127.0.0.1:{server.port}" for server in (self.primary, self.replica)]
        return url.update_query_dict({"host": hosts}).render_as_string(hide_password=False)


async def ask(server: Server, *statements: str) -> Any:
    """Ask a server past every engine under load; return what the last statement gives."""
    engine = create_async_engine(
        server.url("orders"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    value = None
    async with engine.connect() as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
            value = result.scalar() if result.returns_rows else None
    return value


@asynccontextmanager
async def site(folder: Path) -> AsyncGenerator[Site]:
    """Run a primary with the table and the user of the load, and a replica."""
    with Server(folder / "primary") as primary:
        primary.create_database("orders")
        await ask(primary, *SETUP)
        with primary.make_replica(folder / "replica") as replica:
            async with Proxy(primary.url("orders")) as way:
                yield Site(primary, replica, way)


async def immediate_restart(site: Site) -> None:
    """Crash the server, as a machine that fails does, and start it again."""
    await asyncio.to_thread(site.primary.restart, signal.SIGQUIT)


async def fast_restart(site: Site) -> None:
    """Restart the server, as an upgrade does."""
    await asyncio.to_thread(site.primary.restart, signal.SIGINT)


async def backends_terminated(site: Site) -> None:
    """End every connection, as an administrator may."""
    await ask(site.primary, TERMINATE)


async def frozen_server(site: Site) -> None:
    """Stop the server's processes; its sockets stay open, and are accepted."""
    site.primary.freeze()
    try:
        await asyncio.sleep(OUTAGE)
    finally:
        site.primary.thaw()


async def swallowed_packets(site: Site) -> None:
    """Have the link pass nothing on."""
    site.way.freeze()
    await asyncio.sleep(OUTAGE)
    site.way.thaw()


async def silent_failover(site: Site) -> None:
    """Forget the connections there are, without a word to either side."""
    site.way.forget()


async def refused_connections(site: Site) -> None:
    """Close the port, and every connection."""
    await close_for_a_while(site.way)


async def close_for_a_while(way: Proxy) -> None:
    """Close a port, and every connection, and open it again."""
    await way.refuse()
    way.cut()
    await asyncio.sleep(OUTAGE)
    await way.accept()


async def password_changed(site: Site) -> None:
    """Change the password on the server, end the connections, and change it back later."""
    await ask(site.primary, "ALTER ROLE service PASSWORD 'another'", TERMINATE)
    await asyncio.sleep(OUTAGE)
    await ask(site.primary, f"ALTER ROLE service PASSWORD '{site.password}'")


async def too_many_connections(site: Site) -> None:
    """Have the server refuse new connections (53300), after it ended those there were."""
    await ask(site.primary, "ALTER ROLE service CONNECTION LIMIT 0", TERMINATE)
    await asyncio.sleep(OUTAGE)
    await ask(site.primary, "ALTER ROLE service CONNECTION LIMIT -1")


async def disk_full(site: Site) -> None:
    """Have each write fail as on a full disk (53100)."""
    await ask(site.primary, "ALTER TABLE marks ENABLE TRIGGER disk_full")
    await asyncio.sleep(OUTAGE)
    await ask(site.primary, "ALTER TABLE marks DISABLE TRIGGER disk_full")


async def demoted_primary(site: Site) -> None:
    """Promote the replica; what is connected stays so, to a server that takes no more writes."""
    await ask(
        site.primary,
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    )
    await ask(site.replica, "SELECT pg_promote()")
    site.way.lead_to(site.replica.url("orders"))


async def lost_primary(site: Site) -> None:
    """Stop the primary for good, and promote the replica."""
    await asyncio.to_thread(site.primary.stop)
    await ask(site.replica, "SELECT pg_promote()")


FAULTS: dict[str, Callable[[Site], Awaitable[None]]] = {
    "all backends terminated": backends_terminated,
    "fast restart": fast_restart,
    "immediate restart (crash)": immediate_restart,
    "connections refused": refused_connections,
    "server frozen (SIGSTOP)": frozen_server,
    "link swallows packets": swallowed_packets,
    "silent failover, no RST": silent_failover,
    "password changed, and back": password_changed,
    "too many connections (53300)": too_many_connections,
    "disk full (53100)": disk_full,
}
"""Those after which the servers are what they were."""

FAILOVERS: dict[str, Callable[[Site], Awaitable[None]]] = {
    "replica promoted, primary read-only, connections kept": demoted_primary,
    "primary stopped, replica promoted": lost_primary,
}
"""Those that change the servers' roles; the second needs both hosts in the URL."""
