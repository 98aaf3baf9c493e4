"""Faults of a MariaDB."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mariadb import MariaDB
from pool_proxy import Proxy

from faults.faults import OUTAGE, close_for_a_while

SETUP = (
    "CREATE DATABASE orders",
    "CREATE TABLE orders.marks (at timestamp DEFAULT now())",
    "CREATE USER service@'%' IDENTIFIED BY 's3cret'",
    "GRANT ALL ON orders.* TO service@'%'",
)
CONNECTIONS = "SELECT count(*) FROM information_schema.processlist WHERE user = 'service'"


@dataclass(frozen=True)
class Maria:
    """A server, and the address by which services know it."""

    server: MariaDB
    way: Proxy

    @property
    def url(self) -> str:
        """Its URL, by way of the address, for the service's own user."""
        url = self.way.url.set(drivername="mysql+asyncmy", username="service", password="s3cret")  # noqa: S106 -- of a server that lives for a test
        return url.render_as_string(hide_password=False)


@asynccontextmanager
async def mariadb_site(folder: Path) -> AsyncGenerator[Maria]:
    """Run a server with the table and the user of the load."""
    with ExitStack() as stack:  # It is waited for in a loop of its own, which needs a thread.
        server = await asyncio.to_thread(stack.enter_context, MariaDB(folder))
        await asyncio.to_thread(server.run, *SETUP)
        async with Proxy(server.url("orders")) as way:
            yield Maria(server, way)


async def restart(site: Maria) -> None:
    """Restart the server, as an upgrade does."""
    await asyncio.to_thread(site.server.restart)


async def connections_killed(site: Maria) -> None:
    """End every connection, as an administrator may."""
    await asyncio.to_thread(site.server.run, "KILL USER service")


async def frozen_server(site: Maria) -> None:
    """Stop the server's process; its sockets stay open, and are accepted."""
    process = site.server.process
    os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(OUTAGE)
    finally:
        os.kill(process, signal.SIGCONT)


async def refused_connections(site: Maria) -> None:
    """Close the port, and every connection."""
    await close_for_a_while(site.way)


MARIADB_FAULTS: dict[str, Callable[[Maria], Awaitable[None]]] = {
    "MariaDB: all connections killed": connections_killed,
    "MariaDB: restart": restart,
    "MariaDB: connections refused": refused_connections,
    "MariaDB: server frozen (SIGSTOP)": frozen_server,
}
