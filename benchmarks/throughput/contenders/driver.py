"""The queries, on two pools of asyncpg."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from .bodies import ANALYTICS_URL, PRIMARY_URL

ITEM = "SELECT id, name, quantity FROM items WHERE id = $1"
NOTE = "SELECT id, text FROM notes WHERE id = $1"
PAGE = "SELECT id, name, quantity FROM items ORDER BY id LIMIT $1"
CREATE = "INSERT INTO items (name, quantity) VALUES ($1, $2) RETURNING id, name, quantity"

asyncpg: Any = import_module("asyncpg")  # which has no types
pools: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_: object = None) -> AsyncGenerator[None]:
    """Keep the pools open."""
    for name, url in (("primary", PRIMARY_URL), ("analytics", ANALYTICS_URL)):
        dsn = url.replace("+asyncpg", "")
        pools[name] = await asyncpg.create_pool(dsn, min_size=10, max_size=10)
    yield
    for pool in pools.values():
        await pool.close()


async def read(item_id: int) -> Any:
    """Read one."""
    return await pools["primary"].fetchrow(ITEM, item_id)


async def page(limit: int) -> list[Any]:
    """Read some."""
    return await pools["primary"].fetch(PAGE, limit)


async def create(name: str, quantity: int) -> Any:
    """Write one."""
    return await pools["primary"].fetchrow(CREATE, name, quantity)


async def both(item_id: int) -> tuple[Any, Any]:
    """Read one of each database, at once."""
    note: Awaitable[Any] = pools["analytics"].fetchrow(NOTE, item_id)
    return await asyncio.gather(read(item_id), note)
