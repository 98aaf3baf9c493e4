"""The pages of the API's documentation in Chromium, where no name of another machine resolves."""

from collections.abc import Generator

import pytest
from browser import chromium
from playwright.sync_api import BrowserContext, Page, Request, expect
from rendering import Renderer
from running import RunningService, copy_of, running

NOBODY = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
REDOC = "https://cdn.redoc.ly/redoc/logo"  # Its maker's logo, which it does without.
MOUNTED = """

mounted = FastAPI(title="Mounted")
app.mount("/v1/inside", mounted)
"""
ROOT = """

@app.get("/")
async def root() -> str:
    return "mine"
"""


@pytest.fixture(scope="module")
def browser() -> Generator[BrowserContext]:
    with chromium(NOBODY, viewport={"width": 1280, "height": 800}) as context:
        yield context


@pytest.fixture(scope="module")
def service(
    render: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[RunningService]:
    rendered = render(project_name="Orders", databases=[{"name": "primary", "engine": "sqlite"}])
    folder = copy_of(rendered, tmp_path_factory.mktemp("docs"))
    main = folder / "src" / "orders" / "main.py"
    main.write_text(main.read_text() + MOUNTED)
    with running(folder) as service:
        yield service


@pytest.fixture
def page(browser: BrowserContext, service: RunningService) -> Generator[Page]:
    """Open a page; whatever it asks of another machine fails the test."""
    page = browser.new_page()
    address = str(service.client.base_url)
    elsewhere: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith((address, "data:", "blob:", REDOC)):
            elsewhere.append(request.url)

    page.on("request", note)
    yield page
    page.close()
    assert elsewhere == []


@pytest.mark.programs
def test_the_root_leads_to_pages_that_work(page: Page, service: RunningService) -> None:
    page.goto(f"{service.client.base_url}/")

    assert page.url == f"{service.client.base_url}/docs"
    expect(page).to_have_title("Orders - Swagger UI")
    page.locator("#operations-items-create_item_items_post").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("201")
    assert page.locator("link[rel='shortcut icon']").get_attribute("href") == "_docs/favicon.png"


def test_a_phone_need_not_scroll_sideways(page: Page, service: RunningService) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{service.client.base_url}/docs")

    expect(page.locator(".opblock").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_mounted_application_has_its_pages(page: Page, service: RunningService) -> None:
    page.goto(f"{service.client.base_url}/v1/inside/docs")

    expect(page.get_by_role("heading", name="Mounted")).to_be_visible()


def test_redoc_has_its_script(page: Page, service: RunningService) -> None:
    page.goto(f"{service.client.base_url}/redoc")

    expect(page.get_by_role("heading", name="Orders").first).to_be_visible()


def test_a_root_of_the_owner_and_production_are_left_alone(
    render: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rendered = render(project_name="Orders", databases=[{"name": "primary", "engine": "sqlite"}])
    folder = copy_of(rendered, tmp_path_factory.mktemp("own"))
    main = folder / "src" / "orders" / "main.py"
    main.write_text(main.read_text() + ROOT)
    with running(folder) as service:
        assert service.client.get("/").json() == "mine"
        assert service.client.get("/nowhere").status_code == 404
