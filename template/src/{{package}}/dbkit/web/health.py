"""Health: `/livez`, `/readyz` and `/startupz`, named as Kubernetes names them."""

from collections.abc import Mapping
from typing import Literal

from fastapi import Response
from pydantic import BaseModel

from ..database.databases import Databases
from ..database.probe import Probe
from .routing import KitRouter


class Life(BaseModel):
    """The process runs."""

    status: Literal["alive"] = "alive"


class DatabaseHealth(BaseModel):
    """Whether one database answers, and whether the service needs it."""

    status: Literal["up", "down", "lagging"]
    required: bool


class Readiness(BaseModel):
    """Whether the service should be sent requests, and what its databases are doing."""

    status: Literal["ready", "not ready", "stopping"]
    databases: Mapping[str, DatabaseHealth]


def health_router(databases: Databases) -> KitRouter:
    """Serve the three health routes; none of them waits for a database."""
    router = KitRouter(tags=["health"])

    def report(status: Literal["ready", "not ready", "stopping"]) -> Readiness:
        return Readiness(
            status=status,
            databases={
                name: DatabaseHealth(status=database.status, required=database.settings.required)
                for name, database in databases.items()
            },
        )

    def needed() -> list[Probe]:
        return [each.probe for each in databases.values() if each.settings.required]

    @router.get("/livez")
    async def livez() -> Life:
        """Answer 200 while the process runs; never look at a database."""
        return Life()

    @router.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Answer 200 while every required database answers, and until SIGTERM."""
        ready = all(probe.is_up for probe in needed())
        response.status_code = 200 if ready and not databases.stopping else 503
        if databases.stopping:
            return report("stopping")
        return report("ready" if ready else "not ready")

    @router.get("/startupz", responses={503: {"model": Readiness}})
    async def startupz(response: Response) -> Readiness:
        """Answer 200 once every required database has answered; for good."""
        started = all(probe.has_been_up for probe in needed())
        response.status_code = 200 if started else 503
        return report("ready" if started else "not ready")

    return router
