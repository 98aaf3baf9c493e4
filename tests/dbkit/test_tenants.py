"""Tenants by row level security, schema and role, as docs/recipes.md has them."""

import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import pytest
from dbkit import Database, Databases, install, session_from
from fastapi import Depends, FastAPI
from httpx import ASGITransport, AsyncClient
from rendering import ROOT
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPE = re.findall(
    r'^```python title="src/orders/tenants.py"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL
)
MADE = """
    CREATE ROLE recipe_reader; CREATE ROLE recipe_a; CREATE ROLE recipe_b;
    CREATE SCHEMA recipe_a; CREATE TABLE recipe_a.here AS SELECT 'recipe_a' AS whose;
    CREATE SCHEMA recipe_b; CREATE TABLE recipe_b.here AS SELECT 'recipe_b' AS whose;
    CREATE TABLE shared AS SELECT * FROM (VALUES ('recipe_a'), ('recipe_b')) AS rows (whose);
    ALTER TABLE shared ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenants ON shared USING (whose = current_setting('app.tenant'));
    GRANT SELECT ON shared TO recipe_reader
"""
GONE = """
    DROP SCHEMA recipe_a, recipe_b CASCADE; DROP TABLE shared;
    DROP ROLE recipe_reader, recipe_a, recipe_b
"""
STATE = text(
    "SELECT current_user, current_setting('search_path'), current_setting('app.tenant', true)"
)
KINDS = {
    # No superuser, whom no policy binds.
    "app.tenant": "SET LOCAL ROLE recipe_reader; SELECT whose FROM shared",
    "search_path": "SELECT whose FROM here",
    "role": "SELECT current_user",
}


@pytest.fixture
async def tenants(declared: Database) -> AsyncGenerator[Database]:
    """Make what tells two tenants apart."""
    async with declared.open() as database:
        for script, leaves in ((MADE, True), (GONE, False)):
            async with database.engine.begin() as connection:
                for each in script.split(";"):
                    await connection.execute(text(each))
            if leaves:
                yield database


@pytest.mark.parametrize("declared", ["postgresql", "pgbouncer"], indirect=True)
@pytest.mark.parametrize("setting", KINDS)
async def test_a_tenant_is_gone_with_its_transaction(tenants: Database, setting: str) -> None:
    tenants.pool.resize(1, 0)  # The next caller has the same connection.
    (code,) = RECIPE
    module: dict[str, Any] = {"PrimarySession": Annotated[AsyncSession, session_from(tenants)]}
    exec(code.replace("from .databases.primary import PrimarySession\n", ""), module)  # noqa: S102 -- ours
    module["SETTING"] = setting
    app = FastAPI()
    install(app, Databases(tenants))

    @app.get("/")
    async def read(  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        session: Annotated[AsyncSession, Depends(module["tenant_session"])], *, fail: bool = False
    ) -> list[str]:
        *others, last = KINDS[setting].split("; ")
        for each in others:
            await session.execute(text(each))
        rows = await session.scalars(text(last))
        if fail:
            await session.execute(text("SELECT 1 / 0"))
        return list(rows)

    async def state() -> Any:
        async with tenants.session() as session:
            return (await session.execute(STATE)).one()

    before = await state()
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        for tenant in ("recipe_a", "recipe_b", "recipe_a"):
            answer = await client.get("/", headers={"X-Tenant": tenant})
            assert answer.json() == [tenant]
            assert (await state())[:2] == before[:2]
        failed = await client.get("/", params={"fail": True}, headers={"X-Tenant": "recipe_b"})

    assert failed.status_code == 500
    user, path, tenant = await state()
    assert (user, path, tenant or None) == (before[0], before[1], None)
