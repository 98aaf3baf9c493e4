"""One database stops: the others serve, and the service says which one is down."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from running import RunningService, free_port, manage, running, wait_until, write_and_read

DATA_FILE = """\
project_name: Order Service
databases:
  - {name: primary, engine: postgresql}
  - {name: analytics, engine: postgresql, pool_size: 2}
  - {name: audit, engine: sqlite}
  - {name: cache, engine: sqlite}
"""
NAMES = ["primary", "analytics", "audit", "cache"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, EmbeddedPostgres]]:
    """Run a server for each PostgreSQL database; a server that comes back has its old port."""
    folder = tmp_path_factory.mktemp("servers")
    servers = {
        name: EmbeddedPostgres(folder / name, settings={**TEST_SETTINGS, "port": str(free_port())})
        for name in ("primary", "analytics")
    }
    for name, server in servers.items():
        server.start().create_database(name)
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="module")
def variables(servers: dict[str, EmbeddedPostgres]) -> dict[str, str]:
    """Return the variables that tell the service where its servers are."""
    urls = {
        name: server.url(name).set(drivername="postgresql").render_as_string(hide_password=False)
        for name, server in servers.items()
    }
    return {"DATABASE_URL": urls["primary"], "ANALYTICS_DATABASE_URL": urls["analytics"]}


@pytest.fixture(scope="module")
def folder(
    template: Path, variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Render a service from a data file, and migrate its databases."""
    folder = tmp_path_factory.mktemp("outage") / "orders"
    data = folder.with_name("databases.yml")
    data.write_text(DATA_FILE)
    copier = Path(sys.executable).with_name("copier")
    command = [copier, "copy", "--quiet", "--defaults", "--data-file", data, template, folder]
    subprocess.run(command, check=True)

    done = manage(folder, "migrate", variables=variables)

    assert done.returncode == 0, done.stdout
    upgraded = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert upgraded == NAMES
    return folder


@pytest.fixture
def analytics(servers: dict[str, EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """Return the server of `analytics`; it runs again after the test."""
    yield servers["analytics"]
    servers["analytics"].start()


def health(status: str, analytics: str, *, required: bool = True) -> dict[str, object]:
    databases = {name: {"status": "up", "required": True} for name in NAMES}
    databases["analytics"] = {"status": analytics, "required": required}
    return {"status": status, "databases": databases}


def assert_only_analytics_is_missing(service: RunningService) -> None:
    write_and_read(service.client, ["primary", "audit", "cache"])
    assert service.status("/livez") == 200
    item = service.client.get("/items", params={"limit": 1}).json()["items"][0]
    refused = service.client.post("/analytics/notes", json={"item_id": item["id"], "text": "?"})
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["content-type"] == "application/problem+json"


def test_others_serve_while_one_is_down_and_it_comes_back(
    folder: Path, variables: dict[str, str], analytics: EmbeddedPostgres
) -> None:
    with running(folder, **variables) as service:
        write_and_read(service.client, NAMES)
        assert service.client.get("/readyz").json() == health("ready", "up")

        analytics.stop()

        wait_until(lambda: service.status("/readyz") == 503, "unready")
        assert service.client.get("/readyz").json() == health("not ready", "down")
        assert_only_analytics_is_missing(service)

        analytics.start()

        wait_until(lambda: service.status("/readyz") == 200, "ready again")
        assert service.client.get("/readyz").json() == health("ready", "up")
        write_and_read(service.client, NAMES)
        assert service.stop() == 0, service.log
        assert analytics.password not in service.log


def test_service_is_ready_without_a_database_that_it_does_not_require(
    folder: Path, variables: dict[str, str], analytics: EmbeddedPostgres
) -> None:
    optional = {**variables, "ANALYTICS_DATABASE_REQUIRED": "false"}
    down = health("ready", "down", required=False)
    with running(folder, **optional) as service:
        assert service.client.get("/readyz").json() == health("ready", "up", required=False)
        statuses: list[int | None] = []

        def is_seen() -> bool:
            response = service.client.get("/readyz")
            statuses.append(response.status_code)
            return response.json() == down

        analytics.stop()

        wait_until(is_seen, "analytics is down")
        assert set(statuses) == {200}
        assert_only_analytics_is_missing(service)
        assert service.stop() == 0, service.log


def test_service_starts_without_a_database_that_it_does_not_require(
    folder: Path, variables: dict[str, str], analytics: EmbeddedPostgres
) -> None:
    analytics.stop()
    optional = {**variables, "ANALYTICS_DATABASE_REQUIRED": "false"}

    with running(folder, **optional) as service:
        assert_only_analytics_is_missing(service)
        assert service.stop() == 0, service.log
