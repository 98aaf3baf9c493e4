"""FastAPI on asyncpg."""

from typing import Any

from fastapi import FastAPI

from . import driver
from .bodies import Both, ItemCreate, ItemPage, ItemRead

app = FastAPI(lifespan=driver.lifespan)


@app.get("/items/{item_id}", response_model=ItemRead)
async def read(item_id: int) -> Any:
    """Read one."""
    return dict(await driver.read(item_id))


@app.get("/items", response_model=ItemPage)
async def page(limit: int = 20) -> Any:
    """Read some."""
    return {"items": [dict(row) for row in await driver.page(limit)]}


@app.post("/items", status_code=201, response_model=ItemRead)
async def create(body: ItemCreate) -> Any:
    """Write one."""
    return dict(await driver.create(body.name, body.quantity))


@app.get("/both/{item_id}", response_model=Both)
async def both(item_id: int) -> Any:
    """Read one of each database."""
    item, note = await driver.both(item_id)
    return {"item": dict(item), "note": dict(note)}
