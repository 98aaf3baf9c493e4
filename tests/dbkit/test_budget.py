"""The budget of connections, and what `check --deploy` finds of a server."""

import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbkit import Database, Databases, DatabaseSettings
from dbkit.commands import checks
from dbkit.commands.checks import Finding
from dbkit.commands.embedded import EmbeddedPostgres
from dbkit.database.budget import Claim, Limits, excesses, read_limits
from dbkit.database.engine import create_engine
from rendering import ROOT
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

KIT = ROOT / "template" / "src" / "{{package}}" / "dbkit"


def claim(
    database: str = "primary", *, size: int = 10, server: str = "one", role: int = -1, own: int = -1
) -> Claim:
    settings = DatabaseSettings(url=URL.create("postgresql"), pool_size=size)
    return Claim(database, settings, Limits(server, 100, 3, "role app", role, database, own))


def found(*claims: Claim, processes: int) -> list[tuple[str, int]]:
    limits = [each.limit for each in excesses(claims, processes)]
    return [(limit.id, limit.connections) for limit in limits]


def test_databases_of_one_server_are_summed_and_of_two_are_not() -> None:
    # 4 processes, each with a pool of 10 and a probe, make 44 connections.
    assert found(claim("primary"), claim("analytics"), processes=4) == []
    assert found(claim("primary"), claim("analytics"), processes=5) == [("database.E010", 97)]
    assert found(claim("primary"), claim("analytics", server="two"), processes=5) == []


def test_a_claim_of_all_that_is_left_is_no_excess() -> None:
    assert found(claim(size=96), processes=1) == []
    assert found(claim(size=97), processes=1) == [("database.E010", 97)]


def test_limits_of_role_and_database_count() -> None:
    assert found(claim(role=10), processes=1) == [("database.E011", 10)]
    assert found(claim(own=10), claim("other"), processes=1) == [("database.E012", 10)]


def test_an_excess_says_how_it_comes_about() -> None:
    (excess,) = excesses([claim("primary"), claim("analytics", size=5)], 12)

    assert str(excess) == (
        "up to 204 connections, and the server accepts 97 (100, 3 reserved):"
        " primary 11, analytics 6 in each of 12 processes, with a probe each"
    )


@asynccontextmanager
async def connected(url: URL) -> AsyncGenerator[AsyncConnection]:
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def test_a_server_says_its_limits(database_url: URL) -> None:
    async with connected(database_url) as connection:
        maximum = await connection.scalar(text("SHOW max_connections"))
        await connection.execute(text("CREATE ROLE limited LOGIN PASSWORD 'x' CONNECTION LIMIT 7"))
        try:
            name = database_url.database
            await connection.execute(text(f'ALTER DATABASE "{name}" CONNECTION LIMIT 8'))
            superuser = await read_limits(connection)
            async with connected(database_url.set(username="limited", password="x")) as other:  # noqa: S106
                limited = await read_limits(other)
        finally:
            await connection.execute(text("DROP ROLE limited"))

    assert superuser is not None
    assert limited is not None
    assert (limited.role_limit, limited.database_limit) == (7, 8)
    assert (superuser.role_limit, superuser.database_limit) == (-1, -1)  # Of a superuser.
    assert (superuser.max_connections, superuser.reserved) == (int(maximum), 3)
    assert superuser.server == limited.server


async def findings(url: URL, **declared: float) -> dict[str, Finding]:
    declared_url = url.render_as_string(hide_password=False)
    database = Database("orders", "postgresql", url=declared_url, **declared)  # pyright: ignore[reportArgumentType] -- only numbers
    return {each.id: each async for each in checks.check([database], deploy=True)}


async def test_a_server_that_is_set_up_well_has_no_findings(
    database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with connected(database_url) as connection:
        name = database_url.database
        await connection.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = 'UTC'"))
    found = await findings(database_url)
    if "autovacuum" in str(found.get("database.W013")):  # As the tests' own server has it.
        found.pop("database.W013")

    assert found == {}


async def test_a_server_that_is_set_up_badly_is_said_to_be(
    postgres: EmbeddedPostgres,
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEB_CONCURRENCY", "1000")
    name = f"{database_url.database}_old"
    async with connected(database_url) as connection:
        await connection.execute(
            text(f"CREATE DATABASE \"{name}\" ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        )
        await connection.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = 'Europe/Rome'"))
    async with connected(database_url.set(database=name)) as connection:
        await connection.execute(text("CREATE TABLE dusty () WITH (autovacuum_enabled = false)"))

    monkeypatch.setattr("time.time", lambda: 1e9)
    found = await findings(postgres.url(name), statement_timeout=0, idle_in_transaction_timeout=0)

    assert set(found) == {"database.E010", *(f"database.W01{number}" for number in range(6))}
    assert "Europe/Rome" in found["database.W010"].text
    assert "SQL_ASCII" in found["database.W011"].text
    assert "ahead of ours" in found["database.W012"].text
    assert "autovacuum is off" in found["database.W013"].text
    assert found["database.W014"].hint == (
        "set ORDERS_DATABASE_STATEMENT_TIMEOUT to what the slowest may take"
    )


async def test_a_service_that_starts_warns_of_its_budget(
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANCES", "50")
    url = database_url.render_as_string(hide_password=False)
    databases = Databases(Database("orders", "postgresql", url=url))

    with caplog.at_level(logging.WARNING):
        async with databases.open():
            pass

    (message,) = caplog.messages
    assert message.startswith("orders: up to 561 connections, and the server accepts ")
    assert message.endswith("see `manage.py check --deploy`")


async def test_sqlite_has_no_limits(tmp_path: Path) -> None:
    settings = DatabaseSettings(url=URL.create("sqlite+aiosqlite", database=f"{tmp_path}/x"))
    async with create_engine("x", "X_", settings, pooled=False).connect() as connection:
        assert await read_limits(connection) is None


def test_every_id_is_in_the_documentation() -> None:
    sources = "".join(path.read_text() for path in KIT.rglob("*.py"))
    page = (ROOT / "docs" / "checks.md").read_text()

    ids = r"[a-z]+\.[EW]\d{3}"
    assert set(re.findall(ids, sources)) == set(re.findall(rf"^\| `({ids})`", page, re.MULTILINE))
