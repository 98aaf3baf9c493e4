"""The rendered service as it comes, with a route that reads both databases, and its steps.

The steps read one row by the ways that `docs/performance.md` compares.
"""

import asyncio
import os
from collections.abc import Awaitable
from importlib import import_module
from typing import Any

from .bodies import Both, ItemRead

package = os.environ["BENCHMARK_PACKAGE"]
app = import_module(f"{package}.main").app
Item = import_module(f"{package}.items.models").Item
ITEM = import_module(f"{package}.items.router").ITEM
NOTE = import_module(f"{package}.notes.analytics").NOTE
primary = import_module(f"{package}.databases.primary").primary
analytics = import_module(f"{package}.databases.analytics").analytics


@app.get("/both/{item_id}", response_model=Both)
async def both(item_id: int) -> Any:
    """Read one of each database, at once."""
    items, notes = await asyncio.gather(*reads(item_id))
    return {"item": items.one(), "note": notes.one()}


def reads(item_id: int) -> list[Awaitable[Any]]:
    """Read a row of each."""
    return [
        primary.reader.execute(ITEM, {"id": item_id}),
        analytics.reader.execute(NOTE, {"id": item_id}),
    ]


@app.get("/session/{item_id}", response_model=ItemRead)
async def by_session(item_id: int) -> Any:
    """Read one in a transaction."""
    async with primary.session() as session:
        return await session.get_one(Item, item_id)


@app.get("/object/{item_id}", response_model=ItemRead)
async def by_object(item_id: int) -> Any:
    """Read one as an object."""
    return await primary.reader.get(Item, item_id)


@app.get("/driver/{item_id}", response_model=ItemRead)
async def by_driver(item_id: int) -> Any:
    """Read one from the driver."""
    async with primary.driver_connection() as connection:
        return dict(
            await connection.fetchrow("SELECT id, name, quantity FROM items WHERE id = $1", item_id)
        )
