"""A primary and its replica, to be hurt."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from faults.faults import MEMORY, Site, site


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for the session's async fixtures and all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Make a folder in memory where there is some, else on disk."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
async def servers(folder: Path) -> AsyncGenerator[Site]:
    """Run both servers, for all tests but those that change their roles."""
    async with site(folder) as servers:
        yield servers
