"""Each fault costs what it must, and leaves nothing behind: by counts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pool_proxy import Proxy
from waiting import until

from faults.faults import (
    BACKENDS,
    FAULTS,
    OUTAGE,
    Site,
    ask,
    backends_terminated,
    close_for_a_while,
    demoted_primary,
    lost_primary,
    site,
)
from faults.load import Load, Outcome, ours

pytestmark = pytest.mark.anyio


def assert_sound(outcome: Outcome) -> None:
    """Nothing leaked, nothing wedged, and what failed was under way or met the fault."""
    assert not outcome.is_wedged, outcome
    assert outcome.leaked == 0, outcome
    assert outcome.failed["before"] <= outcome.in_flight, outcome
    assert sum(outcome.failed.values()) < outcome.asked, outcome


@pytest.mark.parametrize("name", FAULTS)
async def test_service_recovers_and_leaks_nothing(servers: Site, name: str) -> None:
    async with ours(servers.url) as contender:
        outcome = await Load(contender).run(lambda: FAULTS[name](servers))

        assert_sound(outcome)
        servers.way.remember()

        async def is_all_known() -> bool:
            return await ask(servers.primary, BACKENDS) <= contender.open()

        await until(is_all_known)


async def test_at_most_one_request_fails_for_each_connection_that_was_ended(
    servers: Site,
) -> None:
    async with ours(servers.url, queue_target=0, pool_size=4) as contender:
        outcome = await Load(contender, patience=30).run(lambda: backends_terminated(servers))

        assert sum(outcome.failed.values()) <= 4


async def test_a_promoted_replica_is_found_by_its_address(folder: Path) -> None:
    """Writes fail until the address leads there; what is connected elsewhere is then retired."""
    few: Any = {"queue_target": 0, "pool_size": 4}
    async with site(folder / "demoted") as servers, ours(servers.url, **few) as contender:
        outcome = await Load(contender, patience=30).run(lambda: demoted_primary(servers))

        assert_sound(outcome)
        assert "DBAPIError" in outcome.errors
        assert outcome.failed["after"] <= 4, outcome


async def test_a_promoted_replica_is_found_among_the_hosts(folder: Path) -> None:
    async with site(folder / "lost") as servers, ours(servers.hosts) as contender:
        outcome = await Load(contender).run(lambda: lost_primary(servers))

        assert_sound(outcome)


async def test_a_healthy_database_serves_beside_one_that_is_gone_and_one_that_is_frozen(
    servers: Site,
) -> None:
    url = servers.primary.url("orders").set(username="service", password=servers.password)

    async def frozen() -> None:
        still.freeze()
        await asyncio.sleep(OUTAGE)
        still.thaw()

    async with (
        Proxy(url) as away,
        Proxy(url) as still,
        ours(servers.url, queue_target=0) as healthy,
        ours(away.url.render_as_string(hide_password=False)) as first,
        ours(still.url.render_as_string(hide_password=False)) as second,
    ):
        outcomes = await asyncio.gather(
            Load(healthy, patience=30).run(lambda: asyncio.sleep(OUTAGE)),
            Load(first).run(lambda: close_for_a_while(away)),
            Load(second).run(frozen),
        )

    assert sum(outcomes[0].failed.values()) == 0, outcomes[0]
    for outcome in outcomes[1:]:
        assert_sound(outcome)
