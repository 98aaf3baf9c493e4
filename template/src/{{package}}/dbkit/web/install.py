"""What the kit adds to an application."""

from typing import Any

from fastapi import FastAPI

from ..database.databases import Databases
from .health import health_router
from .middleware import serve_requests
from .page import Pages
from .problems import DATABASE_RESPONSES, add_exception_handlers
from .prometheus import metrics_router
from .workers import Workers

TOO_LARGE: dict[str, Any] = {
    "description": "The body is larger than this service takes",
    "content": {
        "text/plain": {"schema": {"type": "string"}},  # of the length that was announced
        "application/json": {  # of what was read
            "schema": {"type": "object", "properties": {"detail": {"type": "string"}}}
        },
    },
}


def install(app: FastAPI, databases: Databases) -> None:
    """Add health, metrics, the page of the pools, responses for database errors, and a log.

    Requests whose client has left are ended. OpenAPI names `DATABASE_RESPONSES` for each route that
    is added after this; a route's own description of one stays.
    """
    app.state.databases = databases
    if app.max_body_size is not None:
        app.router.responses.setdefault(413, TOO_LARGE)
    app.include_router(health_router(databases))
    workers = Workers()
    app.router.routes.append(Pages(databases, workers))
    app.include_router(metrics_router(databases, workers))
    # After the kit's own routes: of the service's, any may use a database.
    app.router.responses = DATABASE_RESPONSES | app.router.responses
    add_exception_handlers(app)
    serve_requests(app, workers, replicas=any(each.replica_of for each in databases.values()))
