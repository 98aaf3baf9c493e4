"""States in which a service should be tested, of the real pool and of real connections."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import event
from sqlalchemy.util import await_only

from ..database.database import Database
from ..pool.connections import CLOSE_TIMEOUT
from .watch import Watch

EVENTS = ("do_execute", "do_executemany", "do_execute_no_params")


@asynccontextmanager
async def exhausted(
    database: Database, watch: Watch, pool_timeout: float = 0.1
) -> AsyncGenerator[None]:
    """Hold every connection of the pool; callers wait for `pool_timeout` seconds."""
    pool = database.pool
    settings = pool.settings
    async with AsyncExitStack() as stack:
        with watch.by_fixture():
            for _ in range(settings.max_connections):
                await stack.enter_async_context(database.engine.connect())
        pool.settings = settings.model_copy(update={"pool_timeout": pool_timeout})
        # A timer may run that was set for the other timeout.
        pool._background.cancel("queue")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- ours
        try:
            yield
        finally:
            pool.settings = settings


@asynccontextmanager
async def exhausted_replica(replica: Database, pool_timeout: float) -> AsyncGenerator[None]:
    """Give a replica a pool apart from its primary's, and hold its one connection."""
    size = {"pool_size": 1, "max_overflow": 0, "pool_timeout": pool_timeout}
    opened = replica.make(replica.settings.model_copy(update=size))
    with replica.replaced(replace(opened, probe=replica.probe)):
        try:
            async with opened.engine.connect():
                yield
        finally:
            await replica.pool.drain(CLOSE_TIMEOUT)


@asynccontextmanager
async def down(database: Database) -> AsyncGenerator[None]:
    """Have nothing listen at the database's address; what is open in the sandbox stays."""
    url = database.settings.url
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # And does not listen: connections are refused.
        if database.dialect == "sqlite":
            url = url.set(database=f"{url.database}.down/none")
        else:
            query = {key: url.query[key] for key in url.query if key not in {"host", "port"}}
            url = url.set(host="127.0.0.1", port=closed.getsockname()[1], query=query)
        opened = database.make(database.settings.model_copy(update={"url": url}))
        with database.replaced(opened):
            await opened.probe.ask()
            try:
                yield
            finally:
                await database.pool.drain(0)
                await opened.probe.stop()


@contextmanager
def slow(database: Database, seconds: float) -> Generator[None]:
    """Have each statement take `seconds` longer: on the server, whose timeouts apply."""
    engine = database.engine.sync_engine

    def wait(context: Any) -> None:
        if database.dialect == "sqlite":
            await_only(asyncio.sleep(seconds))
            return
        cursor = context.root_connection.connection.cursor()
        wait_on_server = "DO SLEEP" if database.dialect == "mysql" else "SELECT pg_sleep"
        cursor.execute(f"{wait_on_server}({float(seconds)})")
        cursor.close()

    def before(_cursor: Any, _statement: str, _parameters: Any, context: Any) -> None:
        wait(context)

    def before_no_params(_cursor: Any, _statement: str, context: Any) -> None:
        wait(context)

    listeners = zip(EVENTS, (before, before, before_no_params), strict=True)
    listening = [(engine, name, listener) for name, listener in listeners]
    for each in listening:
        event.listen(*each, insert=True)
    try:
        yield
    finally:
        for each in listening:
            event.remove(*each)
