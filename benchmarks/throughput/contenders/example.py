"""The rendered service as it comes: its example's own routes, and one that reads both databases."""

import asyncio
import os
from collections.abc import Awaitable
from importlib import import_module
from typing import Any

from .bodies import Both

package = os.environ["BENCHMARK_PACKAGE"]
app = import_module(f"{package}.main").app
Item = import_module(f"{package}.items.models").Item
Note = import_module(f"{package}.notes.analytics").Note
primary = import_module(f"{package}.databases.primary").primary
analytics = import_module(f"{package}.databases.analytics").analytics


@app.get("/both/{item_id}", response_model=Both)
async def both(item_id: int) -> Any:
    """Read one of each database, at once."""
    reads: list[Awaitable[Any]] = [
        primary.reader.get(Item, item_id),
        analytics.reader.get(Note, item_id),
    ]
    item, note = await asyncio.gather(*reads)
    return {"item": item, "note": note}
