"""Faults of a PgBouncer, and of the server behind it."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pooler import pgbouncer
from replication import Server
from running import free_port

from faults.faults import OUTAGE, SETUP, ask


@dataclass(frozen=True)
class Pooled:
    """A server, and the PgBouncer before it."""

    server: Server
    pooler: ExitStack
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        """The server's URL, by way of PgBouncer."""
        url = self.server.url("orders").set(port=self.port, host="127.0.0.1")
        return url.render_as_string(hide_password=False)

    def start_pooler(self) -> None:
        """Start PgBouncer. By default it would let 15 s pass after a login that failed."""
        self.pooler.enter_context(
            pgbouncer(
                self.server.url("orders"), pool_size=10, port=self.port, server_login_retry="1"
            )
        )


@asynccontextmanager
async def pooled_site(folder: Path) -> AsyncGenerator[Pooled]:
    """Run a server with the table of the load, and PgBouncer."""
    with Server(folder / "server") as server, ExitStack() as pooler:
        server.create_database("orders")
        await ask(server, *SETUP)
        site = Pooled(server, pooler)
        site.start_pooler()
        yield site


async def pooler_restarted(site: Pooled) -> None:
    """End PgBouncer, as a machine that fails does, and start it again."""
    site.pooler.close()
    await asyncio.sleep(OUTAGE)
    await asyncio.to_thread(site.start_pooler)


async def server_restarted(site: Pooled) -> None:
    """Restart the server, as an upgrade does."""
    await asyncio.to_thread(site.server.restart, signal.SIGINT)


PGBOUNCER_FAULTS: dict[str, Callable[[Pooled], Awaitable[None]]] = {
    "PgBouncer killed, and started again": pooler_restarted,
    "PgBouncer: fast restart of the server behind it": server_restarted,
}
