"""WebSockets, on a real server: one session for each message, and what is said of a longer one."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from dbkit import Database, Databases, context, install, session_from
from dbkit.pool.usage import NO_ROUTE
from dbkit.telemetry import leaks as detectors
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import until
from websockets.asyncio.client import ClientConnection, connect

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "declared", ["postgresql", "pgbouncer", "mariadb", "mysql", "sqlite"], indirect=True
    ),
]

INSERT = text("insert into visits values ('x')")


@dataclass
class Service:
    """An application on a port, and the tasks that its sockets left behind."""

    database: Database
    app: FastAPI = field(default_factory=FastAPI)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: list[asyncio.Task[Any]] = field(default_factory=list[asyncio.Task[Any]])
    requests: list[context.RequestContext] = field(default_factory=list[context.RequestContext])
    port: int = 0

    def connect(self, path: str) -> connect:
        """Open a WebSocket."""
        return connect(f"ws://127.0.0.1:{self.port}{path}")

    async def count(self) -> int:
        """Count the rows that were committed."""
        return int(await self.database.reader.scalar(text("select count(*) from visits")) or 0)


@pytest.fixture
async def service(declared: Database) -> AsyncGenerator[Service]:
    service = Service(declared)
    install(service.app, Databases(declared))
    config = uvicorn.Config(service.app, port=0, log_config=None)
    server = uvicorn.Server(config)
    async with declared.open():
        await declared.execute(text("create table visits (note char(1))"))
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        service.port = server.servers[0].sockets[0].getsockname()[1]
        yield service
        server.should_exit = True
        await serving


async def ask(socket: ClientConnection) -> str:
    """Send a message, and return the answer."""
    await socket.send("hello")
    return str(await socket.recv())


async def test_a_session_for_each_message_holds_nothing_between_them(service: Service) -> None:
    @service.app.websocket("/visits")
    async def visits(websocket: WebSocket) -> None:
        await websocket.accept()
        async for message in websocket.iter_text():
            async with service.database.session() as session:
                await session.execute(INSERT)
                (holder,) = service.database.pool.holders()
            await websocket.send_text(f"{message} {holder.route}")

    async with service.connect("/visits") as socket:
        for visit in range(1, 4):
            assert await ask(socket) == "hello WEBSOCKET /visits"
            assert service.database.pool.snapshot().in_use == 0
            assert await service.count() == visit  # It is committed before the answer.


async def test_a_session_of_the_whole_socket_is_named_with_the_right_way(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "LOOK", 0.05)
    monkeypatch.setattr(detectors, "IDLE_HOLD", 0.1)
    of_this_socket: AsyncSession = session_from(service.database)
    ended: list[str] = []

    @service.app.websocket("/visits")
    async def visits(websocket: WebSocket, session: AsyncSession = of_this_socket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.receive_text()
                await session.execute(INSERT)
                await websocket.send_text("noted")
        except WebSocketDisconnect:
            ended.append("left")
            raise

    async with service.connect("/visits") as socket:
        assert await ask(socket) == "noted"
        await until(lambda: "has nothing to do: WEBSOCKET /visits" in caplog.text)
        assert service.database.pool.snapshot().in_use == 1
    assert "async with shop.session()` for each message" in caplog.text

    await until(lambda: service.database.pool.snapshot().in_use == 0)
    assert ended == ["left"]
    assert await service.count() == 0  # Its client left by an exception, which rolled back.


async def test_what_a_socket_left_behind_is_not_part_of_it(service: Service) -> None:
    ids: list[str] = []

    async def save() -> None:
        async with service.database.session() as session:
            await session.execute(INSERT)
            (holder,) = service.database.pool.holders()
            assert holder.route is None
        ids.append(context.request_id())

    async def work() -> None:
        await service.go_on.wait()
        await asyncio.gather(save())

    @service.app.websocket("/visits")
    async def visits(websocket: WebSocket) -> None:
        service.left.append(asyncio.create_task(work()))
        if request := context.current():
            service.requests.append(request)
        await websocket.accept()
        await websocket.receive_text()

    async with service.connect("/visits") as socket:
        await socket.send("bye")
    await until(lambda: bool(service.requests) and service.requests[0].ended)
    service.go_on.set()
    await service.left[0]

    assert ids == [""]
    assert await service.count() == 1
    assert "WEBSOCKET /visits" not in service.database.pool.usage.routes
    assert NO_ROUTE in service.database.pool.usage.routes
