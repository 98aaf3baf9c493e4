"""A router whose routes cost other routes nothing."""

from functools import cached_property

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match
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
