"""Fixtures: the real application on real databases; what a test writes is rolled back.

`tests/conftest.py` names this module in `pytest_plugins` and gives the `app` fixture.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from . import migrations
from .database import Databases
from .embedded import TEST_SETTINGS, EmbeddedPostgres


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every test and fixture in one event loop: pools belong to the loop they are used in."""
    return "asyncio"


@pytest.fixture(scope="session")
def databases(app: FastAPI, tmp_path_factory: pytest.TempPathFactory) -> Generator[Databases]:
    """Give every database a server or a file of the tests' own, migrated.

    `TEST_DATABASE_URL`, or `ANALYTICS_TEST_DATABASE_URL` for `analytics`, names another.
    """
    databases: Databases = app.state.databases
    folder = tmp_path_factory.mktemp("databases")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        server: EmbeddedPostgres | None = None
        for database in databases.values():
            prefix = database.env_prefix
            url = os.environ.get(prefix.replace("DATABASE_", "TEST_DATABASE_URL"))
            if url is None and database.dialect == "sqlite":
                url = f"sqlite:///{folder / database.name}.sqlite3"
            elif url is None:
                if server is None:
                    server = stack.enter_context(
                        EmbeddedPostgres(folder / "postgres", settings=TEST_SETTINGS)
                    )
                server.create_database(database.name)
                url = server.url(database.name).render_as_string(hide_password=False)
            patch.setenv(f"{prefix}URL", url)
            if database.base:
                asyncio.run(migrations.migrate(database))
        yield databases


@pytest.fixture(scope="session")
async def running_app(app: FastAPI, databases: Databases) -> AsyncGenerator[FastAPI]:
    """Run the application's lifespan, once for all tests."""
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def sandbox(running_app: FastAPI, databases: Databases) -> AsyncGenerator[Databases]:
    """Roll back, in every database, what the test writes."""
    async with AsyncExitStack() as stack:
        for database in databases.values():
            await stack.enter_async_context(database.sandbox())
        yield databases


@pytest.fixture
async def client(running_app: FastAPI, sandbox: Databases) -> AsyncGenerator[AsyncClient]:
    """Call the application over HTTP, without a network."""
    transport = ASGITransport(running_app)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
