"""The kit on the import path, and a real PostgreSQL for its tests."""

import shutil
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from sqlalchemy import URL

KIT = Path(__file__).parents[2] / "template" / "src" / "{{package}}"
# First, for this folder is named `dbkit` too; once, for workers may load this file again.
if str(KIT) not in sys.path:
    sys.path.insert(0, str(KIT))

from dbkit import Database  # noqa: E402
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres  # noqa: E402
from pooler import pgbouncer  # noqa: E402
from shop import fill  # noqa: E402

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- where Linux has a tmpfs; the folder in it is 0700


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for the session's async fixtures and all tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def fast_directory() -> Iterator[Path]:
    """Offer a directory in memory where there is room, else on disk."""
    # Docker gives /dev/shm 64 MB, and one server needs some 60.
    room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1 << 30
    with TemporaryDirectory(dir=SHARED_MEMORY if room else None) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def postgres(fast_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Run a server, one for each worker."""
    with EmbeddedPostgres(fast_directory / "postgres", settings=TEST_SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def pooler(postgres: EmbeddedPostgres) -> Iterator[URL]:
    """Run a PgBouncer; the URL names no database."""
    # Each test has a database of its own: else the connections to those before would add up.
    with pgbouncer(postgres.url(""), server_idle_timeout="5") as url:
        yield url


@pytest.fixture(params=["postgresql", "sqlite"])
def declared(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Declare an empty database: of PostgreSQL and SQLite, or of what the test asks for."""
    engine: str = request.param
    if engine == "sqlite":
        return Database("shop", engine, url=f"sqlite:///{tmp_path / 'shop.sqlite3'}")
    if engine in {"mariadb", "mysql"}:
        found: URL = request.getfixturevalue(engine).new_database()
        return Database("shop", "mysql", url=found.render_as_string(hide_password=False))
    found = request.getfixturevalue("database_url")
    if engine == "pgbouncer":
        found = request.getfixturevalue("pooler").set(database=found.database)
    url = found.render_as_string(hide_password=False)
    return Database("shop", "postgresql", url=url, pgbouncer=engine == "pgbouncer")


@pytest.fixture
async def database(declared: Database) -> AsyncGenerator[Database]:
    """Open the database of `shop.py`: on PostgreSQL, and on SQLite."""
    async with declared.open() as database:
        await fill(database)
        yield database


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> URL:
    """Make a database and return its URL."""
    name = f"test_{uuid4().hex}"
    postgres.create_database(name)
    return postgres.url(name)
