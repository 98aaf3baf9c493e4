"""Who may see the page of the pools, and what it says."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbkit import Database, Databases, install, session_from
from dbkit.pool.usage import RouteUse
from dbkit.telemetry.sizing import Load
from dbkit.web.access import DEVELOPMENT
from dbkit.web.page import Pages
from dbkit.web.page.advice import advise_size
from dbkit.web.workers import Workers
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import until

TOKEN = "a token of some length"  # noqa: S105 -- of these tests
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Service:
    """An application with one database, called without a network."""

    def __init__(self, url: URL) -> None:
        address = url.render_as_string(hide_password=False)
        self.primary = Database("primary", "postgresql", url=address, pool_size=2)
        self.databases = Databases(self.primary)
        self.app = FastAPI()
        install(self.app, self.databases)
        of_this_request: AsyncSession = session_from(self.primary)

        async def secret(session: AsyncSession = of_this_request) -> None:
            await session.execute(text("select :secret"), {"secret": "s3cret"})

        self.app.add_api_route("/secret", secret, methods=["GET"])
        self.client = self.calling("127.0.0.1")

    def calling(self, host: str, *, client: str = "127.0.0.1") -> AsyncClient:
        """Make a client that calls the service by some name, from some address."""
        transport = ASGITransport(self.app, client=(client, 1))
        return AsyncClient(transport=transport, base_url=f"http://{host}")

    @property
    def pages(self) -> Pages:
        """The mounted page."""
        return next(each for each in self.app.router.routes if isinstance(each, Pages))


@pytest.fixture
async def service(
    database_url: URL, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    monkeypatch.delenv(DEVELOPMENT, raising=False)
    password = database_url.password or ""
    monkeypatch.setenv("PRIMARY_DATABASE_PASSWORD", password)
    monkeypatch.setenv("POOLS_TOKEN", getattr(request, "param", TOKEN))
    service = Service(database_url)
    async with service.databases.open(), service.client:
        yield service


closed = pytest.mark.parametrize("service", [""], indirect=True)
PATHS = ["/pools", "/pools/", "/pools/state", "/pools/events", "/pools/page.js"]


@closed
@pytest.mark.parametrize("path", PATHS)
async def test_without_a_token_there_is_no_page(service: Service, path: str) -> None:
    assert (await service.client.get(path)).status_code == 404


async def test_with_a_token_whoever_has_none_sees_nothing(service: Service) -> None:
    page = await service.client.get("/pools/")
    assert (page.status_code, "primary" in page.text, 'type="password"' in page.text) == (
        401,
        False,
        True,
    )
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"pools={TOKEN}"}):
        for path in ("state", "events", "page.js"):
            answer = await service.client.get(f"/pools/{path}", headers=headers)
            assert (answer.status_code, "primary" in answer.text) == (401, False)


async def test_the_form_leaves_a_cookie_that_opens_the_page_and_is_not_the_token(
    service: Service,
) -> None:
    assert (await service.client.post("/pools/login", data={"token": "wrong"})).status_code == 401
    entered = await service.client.post("/pools/login", data={"token": TOKEN})

    assert (entered.status_code, entered.headers["location"]) == (303, "./")
    cookie = entered.headers["set-cookie"]
    assert TOKEN not in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/pools"))
    assert "page.js" in (await service.client.get("/pools/")).text
    assert (await service.client.get("/pools/state")).status_code == 200


async def test_a_form_without_end_is_not_read(service: Service) -> None:
    answer = await service.client.post("/pools/login", content=b"token=" + b"x" * 100_000)

    assert answer.status_code == 401


@closed
async def test_under_runserver_it_is_open_on_this_machine_by_its_own_name_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVELOPMENT, "1")

    async def status(host: str, **options: str) -> int:
        async with service.calling(host, **options) as client:
            return (await client.get("/pools/state")).status_code

    assert [await status(host) for host in ("127.0.0.1", "localhost:8000", "[::1]")] == [200] * 3
    assert await status("rebound.example") == 403
    assert await status("localhost", client="10.0.0.7") == 403


async def test_a_token_counts_under_runserver_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVELOPMENT, "1")

    assert (await service.client.get("/pools/state")).status_code == 401


async def test_routes_of_the_service_come_first(service: Service) -> None:
    async def own() -> str:
        return "swimming"

    service.app.add_api_route("/pools/{name}", own, methods=["GET"])

    assert (await service.client.get("/pools/state", headers=BEARER)).json() == "swimming"


async def test_nothing_may_be_loaded_from_elsewhere_or_kept(service: Service) -> None:
    headers = (await service.client.get("/pools/", headers=BEARER)).headers

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["cache-control"] == "no-store"


async def state_of(service: Service) -> dict[str, Any]:
    return (await service.client.get("/pools/state", headers=BEARER)).json()


async def test_the_state_names_holders_and_routes_and_no_secret(service: Service) -> None:
    await service.client.get("/secret")
    async with service.primary.session() as session:
        await session.execute(text("select 's3cret'"))
        answer = await service.client.get("/pools/state", headers=BEARER)

    state = answer.json()["databases"]["primary"]
    assert (state["up"], state["pool"]["in_use"]) == (True, 1)
    assert [(each["route"], each["statements"]) for each in state["holders"]] == [(None, 1)]
    assert [(each["route"], each["checkouts"]) for each in state["routes"]] == [("GET /secret", 1)]
    assert state["load"] is None
    password = service.primary.settings.url.password
    assert password
    for hidden in ("s3cret", TOKEN, password):
        assert hidden not in answer.text


async def test_who_looks_does_not_fill_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dbkit.logs")
    for headers in (BEARER, {}):
        await service.client.get("/pools/state", headers=headers)
    assert caplog.messages == ["GET /pools/state 401"]


async def test_each_setting_says_where_it_comes_from(
    database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("PRIMARY_DATABASE_POOL_TIMEOUT=7\nPRIMARY_DATABASE_ECHO=true")
    monkeypatch.setenv("PRIMARY_DATABASE_ECHO", "false")
    monkeypatch.setenv("POOLS_TOKEN", TOKEN)
    service = Service(database_url)
    async with service.databases.open(), service.client:
        service.primary.pool.resize(2, 1)
        service.primary.pool.suspend()
        state = (await state_of(service))["databases"]["primary"]

    assert "The pool is suspended" in state["advice"][0]
    settings = state["settings"]
    shown = {each["name"].removeprefix("PRIMARY_DATABASE_"): each for each in settings}
    assert {
        name: (shown[name]["value"], shown[name]["origin"])
        for name in ("POOL_TIMEOUT", "ECHO", "MIN_READY", "POOL_SIZE", "MAX_OVERFLOW")
    } == {
        "POOL_TIMEOUT": ("7.0", ".env"),
        "ECHO": ("false", "environment"),
        "MIN_READY": ("1", "default"),
        "POOL_SIZE": ("2", "declared"),
        "MAX_OVERFLOW": ("1", "resize()"),
    }


async def test_settings_are_changed_while_the_service_runs(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dbkit")  # And after the test as before.
    changes = {
        "LOG_LEVEL": "debug",
        "PRIMARY_DATABASE_ECHO": "true",
        "PRIMARY_DATABASE_LEAK_AFTER": 0.1,
    }
    answer = await service.client.patch("/pools/settings", json=changes, headers=BEARER)

    assert answer.json()["workers"] == [os.getpid()]
    assert caplog.messages[:3] == [
        "LOG_LEVEL: changed from INFO to DEBUG until this process ends",
        "PRIMARY_DATABASE_ECHO: changed from False to True until this process ends",
        "PRIMARY_DATABASE_LEAK_AFTER: changed from 30 to 0.1 until this process ends",
    ]
    settings = (await state_of(service))["databases"]["primary"]["settings"]
    shown = {each["name"]: (each["value"], each["origin"]) for each in settings}
    assert shown["PRIMARY_DATABASE_ECHO"] == ("true", "at run time")
    async with service.primary.session() as session:
        await session.execute(text("select :seen"), {"seen": "by all"})
        await until(lambda: any("is held for longer than" in each for each in caplog.messages))
    assert any("('by all',)" in each for each in caplog.messages)
    natively = service.primary.pool.counters.native
    await service.primary.reader.scalar(text("select 1"))  # DEBUG of ours is not SQLAlchemy's.
    assert service.primary.pool.counters.native == natively + 1
    caplog.clear()
    await service.client.patch(
        "/pools/settings", json={"PRIMARY_DATABASE_ECHO": False}, headers=BEARER
    )
    await service.client.get("/secret")
    assert "select" not in caplog.text


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        ('{"LOG_LEVEL": "debug"}', {}, 401, "POOLS_TOKEN"),
        ('{"LOG_LEVEL": "debug"}', BEARER | {"Origin": "http://else.where"}, 403, "another site"),
        ('{"LOG_LEVEL": "loud"}', BEARER, 422, "LOG_LEVEL: 'loud' is none of CRITICAL"),
        ('{"PRIMARY_DATABASE_ECHO": "so"}', BEARER, 422, "'so' is not true or false. Log every"),
        ('{"PRIMARY_DATABASE_LEAK_AFTER": -1}', BEARER, 422, "is not a number from 0 to 86400"),
        ('{"PRIMARY_DATABASE_POOL_SIZE": 3}', BEARER, 422, "what can be changed is LOG_LEVEL, P"),
        ("[]", BEARER, 422, "what can be changed is LOG_LEVEL"),
        ("so", BEARER, 422, "Expecting value"),
    ],
)
async def test_what_cannot_be_changed_is_said(
    service: Service, body: str, headers: dict[str, str], status: int, said: str
) -> None:
    answer = await service.client.patch("/pools/settings", content=body, headers=headers)

    assert (answer.status_code, said in answer.text) == (status, True), answer.text


async def test_a_route_that_holds_for_nothing_is_named_before_a_larger_pool(
    service: Service,
) -> None:
    load = Load(rate=100, hold=0.1)
    use = RouteUse(checkouts=60, held=6.0, in_sql=0.06, statements=60, longest=0.2)
    other = RouteUse(checkouts=60, held=0.12, in_sql=0.12, statements=60, longest=0.01)

    advice = advise_size(
        service.primary, service.primary.pool, load, {"GET /a": use, "GET /b": other}
    )

    assert [each.partition(" ")[0] for each in advice] == ["GET", "100"]
    assert advice[0] == (
        "GET /a holds a connection for 100 ms, 1 % of it in SQL: end the session before what else"
        " it does, or begin it after; then a size of 1 is enough."
    )
    assert "raise PRIMARY_DATABASE_POOL_SIZE" in advice[1]


async def test_an_event_stream_begins_with_what_was_before_and_ends_with_the_service(
    service: Service,
) -> None:
    await state_of(service)
    stream = asyncio.create_task(service.client.get("/pools/events", headers=BEARER))
    await until(lambda: service.pages.viewers == 1)

    service.databases.stopping = True

    events = (await stream).text.strip().split("\n\n")
    assert [each.partition(":")[0] for each in events] == ["data"] * len(events)
    assert json.loads(events[0].removeprefix("data: "))["databases"].keys() == {"primary"}
    assert service.pages.viewers == 0


async def test_two_who_look_first_are_shown_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = Workers.ask, asyncio.Event()

    async def ask_late(self: Workers, question: str, argument: Any = None) -> Any:
        await asked.wait()  # As of workers that do not answer at once.
        return await ask(self, question, argument)

    monkeypatch.setattr(Workers, "ask", ask_late)
    looks = [asyncio.create_task(state_of(service)) for _ in range(2)]
    asyncio.get_running_loop().call_later(0.1, asked.set)
    one, other = await asyncio.gather(*looks)
    assert one["samples"] == other["samples"]


async def test_a_stream_that_nobody_reads_any_more_ends(service: Service) -> None:
    stream = asyncio.create_task(service.client.get("/pools/events", headers=BEARER))
    await until(lambda: service.pages.viewers == 1)

    stream.cancel()

    await until(lambda: service.pages.viewers == 0)
