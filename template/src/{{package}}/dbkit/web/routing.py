"""Routes: a router that costs other routes nothing, and applications that are mounted."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.routing import Host, Match, Mount
from starlette.types import Scope


class KitRouter(APIRouter):
    """Routes of the kit: FastAPI asks each router in turn, and this one looks at the path once."""

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return tuple(route.path for route in self.routes if isinstance(route, APIRoute))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match none but the paths that end as one of the routes, whatever they are mounted at."""
        if scope["path"].endswith(self._paths):
            return super().matches(scope)
        return Match.NONE, {}


def mounted_in(app: Starlette) -> Iterator[tuple[str, Starlette]]:
    """Yield the applications that are mounted in one, each with its path; they may have more."""
    for route in app.routes:
        inner: Any = route.app if isinstance(route, Mount | Host) else None
        while inner is not None and not isinstance(inner, Starlette):
            inner = getattr(inner, "app", None)  # It may be in middleware.
        if inner is not None:
            yield getattr(route, "path", ""), inner
