"""Health: what a platform asks of a service, and what it must not be told."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import KIT
from dbkit import Database, Databases, install
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from dbkit.database.probe import Probe
from dbkit.database.signals import notice_sigterm
from dbkit.errors import Unreachable
from dbkit.pool import breaker
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, HTTPError, Response
from pool_proxy import Proxy
from running import free_port
from small_service import SERVICE
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from waiting import until


@asynccontextmanager
async def serve(*databases: Database) -> AsyncGenerator[AsyncClient]:
    """Run an application on some databases."""
    group = Databases(*databases)
    app = FastAPI()
    install(app, group)
    async with (
        group.open(),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


def declare(url: URL, name: str = "orders", **declared: Any) -> Database:
    text_ = url.render_as_string(hide_password=False)
    return Database(name, "postgresql", url=text_, connect_timeout=0.2, **declared)


DOWN = URL.create("postgresql", "u", "s3cret", "127.0.0.1", 1, "n")


async def answers(client: AsyncClient) -> dict[str, int]:
    paths = ("/livez", "/readyz", "/startupz")
    return {path: (await client.get(path)).status_code for path in paths}


async def probes_of(connection: Any) -> int:
    """Count the connections that the probe holds: those which are not of the pool."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(await connection.scalar(text(query)))


async def test_a_service_whose_databases_answer_is_ready(database_url: URL) -> None:
    async with serve(declare(database_url)) as client:
        response = await client.get("/readyz")

        assert response.status_code == 200
        assert response.json() == {
            "status": "ready",
            "databases": {"orders": {"status": "up", "required": True}},
        }
        assert await answers(client) == {"/livez": 200, "/readyz": 200, "/startupz": 200}
        assert (await client.get("/livez")).json() == {"status": "alive"}


async def test_a_busy_pool_is_not_down(database_url: URL) -> None:
    database = declare(database_url, pool_size=1)
    async with serve(database) as client, database.session() as session:
        await session.execute(text("SELECT 1"))
        await database.probe.ask()

        assert database.pool.checkedout() == 1
        assert (await answers(client))["/readyz"] == 200


