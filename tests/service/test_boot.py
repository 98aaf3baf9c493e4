"""Each variant runs, on real databases, in the environment of this repository."""

from collections.abc import Iterator

import pytest
from rendering import Renderer
from running import (
    RunningService,
    copy_of,
    is_alive,
    manage,
    running,
    wait_until,
    write_and_read,
)
from variants import VARIANTS, Variant


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> Variant:
    """Return the variant that runs."""
    return request.param


@pytest.fixture(scope="module")
def service(
    variant: Variant,
    render: Renderer,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[RunningService]:
    """Run a variant, for all its tests; it is ready."""
    folder = copy_of(render(**variant.answers), tmp_path_factory.mktemp("boot"))
    variables = variant.variables(request)
    if variables:  # runserver migrates what has no URL.
        done = manage(folder, "migrate", variables=variables)
        assert done.returncode == 0, done.stdout
    with running(folder, **variables) as service:
        yield service


# A variant is rendered, copied and started once: all its tests go to one worker.
pytestmark = pytest.mark.parametrize(
    "variant",
    [pytest.param(each, id=each.name) for each in VARIANTS],
    indirect=True,
    scope="module",
)


def test_writes_and_reads_in_every_database(variant: Variant, service: RunningService) -> None:
    write_and_read(service.client, variant.names_of_databases)


def test_says_how_every_database_is(variant: Variant, service: RunningService) -> None:
    assert service.client.get("/readyz").json() == {
        "status": "ready",
        "databases": {
            **{name: {"status": "up", "required": True} for name in variant.names_of_databases},
            **{name: {"status": "up", "required": False} for name in variant.names_of_replicas},
        },
    }


def test_describes_its_routes(variant: Variant, service: RunningService) -> None:
    document = service.client.get("/openapi.json").json()

    assert document["info"]["title"] == variant.answers.get("project_name", "My Service")
    others = variant.names_of_databases[1:]
    assert set(document["paths"]) == (
        {"/livez", "/readyz", "/startupz", "/items", "/items/{item_id}"}
        | {f"/{name}/notes" for name in others}
        | {f"/{name}/notes/{{note_id}}" for name in others}
    )
    assert service.client.get("/docs").status_code == 200


def test_stops_at_sigterm_and_leaves_nothing_running(
    variant: Variant, service: RunningService
) -> None:
    """The last of a variant's tests."""
    servers = service.servers
    embedded = [variant.names_on("postgresql"), variant.databases[0]["engine"] == "mysql"]
    assert len(servers) == sum(map(bool, embedded))

    assert service.stop() == 0, service.log

    assert "Traceback" not in service.log
    for server in servers:
        wait_until(lambda server=server: not is_alive(server), "the embedded server has stopped")
