"""What the kit adds to an application."""

from fastapi import FastAPI

from .database import Databases
from .disconnects import CancelOnDisconnect
from .exception_handlers import add_exception_handlers
from .health import health_router
from .logs import log_requests
from .replicas import ReadYourWrites


def install(app: FastAPI, databases: Databases) -> None:
    """Add health routes, responses for database errors, an end to abandoned requests, and a log."""
    app.state.databases = databases
    if any(database.replica_of for database in databases.values()):
        app.add_middleware(ReadYourWrites)
    app.add_middleware(CancelOnDisconnect)
    app.include_router(health_router(databases))
    add_exception_handlers(app)
    log_requests(app)
