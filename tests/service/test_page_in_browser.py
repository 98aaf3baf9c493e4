"""The page of the pools as a person sees it: in Chromium, beside a service with planted faults."""

import socket
from collections.abc import Generator

import pytest
from browser import chromium
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, expect
from rendering import Renderer
from running import RunningService, copy_of, running, wait_until

FAULTS = """

import asyncio
import time

from sqlalchemy import text

from .databases.primary import PrimarySession, primary
from .items.models import Item

kept: list[object] = []


@app.get("/leak")
async def leak() -> None:
    session = primary.session()
    kept.append(session)
    await (await session.__aenter__()).execute(text("select 's3cret'"))


@app.get("/block")
async def block() -> None:
    time.sleep(1)


@app.get("/one-by-one")
async def one_by_one() -> None:
    for number in range(6):
        await primary.reader.get(Item, number)


@app.get("/<b>partner</b>/{name}")
async def wait_for_a_partner(name: str, session: PrimarySession) -> None:
    await session.execute(text("select 1"))
    await asyncio.sleep(3600)
"""


@pytest.fixture(scope="module")
def service(
    render: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[RunningService]:
    databases = [
        {"name": "primary", "engine": "postgresql", "pool_size": 2},
        {"name": "audit", "engine": "sqlite"},
    ]
    rendered = render(project_name="Orders", databases=databases)
    folder = copy_of(rendered, tmp_path_factory.mktemp("page"))
    main = folder / "src" / "orders" / "main.py"
    main.write_text(main.read_text() + FAULTS)
    never = {"DATABASE_IDLE_IN_TRANSACTION_TIMEOUT": "0"}  # Else the server ends the leak.
    with running(folder, DATABASE_DRAIN_TIMEOUT="0", **never) as service:
        yield service


@pytest.fixture(scope="module")
def leaked(service: RunningService) -> None:
    """Have one connection of the service never returned."""
    assert service.client.get("/leak").status_code == 200


@pytest.fixture(scope="module")
def browser() -> Generator[BrowserContext]:
    with chromium() as context:
        yield context


@pytest.fixture
def page(browser: BrowserContext, service: RunningService) -> Generator[Page]:
    """Open the page; whatever goes wrong in it, or leads elsewhere, fails the test."""
    page = browser.new_page()
    wrong: list[str] = []
    address = str(service.client.base_url)

    def note_message(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    def note_request(request: Request) -> None:
        if not request.url.startswith((address, "data:")):
            wrong.append(request.url)

    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", note_message)
    page.on("request", note_request)
    page.goto(f"{address}/pools")
    yield page
    page.close()
    assert [each for each in wrong if "net::ERR" not in each] == []  # Of a service that stopped.


def test_each_database_has_a_card_with_its_numbers(page: Page) -> None:
    expect(page.locator("section h2")).to_contain_text(["primary up, 2 at most", "audit up"])
    expect(page.locator("section").first.locator(".idle dd")).to_have_text("1")
    expect(page.get_by_role("status")).to_contain_text("process")
    assert page.locator("section .pool .idle").first.get_attribute("d")
    expect(page.locator(".gaps span").first).to_have_attribute("title", "nobody looked")


def test_runserver_names_what_is_asked_one_by_one(service: RunningService) -> None:
    assert service.client.get("/one-by-one").status_code == 200

    said = "primary: GET /one-by-one runs the same statement 6 times with different values, at src/"
    wait_until(lambda: said in service.log, "it is named")


def test_settings_say_where_they_come_from_and_hide_the_password(page: Page) -> None:
    card = page.locator("section").first
    expect(card.get_by_text("DATABASE_POOL_SIZE")).to_be_hidden()

    card.get_by_text("Settings in force").click()

    row = card.locator("details tr")
    expect(row.filter(has_text="DATABASE_POOL_SIZE")).to_contain_text("declared")
    expect(row.filter(has_text="DATABASE_DRAIN_TIMEOUT")).to_contain_text("environment")
    expect(row.filter(has_text="DATABASE_URLpostgresql")).to_contain_text("postgres:***@127.0.0.1")


@pytest.mark.usefixtures("leaked")
def test_an_exhausted_pool_names_who_holds_it_by_route_and_line(
    page: Page, service: RunningService
) -> None:
    source = (service.folder / "src" / "orders" / "main.py").read_text().splitlines()
    line = 1 + next(number for number, each in enumerate(source) if "sleep(3600)" in each)
    card = page.locator("section").first
    address = service.client.base_url
    with socket.create_connection((address.host, address.port)) as waiting:
        waiting.sendall(b"GET /<b>partner</b>/ACME HTTP/1.1\r\nHost: localhost\r\n\r\n")
        expect(card.locator(".used dd")).to_have_text("2")

        holders = card.locator(".holders tbody tr")
        expect(holders).to_have_count(2)
        expect(holders.nth(0)).to_contain_text("GET /leak ended without returning it")
        expect(holders.nth(0)).to_contain_text("src/orders/main.py:")
        expect(holders.nth(1)).to_contain_text("GET /<b>partner</b>/{name}")
        expect(holders.nth(1)).to_contain_text(f"src/orders/main.py:{line}")
        expect(card.locator(".advice")).to_contain_text("waits for something else")
        assert service.client.get("/items/1").status_code == 503
        lefts = page.evaluate(
            "[...document.querySelectorAll('.holders meter')].map(each => each.offsetLeft)"
        )
        assert (len(lefts), len(set(lefts))) == (2, 1)
        content = page.content()
        assert "s3cret" not in content
        assert "ACME" not in content
        assert page.locator("section b").count() == 0


def test_what_blocked_the_event_loop_is_named_once_it_has(
    page: Page, service: RunningService
) -> None:
    loop = page.get_by_label("event loop")
    expect(page.locator("section h2")).to_contain_text(["primary up", "audit up"])
    expect(loop).to_be_hidden()

    assert service.client.get("/block").status_code == 200

    expect(loop.locator("tbody tr")).to_contain_text("GET /block")
    expect(loop.locator("code").first).to_contain_text("in block")


@pytest.mark.usefixtures("leaked")
def test_what_is_paused_stays_as_it_is(page: Page) -> None:
    expect(page.locator(".holders tbody tr")).not_to_have_count(0)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_have_text("paused")
    row = page.locator(".holders tbody tr").first.element_handle()

    with page.expect_event("console", lambda each: each.text == "two events later"):
        page.evaluate(
            """() => {
                const source = new EventSource("events");
                let seen = 0;
                source.onmessage = () => {
                    if (++seen === 2) { source.close(); console.log("two events later"); }
                };
            }"""
        )
    assert row is not None
    assert row.evaluate("row => row.isConnected")


@pytest.mark.usefixtures("leaked")
def test_a_phone_need_not_scroll_sideways(page: Page) -> None:
    expect(page.locator(".holders tbody tr")).not_to_have_count(0)
    page.set_viewport_size({"width": 360, "height": 740})

    width = page.evaluate("document.documentElement.scrollWidth")

    assert width <= 360
    tops = page.evaluate(
        "[...document.querySelector('.numbers').children].map(each => each.offsetTop)"
    )
    assert len(set(tops)) == 2  # two rows of two
    assert page.locator(".holders thead").first.is_hidden()


def test_the_service_stops_while_somebody_looks(page: Page, service: RunningService) -> None:
    """The last of the tests."""
    expect(page.locator("section")).to_have_count(2)

    assert service.stop() == 0, service.log
    expect(page.get_by_role("status")).to_contain_text("no connection to the service")
    wait_until(lambda: service.process.poll() is not None, "it ended")
