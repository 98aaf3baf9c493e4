"""What clients and operators see when a database is overloaded, or away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dbkit import Database, Databases, install, session_from
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import until


class Service:
    """An application on two databases, called without a network."""

    def __init__(self, url: URL, **declared: Any) -> None:
        address = url.render_as_string(hide_password=False)
        self.primary = Database("primary", "postgresql", url=address, **declared)
        self.other = Database("other", "postgresql", url=address)
        self.databases = Databases(self.primary, self.other)
        self.app = FastAPI()
        install(self.app, self.databases)
        for database in self.databases.values():
            self.app.add_api_route(f"/{database.name}", route(database), methods=["GET"])
        transport = ASGITransport(self.app)
        self.client = AsyncClient(transport=transport, base_url="http://test")

    async def get(self, count: int, path: str = "/primary") -> list[Response]:
        """Send requests, all at once."""
        return await asyncio.gather(*(self.client.get(path) for _ in range(count)))


def route(database: Database) -> Any:
    """Make a route that asks a database for nothing much."""
    of_this_request: AsyncSession = session_from(database)

    async def ask(session: AsyncSession = of_this_request) -> int | None:
        return await session.scalar(text("select 1"))

    return ask


@pytest.fixture
async def service(database_url: URL, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    declared = getattr(request, "param", {})
    service = Service(database_url, pool_size=1, drain_timeout=0, **declared)
    async with service.databases.open(), service.client:
        yield service


def problems(responses: list[Response]) -> set[tuple[int, str, str]]:
    """Return what the bodies say, each once."""
    return {
        (each.status_code, each.json()["detail"], each.headers["Retry-After"]) for each in responses
    }


@pytest.mark.parametrize("service", [{"max_waiting": 1, "queue_target": 0}], indirect=True)
async def test_a_full_pool_is_503_and_logged_once(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    async with service.primary.session() as session:
        await session.execute(text("select 1"))
        first = asyncio.create_task(service.client.get("/primary"))
        await until(lambda: service.primary.pool.snapshot().waiting == 1)

        turned_away = await service.get(20)
        others = await service.get(20, "/other")
    assert problems(turned_away) == {(503, "primary: overloaded; try again later", "1")}
    assert {each.status_code for each in others} == {200}
    assert (await first).status_code == 200
    assert [each.message.partition(",")[0] for each in caplog.records] == ["primary: overloaded"]


@pytest.mark.parametrize("service", [{"pool_timeout": 0.05, "queue_target": 0}], indirect=True)
async def test_a_wait_in_vain_is_503(service: Service) -> None:
    async with service.primary.session() as session:
        await session.execute(text("select 1"))

        responses = await service.get(3)

    detail = "primary: no connection became free in time; try again later"
    assert problems(responses) == {(503, detail, "1")}


async def test_a_service_that_stops_is_503(service: Service) -> None:
    await service.primary.pool.drain(timeout=0)

    assert problems(await service.get(3)) == {(503, "primary: the service is stopping", "1")}


async def test_suspended_requests_wait_and_are_served_in_the_end(service: Service) -> None:
    service.primary.pool.suspend()
    waiting = [asyncio.create_task(service.client.get("/primary")) for _ in range(3)]
    await until(lambda: service.primary.pool.snapshot().waiting == len(waiting))

    service.primary.pool.resume()

    assert {(await each).status_code for each in waiting} == {200}


def test_openapi_declares_the_answers(database_url: URL) -> None:
    responses = Service(database_url).app.openapi()["paths"]["/primary"]["get"]["responses"]

    assert {"409", "503", "504"} <= responses.keys()
    assert list(responses["503"]["content"]) == ["application/problem+json"]
    assert list(responses["503"]["headers"]) == ["Retry-After"]
