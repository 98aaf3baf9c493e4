"""FastAPI on asyncpg, in the structure of the rendered service: router, dependency, limits."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query

from . import driver
from .bodies import Both, ItemCreate, ItemPage, ItemRead


async def queries() -> Any:
    """Depend on the pools."""
    return driver


Queries = Annotated[Any, Depends(queries)]
ItemId = Annotated[int, Path(ge=1, le=2**53 - 1)]
Limit = Annotated[int, Query(ge=1, le=100)]

app = FastAPI(lifespan=driver.lifespan, max_body_size=1_000_000)
router = APIRouter(prefix="/items")


@router.get("/{item_id}", response_model=ItemRead, responses={404: {}})
async def read(item_id: ItemId, pools: Queries) -> Any:
    """Read one."""
    item = await pools.read(item_id)
    if item is None:
        raise HTTPException(404)
    return dict(item)


@router.get("", response_model=ItemPage)
async def page(pools: Queries, limit: Limit = 20) -> Any:
    """Read some."""
    return {"items": [dict(row) for row in await pools.page(limit)]}


@router.post("", status_code=201, response_model=ItemRead)
async def create(body: ItemCreate, pools: Queries) -> Any:
    """Write one."""
    return dict(await pools.create(body.name, body.quantity))


app.include_router(router)


@app.get("/both/{item_id}", response_model=Both)
async def both(item_id: ItemId, pools: Queries) -> Any:
    """Read one of each database."""
    item, note = await pools.both(item_id)
    return {"item": dict(item), "note": dict(note)}
