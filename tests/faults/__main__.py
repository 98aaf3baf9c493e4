"""Put the kit and a stock engine through each fault, and print the table of docs/operations.md.

    uv run python -m tests.faults

It takes some five minutes. Each fault meets each engine on servers of its own.
"""

import asyncio
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "template" / "src" / "{{package}}")]

from faults.faults import FAILOVERS, FAULTS, MEMORY, lost_primary, site  # noqa: E402
from faults.load import Load, Outcome, ours, stock  # noqa: E402


async def measure(name: str) -> list[Outcome]:
    """Put each engine through a fault."""
    fault = (FAULTS | FAILOVERS)[name]
    outcomes: list[Outcome] = []
    for contend in (stock, ours):
        with TemporaryDirectory(dir=MEMORY) as folder:
            async with site(Path(folder)) as servers:
                url = servers.hosts if fault is lost_primary else servers.url
                async with contend(url) as contender:
                    outcomes.append(await Load(contender).run(lambda: fault(servers)))
    return outcomes


def shown(outcome: Outcome) -> str:
    """Write an outcome as cells of the table."""
    recovery = "not in 15 s" if outcome.is_wedged else f"{outcome.recovery:.1f} s"
    return f"{sum(outcome.failed.values())} of {outcome.asked} | {recovery} | {outcome.leaked}"


def main() -> None:
    """Print the table."""
    logging.disable()
    print("| fault | stock: failed | recovery | leaked | this kit: failed | recovery | leaked |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in (*FAULTS, *FAILOVERS):
        before, now = asyncio.run(measure(name))
        print(f"| {name} | {shown(before)} | {shown(now)} |", flush=True)


if __name__ == "__main__":
    main()
