"""What the kit adds to an application."""

from fastapi import FastAPI

from .database import Databases
from .exception_handlers import add_exception_handlers
from .health import health_router


def install(app: FastAPI, databases: Databases) -> None:
    """Add the health routes, and the responses for database errors, to `app`."""
    app.state.databases = databases
    app.include_router(health_router(databases))
    add_exception_handlers(app)
