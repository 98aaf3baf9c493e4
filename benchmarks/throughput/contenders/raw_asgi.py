"""asyncpg behind a function: the limit of one process."""

import json
from typing import Any

from starlette.types import Receive, Scope, Send

from . import driver


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve."""
    if scope["type"] == "lifespan":
        await receive()
        async with driver.lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    answer: Any
    status = 200
    match scope["method"], scope["path"].split("/")[1:]:
        case "GET", ["items", item_id]:
            answer = dict(await driver.read(int(item_id)))
        case "GET", ["both", item_id]:
            item, note = await driver.both(int(item_id))
            answer = {"item": dict(item), "note": dict(note)}
        case "GET", _:
            answer = {"items": [dict(row) for row in await driver.page(20)]}
        case _:
            body = json.loads((await receive())["body"])
            answer, status = dict(await driver.create(body["name"], body.get("quantity", 0))), 201
    content = json.dumps(answer).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
