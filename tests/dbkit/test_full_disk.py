"""A disk that is full: 503, and a service that goes on when there is room again."""

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from dbkit import Database, Databases, install, session_from
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from mariadb import MariaDB
from replication import give
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncSession

ROOM = 1 << 20
"""Bytes on the disk."""
SIZE = 7000
"""Bytes of a row: a page of PostgreSQL. For a longer one without room, MariaDB 10.11 aborts."""


@pytest.fixture
def disk(fast_directory: Path) -> Iterator[Path]:
    """Mount a disk of a megabyte, which database servers may write to."""
    folder = fast_directory / "disk"
    folder.mkdir()
    fast_directory.chmod(0o755)
    options = f"size={ROOM},mode=777"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@asynccontextmanager
async def serving(database: Database) -> AsyncGenerator[AsyncClient]:
    """Serve a route that writes a row, and one that counts what is there."""
    app = FastAPI()
    databases = Databases(database)
    install(app, databases)

    @app.post("/")
    async def write(session: Annotated[AsyncSession, session_from(database)]) -> None:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        row = {"body": os.urandom(SIZE // 2).hex()}
        await session.execute(text("INSERT INTO kept VALUES (:body)"), row)

    @app.get("/")
    async def count() -> int:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        return await database.reader.scalar(text("SELECT count(*) FROM kept"))

    async with (
        databases.open(),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def assert_sound(database: Database, make: str, ballast: Path) -> None:
    """Fill the disk, be refused, make room, and write again."""
    async with serving(database) as client:
        async with database.session() as session:
            await session.execute(text(make))
        written = 0
        while (response := await client.post("/")).status_code == 200:
            written += 1
            assert written < ROOM / SIZE
        refused = await asyncio.gather(*(client.post("/") for _ in range(20)))

        assert {each.status_code for each in (response, *refused)} == {503}
        assert "Retry-After" in response.headers
        assert response.json()["detail"] == "primary: the database is out of resources"
        assert (await client.get("/")).json() == written > 0
        status = database.pool.snapshot()
        assert (status.in_use, status.waiting, status.connect_errors) == (0, 0, 0)

        ballast.unlink()  # noqa: ASYNC240 -- it is in memory
        assert (await client.post("/")).status_code == 200
        assert (await client.get("/")).json() == written + 1


def fill(disk: Path) -> Path:
    """Take the half of the disk, which may be given back."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(ROOM // 2))
    return ballast


async def test_postgresql_on_a_full_disk(database_url: URL, disk: Path) -> None:
    database = Database("primary", "postgresql", url=shown(database_url), pool_size=3)
    folder = disk / "tablespace"
    folder.mkdir()
    give(folder)
    async with Database("other", "postgresql", url=shown(database_url)).open() as other:
        await other.execute(text(f"CREATE TABLESPACE small LOCATION '{folder}'"))
        try:
            make = "CREATE TABLE kept (body text STORAGE plain) TABLESPACE small"
            await assert_sound(database, make, fill(disk))
        finally:
            await other.execute(text("DROP TABLE IF EXISTS kept"))
            await other.execute(text("DROP TABLESPACE small"))


async def test_sqlite_on_a_full_disk(disk: Path) -> None:
    database = Database("primary", "sqlite", url=f"sqlite:///{disk / 'kept.sqlite3'}", pool_size=3)

    await assert_sound(database, "CREATE TABLE kept (body text)", fill(disk))


@pytest.mark.xdist_group("mariadb")
async def test_mariadb_on_a_full_disk(mariadb: MariaDB, disk: Path) -> None:
    url = await asyncio.to_thread(mariadb.new_database)
    database = Database("primary", "mysql", url=shown(url), pool_size=3)

    make = f"CREATE TABLE kept (body varchar(7000)) DATA DIRECTORY '{disk}'"
    await assert_sound(database, make, fill(disk))
    await asyncio.to_thread(mariadb.run, f"DROP DATABASE {url.database}")


def shown(url: Any) -> str:
    return url.render_as_string(hide_password=False)
