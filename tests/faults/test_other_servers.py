"""MariaDB and PgBouncer: each fault costs what it must, and leaves nothing behind."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from waiting import until

from faults.behind_pgbouncer import PGBOUNCER_FAULTS, Pooled, pooled_site
from faults.load import Load, ours
from faults.on_mariadb import CONNECTIONS, MARIADB_FAULTS, Maria, mariadb_site
from faults.test_faults import assert_sound

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def maria(folder: Path) -> AsyncGenerator[Maria]:
    """Run a MariaDB, to be hurt."""
    async with mariadb_site(folder) as site:
        yield site


@pytest.fixture(scope="module")
async def pooled(folder: Path) -> AsyncGenerator[Pooled]:
    """Run a PgBouncer and its server, to be hurt."""
    async with pooled_site(folder / "pooled") as site:
        yield site


@pytest.mark.parametrize("name", MARIADB_FAULTS)
async def test_service_on_mariadb_recovers_and_leaks_nothing(maria: Maria, name: str) -> None:
    async with ours(maria.url) as contender:
        outcome = await Load(contender).run(lambda: MARIADB_FAULTS[name](maria))

        assert_sound(outcome)

        async def is_all_known() -> bool:
            ((count,),) = await asyncio.to_thread(maria.server.run, CONNECTIONS)
            return count <= contender.open()

        await until(is_all_known)


@pytest.mark.parametrize("name", PGBOUNCER_FAULTS)
async def test_service_behind_pgbouncer_recovers_and_leaks_nothing(
    pooled: Pooled, name: str
) -> None:
    async with ours(pooled.url, pgbouncer=True) as contender:
        outcome = await Load(contender).run(lambda: PGBOUNCER_FAULTS[name](pooled))

        assert_sound(outcome)
