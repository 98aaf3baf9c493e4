"""Whether the service's own code does what the kit does already, as one that takes the kit may."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette

from ...database.database import Database
from ...database.sync import Synchronous
from ...web.routing import mounted_in
from .finding import Finding

KIT = Path(__file__).parents[2]
ENGINES = {
    *("create_engine", "create_async_engine"),
    *("engine_from_config", "async_engine_from_config"),
}
SESSION = re.compile(r"session|(^|_)db($|_)", re.IGNORECASE)
SHOWN = 5
"""Places that a finding names."""


def check_sources(package: Path) -> Iterator[Finding]:
    """Find engines created outside the kit, and functions that commit a session passed to them."""
    finder = Finder()
    for file in sorted(package.rglob("*.py")):
        if KIT not in file.parents:
            finder.file = file
            with suppress(SyntaxError, ValueError):  # It is no Python of this version.
                finder.visit(ast.parse(file.read_bytes()))
    if finder.engines:
        yield Finding(
            "application.W002",
            "application",
            f"makes an engine beside the kit's, in no budget and no check: {shown(finder.engines)}",
            "use the database's: `primary.engine`, or `primary.sync.engine` for synchronous code",
        )
    if finder.commits:
        yield Finding(
            "application.W003",
            "application",
            f"commits a session that it was given: {shown(finder.commits)}",
            "the kit's commits at its end, before the response: `await session.flush()` instead,"
            " and `async with session.begin_nested()` inside of a `try`",
        )


def check_scopes(app: Any) -> Iterator[Finding]:
    """Find routes whose session is committed only after they have answered."""
    late = sorted({path for path, route in routes_of(app) if is_late(route)})
    if late:
        yield Finding(
            "application.W004",
            "application",
            f"answers before it commits, so that a commit that fails is a success: {shown(late)}",
            'write `Depends(..., scope="function")`, as `session_from()` does',
        )


def routes_of(app: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the routes of an application, those of routers and mounted applications too."""
    if isinstance(app, Starlette):
        for route in iter_route_contexts(app.routes):
            yield f"{prefix}{route.path}", route
        for path, inner in mounted_in(app):
            yield from routes_of(inner, prefix + path)


class Finder(ast.NodeVisitor):
    """Finds calls in a module, with what functions around them were given."""

    def __init__(self) -> None:
        self.file = Path()
        self.engines: list[str] = []
        self.commits: list[str] = []
        self._given: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Note the names of parameters for what is in the function."""
        arguments = node.args
        before = self._given
        given = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        self._given = before | {each.arg for each in given}
        self.generic_visit(node)
        self._given = before

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 -- as above

    def visit_Call(self, node: ast.Call) -> None:
        """Note a call that we look for."""
        called = node.func
        name = getattr(called, "id", "") or getattr(called, "attr", "")
        if name in ENGINES:
            self.engines.append(self._place(node))
        if name == "commit" and isinstance(called, ast.Attribute):
            match called.value:
                case ast.Name(id=of) if of in self._given and SESSION.search(of):
                    self.commits.append(self._place(node))
                case ast.Attribute(value=ast.Name(id="self"), attr=of) if SESSION.search(of):
                    self.commits.append(self._place(node))
                case _:
                    pass
        self.generic_visit(node)

    def _place(self, node: ast.AST) -> str:
        here = Path.cwd()
        file = self.file.relative_to(here) if here in self.file.parents else self.file
        return f"{file}:{getattr(node, 'lineno', 0)}"


def is_late(part: Any) -> bool:
    """Whether a route, or what it depends on, depends on a session until after the response."""
    function = getattr(getattr(part, "call", None), "__func__", None)
    if function in {Database.request_session, Synchronous.request_session}:
        return part.scope != "function"
    parts = getattr(getattr(part, "dependant", part), "dependencies", ())
    return any(is_late(each) for each in parts)


def shown(places: list[str]) -> str:
    """Name the first, and count the rest."""
    more = [f"{len(places) - SHOWN} more"] if len(places) > SHOWN else []
    return ", ".join(places[:SHOWN] + more)