async def test_a_database_that_is_down_is_named_and_the_process_lives(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(declare(database_url), declare(DOWN, "analytics", min_ready=0)) as client:
        response = await client.get("/readyz")

        assert response.status_code == 503
        assert response.json() == {
            "status": "not ready",
            "databases": {
                "orders": {"status": "up", "required": True},
                "analytics": {"status": "down", "required": True},
            },
        }
        assert await answers(client) == {"/livez": 200, "/readyz": 503, "/startupz": 503}
    assert (
        "analytics: down: cannot connect to postgresql://u:***@127.0.0.1:1/n:"
        " nothing listens there; check ANALYTICS_DATABASE_URL"
    ) in caplog.messages
    assert "s3cret" not in caplog.text


async def test_an_optional_database_does_not_matter(database_url: URL) -> None:
    optional = declare(DOWN, "analytics", required=False, min_ready=0)
    async with serve(declare(database_url), optional) as client:
        response = await client.get("/readyz")

        assert response.status_code == 200
        assert response.json()["databases"]["analytics"] == {"status": "down", "required": False}
        assert (await answers(client))["/startupz"] == 200


@pytest.fixture
def mortal_postgres(fast_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Run a server that a test may stop, and start again on the same port."""
    settings = {**TEST_SETTINGS, "port": str(free_port())}
    with EmbeddedPostgres(fast_directory / "health", settings=settings) as server:
        server.create_database("orders")
        yield server


async def test_what_comes_back_is_ready_again_and_started_stays_started(
    mortal_postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    database = declare(mortal_postgres.url("orders"))
    async with serve(database) as client:
        await asyncio.to_thread(mortal_postgres.stop)
        await database.probe.ask()
        await database.probe.ask()
        assert await answers(client) == {"/livez": 200, "/readyz": 503, "/startupz": 200}

        await asyncio.to_thread(mortal_postgres.start)
        await database.probe.ask()
        assert await answers(client) == {"/livez": 200, "/readyz": 200, "/startupz": 200}
    said = [each for each in caplog.messages if each.startswith("orders: down")]
    assert len(said) == 1
    assert any(each.startswith("orders: up again after ") for each in caplog.messages)


async def test_the_pool_is_tried_again_when_the_probe_has_an_answer(
    database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_DELAY", 3600)  # By itself, it would not in this test.
    async with Proxy(database_url) as way, declare(way.url).open() as database:
        await database.engine.dispose()  # Also the one that comes after it.
        await way.refuse()
        way.cut()

        async def is_given_up() -> bool:
            with suppress(DBAPIError, Unreachable):
                await database.reader.scalar(text("SELECT 1"))
            return database.pool.snapshot().breaker == "open"

        await until(is_given_up)

        await way.accept()

        await until(lambda: database.pool.snapshot().breaker == "closed")
        assert await database.reader.scalar(text("SELECT 1")) == 1


async def test_the_probe_holds_one_connection_and_leaves_none(database_url: URL) -> None:
    watcher = declare(database_url, "watcher", pool_size=1)
    database = declare(database_url, min_ready=0)
    async with watcher.open(), watcher.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        before = await probes_of(connection)
        async with database.open():
            for _ in range(5):
                await database.probe.ask()
            assert await probes_of(connection) == before + 1
        async with asyncio.timeout(30):
            while await probes_of(connection) != before:  # noqa: ASYNC110 -- the server has no event
                await asyncio.sleep(0.01)


async def test_a_terminated_probe_connects_again(database_url: URL) -> None:
    database = declare(database_url)
    async with database.open():
        async with database.session() as session:
            await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        await database.probe.ask()
        await database.probe.ask()

        assert database.probe.is_up


async def test_a_server_that_says_nothing_blocks_no_route() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = DOWN.set(port=silent.getsockname()[1])
        database = declare(url, min_ready=0)
        async with asyncio.timeout(30), serve(database) as client:
            asking = asyncio.create_task(database.probe.ask())
            assert await answers(client) == {"/livez": 200, "/readyz": 503, "/startupz": 503}
            await asking


async def test_a_backend_that_freezes_is_left_for_another_and_blocks_no_route(
    database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = declare(database_url, min_ready=0)
    async with asyncio.timeout(30), serve(database) as client:
        await database.probe.stop()
        monkeypatch.setattr("dbkit.database.probe.TIMEOUT", 0.2)
        probe = Probe("orders", database.engine)
        await probe.ask()
        async with database.engine.connect() as connection:
            backends = await connection.scalars(
                text(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid()"
                )
            )
            frozen = list(backends)
        for process in frozen:
            os.kill(process, signal.SIGSTOP)
        try:
            asking = asyncio.create_task(probe.ask())
            await answers(client)
            await asking
            assert probe.is_up  # The server gave it another.
        finally:
            for process in frozen:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)
        await probe.ask()
        assert probe.is_up
        await probe.stop()


RUN = """
import sys
import uvicorn
@app.get("/hello")
async def hello():
    return "hello"
uvicorn.run(app, port=int(sys.argv[1]))
"""


class Served:
    """A service in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, client: AsyncClient) -> None:
        self.process = process
        self.client = client

    async def until(self, path: str, status: int) -> Response:
        """Ask until the answer has that status."""
        async with asyncio.timeout(30):
            while True:
                with suppress(HTTPError):
                    response = await self.client.get(path)
                    if response.status_code == status:
                        return response
                await asyncio.sleep(0.02)


@asynccontextmanager
async def served(folder: Path, delay: str) -> AsyncGenerator[Served]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVICE + RUN, str(port)),
        env={**os.environ, "PYTHONPATH": str(KIT), "SHUTDOWN_DELAY": delay},
        cwd=folder,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield Served(process, client)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_from_sigterm_on_it_is_not_ready_but_serves(tmp_path: Path) -> None:
    async with served(tmp_path, delay="3") as service:
        await service.until("/readyz", 200)
        service.process.send_signal(signal.SIGTERM)

        response = await service.until("/readyz", 503)

        assert response.json()["status"] == "stopping"
        assert response.json()["databases"]["orders"]["status"] == "up"
        assert (await service.client.get("/livez")).status_code == 200
        assert (await service.client.get("/hello")).json() == "hello"
        async with asyncio.timeout(30):
            # uvicorn ends by the signal that it was sent, once it has stopped.
            assert await service.process.wait() in {0, -signal.SIGTERM}


async def test_it_serves_newcomers_until_a_second_sigterm(tmp_path: Path) -> None:
    async with served(tmp_path, delay="3600") as service:
        await service.until("/readyz", 200)
        service.process.send_signal(signal.SIGTERM)
        await service.until("/readyz", 503)
        for _ in range(50):  # New connections: the port stays open.
            async with AsyncClient(base_url=service.client.base_url) as newcomer:
                assert (await newcomer.get("/hello")).status_code == 200
        service.process.send_signal(signal.SIGTERM)

        async with asyncio.timeout(30):
            assert await service.process.wait() in {0, -signal.SIGTERM}


async def test_a_wrong_delay_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    async with served(tmp_path, delay="soon") as service:
        assert service.process.stderr is not None
        async with asyncio.timeout(30):
            said = (await service.process.stderr.read()).decode()
            assert await service.process.wait() != 0

    assert "SHUTDOWN_DELAY: 'soon' is not a number from 0 to 3600. Seconds to keep serving" in said


async def test_services_in_one_process_stop_together_and_put_the_servers_handler_back() -> None:
    came: list[int] = []
    stopped: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with (
            notice_sigterm(lambda: stopped.append("first"), 3600),
            notice_sigterm(lambda: stopped.append("second"), 0),
        ):
            signal.raise_signal(signal.SIGTERM)
            assert stopped == ["first", "second"]
            await asyncio.sleep(0)
            assert came == []  # After the longest delay, which the first one asks for.
            signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
