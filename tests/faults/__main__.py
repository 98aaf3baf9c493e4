"""Put the kit and a stock engine through each fault, and print the table of docs/operations.md.

    uv run python -m tests.faults [WORD ...]

All takes some seven minutes; with words, those faults whose names have them. Each fault meets each
engine on servers of its own.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TESTS = Path(__file__).parents[1]
KIT = TESTS.parent / "template" / "src" / "{{package}}"
sys.path[:0] = [*map(str, (TESTS, TESTS / "support", TESTS.parent / "tools", KIT))]

from faults.behind_pgbouncer import PGBOUNCER_FAULTS, pooled_site  # noqa: E402
from faults.faults import FAILOVERS, FAULTS, MEMORY, lost_primary, site  # noqa: E402
from faults.load import Load, Outcome, ours, stock  # noqa: E402
from faults.on_mariadb import MARIADB_FAULTS, mariadb_site  # noqa: E402

Sites = Callable[[Path], AbstractAsyncContextManager[Any]]
Faults = Mapping[str, Callable[[Any], Awaitable[None]]]

ALL: list[tuple[Sites, Faults, dict[str, Any]]] = [
    (site, FAULTS, {}),
    (site, FAILOVERS, {}),
    (mariadb_site, MARIADB_FAULTS, {}),
    (pooled_site, PGBOUNCER_FAULTS, {"pgbouncer": True}),
]
"""Where each fault happens, and what is declared of a database there."""


async def measure(sites: Sites, fault: Callable[[Any], Awaitable[None]], **declared: Any) -> str:
    """Put each engine through a fault; return what became of it, as cells of the table."""
    outcomes: list[Outcome] = []
    for contend in (stock, ours):
        with TemporaryDirectory(dir=MEMORY) as folder:
            async with sites(Path(folder)) as servers:
                url = servers.hosts if fault is lost_primary else servers.url
                async with contend(url, **declared) as contender:
                    outcomes.append(await Load(contender).run(lambda: fault(servers)))
    return " | ".join(map(shown, outcomes))


def shown(outcome: Outcome) -> str:
    """Write an outcome as cells of the table."""
    recovery = "not in 15 s" if outcome.is_wedged else f"{outcome.recovery:.1f} s"
    return f"{sum(outcome.failed.values())} of {outcome.asked} | {recovery} | {outcome.leaked}"


def main() -> None:
    """Print the table."""
    logging.disable()
    print("| fault | stock: failed | recovery | leaked | this kit: failed | recovery | leaked |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for sites, faults, declared in ALL:
        for name, fault in faults.items():
            if all(word in name for word in sys.argv[1:]):
                print(f"| {name} | {asyncio.run(measure(sites, fault, **declared))} |", flush=True)


if __name__ == "__main__":
    main()
