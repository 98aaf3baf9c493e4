"""The rendered service with its routes tuned as `docs/performance.md` says, and its steps.

It has the service's databases, settings, limits and kit; `example` has the routes that it comes
with. The steps read one row by the ways that `docs/performance.md` compares.
"""

import asyncio
import os
from collections.abc import Awaitable
from importlib import import_module
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException
from sqlalchemy import Integer, bindparam, insert, select

from .bodies import Both, ItemCreate, ItemPage, ItemRead

package = os.environ["BENCHMARK_PACKAGE"]
main = import_module(f"{package}.main")
Item = import_module(f"{package}.items.models").Item
Note = import_module(f"{package}.notes.analytics").Note
primary_module = import_module(f"{package}.databases.primary")
primary = primary_module.primary
analytics = import_module(f"{package}.databases.analytics").analytics
Reader = primary_module.PrimaryReader.__metadata__[0]

# Built once, for all requests. Rows of a table cost less than objects, and have every column.
ITEM = select(Item.__table__).where(Item.id == bindparam("id"))
PAGE = select(Item.__table__).order_by(Item.id).limit(bindparam("limit", type_=Integer))
CREATE = insert(Item)
NOTE = select(Note.__table__).where(Note.id == bindparam("id"))

router = APIRouter(prefix="/items")


@router.get("/{item_id}", response_model=ItemRead, responses={404: {}})
async def read(item_id: int, reader: Annotated[Any, Reader]) -> Any:
    """Read one."""
    item = (await reader.execute(ITEM, {"id": item_id})).first()
    if item is None:
        raise HTTPException(404)
    return item


@router.get("", response_model=ItemPage)
async def page(reader: Annotated[Any, Reader], limit: int = 20) -> Any:
    """Read some."""
    return {"items": (await reader.execute(PAGE, {"limit": limit})).all()}


@router.post("", status_code=201, response_model=ItemRead)
async def create(body: ItemCreate) -> Any:
    """Write one. Of a column that the server computes this would know nothing."""
    values = body.model_dump()
    created = await primary.execute(CREATE, values)
    return {"id": created.inserted_primary_key.id, **values}


app = FastAPI(lifespan=main.lifespan, max_body_size=main.app.max_body_size)
main.install(app, main.databases)
app.include_router(router)


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


@app.post("/session", status_code=201, response_model=ItemRead)
async def create_by_session(body: ItemCreate) -> Any:
    """Write one in a transaction."""
    async with primary.session() as session:
        item = Item(**body.model_dump())
        session.add(item)
        await session.flush()
        return item


@app.get("/fresh/{item_id}", response_model=ItemRead)
async def by_fresh_statement(item_id: int) -> Any:
    """Read one by a statement that is built for it."""
    return (await primary.reader.execute(select(Item.__table__).where(Item.id == item_id))).first()


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
