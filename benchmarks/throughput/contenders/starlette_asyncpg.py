"""Starlette on asyncpg: nothing is validated."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from . import driver


async def read(request: Request) -> JSONResponse:
    """Read one."""
    return JSONResponse(dict(await driver.read(int(request.path_params["item_id"]))))


async def page(request: Request) -> JSONResponse:
    """Read some."""
    rows = await driver.page(int(request.query_params.get("limit", 20)))
    return JSONResponse({"items": [dict(row) for row in rows]})


async def create(request: Request) -> JSONResponse:
    """Write one."""
    body = await request.json()
    return JSONResponse(dict(await driver.create(body["name"], body.get("quantity", 0))), 201)


async def both(request: Request) -> JSONResponse:
    """Read one of each database."""
    item, note = await driver.both(int(request.path_params["item_id"]))
    return JSONResponse({"item": dict(item), "note": dict(note)})


app = Starlette(
    lifespan=driver.lifespan,
    routes=[
        Route("/items/{item_id:int}", read),
        Route("/items", page),
        Route("/items", create, methods=["POST"]),
        Route("/both/{item_id:int}", both),
    ],
)
