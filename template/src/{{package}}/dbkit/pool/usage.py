"""Who uses the connections of a pool: since when, for which route, and how much of it in SQL."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry
from starlette.types import Scope

from ..callsites import calling_lines, waiting_lines, write
from ..clock import monotonic
from ..context import JOB, RequestContext, current, inherited
from ..errors import Holder
from ..loggers import logger_named

logger = logger_named("usage")

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of hold times, in seconds."""
MOST_ROUTES = 500
"""Routes that are counted apart; all that come later are `OTHERS`."""
OTHERS = "(other routes)"
NO_ROUTE = "(no route)"
WEBSOCKET = "WEBSOCKET"
"""Its method, as it has none."""
KEY = "use"
"""Where the record of a connection has its checkout."""
SHOWN_HOLDERS = 5
"""Holders that an error names."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a checkout's route, request and task."""

    route: str | None
    request_id: str | None
    task_name: str


class Use:
    """One checkout, from hand-out to return. Times are monotonic, or seconds."""

    __slots__ = (
        "in_sql",
        "names",
        "place",
        "request",
        "returned",
        "since",
        "sql_since",
        "statements",
        "streams",
        "task",
        "waited",
    )

    def __init__(
        self,
        task: asyncio.Task[Any] | None,
        request: RequestContext | None,
        since: float,
        waited: float,
    ) -> None:
        self.task = task
        self.request = request
        self.since = since
        self.waited = waited
        self.place: tuple[CodeType, int] | None = None
        """Where in the service it was taken; None of a single statement, whose task waits there."""
        self.statements = 0
        self.streams = False
        """Whether the rows of the latest are fetched bit by bit, of which no time is noted."""
        self.in_sql = 0.0
        self.sql_since: float | None = None
        """When the statement that runs now began, or the closing of the connection."""
        self.returned: float | None = None
        self.names: Names | None = None
        """What is known of it once its task has ended, without a reference to anything."""

    @property
    def route(self) -> str | None:
        """Its request's route: `GET /items/{item_id}`; None outside a request."""
        if self.names:
            return self.names.route
        return route_of(self.request.scope) if self.request else None

    @property
    def request_id(self) -> str | None:
        """The id of its request; None outside a request."""
        if self.names:
            return self.names.request_id
        return self.request.id if self.request else None

    @property
    def task_name(self) -> str:
        """The name of its task."""
        if self.names:
            return self.names.task_name
        return self.task.get_name() if self.task else "unknown"

    @property
    def ended(self) -> bool:
        """Whether its task has ended: then nothing will return the connection."""
        return self.task is None or self.task.done()

    def waits_at(self) -> tuple[str, ...]:
        """Find the lines where its task is now, the innermost first."""
        return waiting_lines(self.task) if self.task else ()


@dataclass
class RouteUse:
    """What one route has used since the engine was created, or one request; it only grows."""

    checkouts: int = 0
    waited: float = 0.0
    """Seconds, in all, until connections were handed out."""
    held: float = 0.0
    """Seconds, in all."""
    in_sql: float = 0.0
    """Seconds, in all."""
    statements: int = 0
    longest: float = 0.0
    """Seconds that the longest of them held its connection."""

    def add(self, use: Use, held: float) -> None:
        """Add a checkout that has ended."""
        self.checkouts += 1
        self.waited += use.waited
        self.held += held
        self.in_sql += use.in_sql
        self.statements += use.statements
        if held > self.longest:  # noqa: PLR1730 -- three times as fast as `max`
            self.longest = held


class Usage:
    """What a pool notes at each checkout and return; survives `dispose()`, as its counters do.

    Stacks are never captured there (39 us); where a holder is, is found when somebody asks.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.routes: dict[str, RouteUse] = {}
        self.buckets = [0] * (len(BUCKETS) + 1)
        """Returned connections by the seconds for which they were held, as in `BUCKETS`."""
        self.nested = 0
        """Checkouts by tasks that held a connection already."""
        self.leaks = 0
        """Connections that were held for longer than `leak_after`."""
        self.connects: dict[str, int] = {}
        """Connections opened, by what for."""
        self.on_connect: Callable[[float], None] | None = None
        self.on_wait: Callable[[float], None] | None = None
        self.on_return: Callable[[float], None] | None = None
        """Told of the seconds that each took; None costs nothing."""
        self.blocked_since: Callable[[float], str] = lambda _moment: ""
        """Says what blocked the event loop after a moment, if anything did."""
        self._holding: dict[asyncio.Task[Any] | None, ConnectionPoolEntry] = {}
        self._warned: set[str] = set()
        self._blamed: set[tuple[str, str]] = set()

    def take(self, record: ConnectionPoolEntry, now: float, waited: float = 0.0) -> None:
        """Record which task is handed a connection."""
        task = asyncio.current_task()
        if task in self._holding and not waited:  # Else it was asked before it waited.
            self.ask(task)
        info: Any = record.record_info
        request = inherited()
        is_its = request is not None and request.includes(task)
        info[KEY] = Use(task, request if is_its else None, now, waited)
        self._holding[task] = record

    def give(self, record: ConnectionPoolEntry, now: float) -> Use | None:
        """Note that a connection was returned; return the checkout that has ended."""
        info: Any = record.record_info
        use: Use | None = info.pop(KEY, None)
        if use is None:
            return None
        if self._holding.get(use.task) is record:
            del self._holding[use.task]
        use.returned = now
        if use.sql_since is not None:  # It was closed, not given back.
            use.in_sql += now - use.sql_since
        held = now - use.since
        self.buckets[bisect_left(BUCKETS, held)] += 1
        name = use.route or NO_ROUTE
        route = self.routes.get(name) or self._add_route(name)
        route.add(use, held)
        if use.request is not None:
            uses: dict[str, RouteUse] = use.request.uses
            (uses.get(self.name) or uses.setdefault(self.name, RouteUse())).add(use, held)
        if self.on_wait is not None and self.on_return is not None:
            self.on_wait(use.waited)
            self.on_return(held)
        return use

    def blame(self, use: Use | None, how: str) -> None:
        """Warn, once for each route, of a connection that could not be handed on."""
        route = (use and use.route) or NO_ROUTE
        if (route, how) not in self._blamed and len(self._blamed) < MOST_ROUTES:
            self._blamed.add((route, how))
            place = use and use.place
            logger.warning(
                "%s: %s returned a connection %s, so it is closed; it was taken at %s: end the"
                " transaction, await each statement, and give a task that goes on a session of its"
                " own",
                self.name,
                route,
                how,
                write(*place) if place else "an unknown line",
            )

    def let_go(self, use: Use) -> None:
        """Refer to a task that has ended, and to its request, by name alone.

        Its exception refers to the session that holds the connection.
        """
        record = self._holding.get(use.task)
        if record is not None and use_of(record) is use:
            del self._holding[use.task]
        use.names = Names(use.route, use.request_id, use.task_name)
        use.task = use.request = None

    def _add_route(self, name: str) -> RouteUse:
        return self.routes.setdefault(
            name if len(self.routes) < MOST_ROUTES else OTHERS, RouteUse()
        )

    def opened(self, reason: str, seconds: float) -> None:
        """Note that a connection was opened."""
        self.connects[reason] = self.connects.get(reason, 0) + 1
        if self.on_connect is not None:
            self.on_connect(seconds)

    def ask(self, task: asyncio.Task[Any] | None) -> None:
        """Warn, once for each route, of a task that holds a connection and asks for another."""
        record = self._holding.get(task)
        # One that was invalidated is returned a moment later.
        if record is None or not record.in_use:
            return
        self.warn_of_nested()

    def warn_of_nested(self) -> None:
        """Warn, once for each route, of who holds a connection and asks for another."""
        self.nested += 1
        request = current()
        route = (request and route_of(request.scope)) or NO_ROUTE
        if route not in self._warned and len(self._warned) < MOST_ROUTES:
            self._warned.add(route)
            logger.warning(
                "%s: %s holds a connection and asks for another: when all do so at once, each"
                " waits for the others; pass the first session on, or end it before, at %s",
                self.name,
                route,
                " <- ".join(calling_lines()),
            )

    def leave_loop(self) -> None:
        """Forget the tasks of a loop that has ended."""
        self._holding.clear()


def holder_of(database: str, use: Use, now: float) -> Holder:
    """Describe who holds a connection."""
    running = 0.0 if use.sql_since is None else now - use.sql_since
    now_at = use.waits_at()
    taken_at = (write(*use.place),) if use.place else ()
    return Holder(
        database=database,
        route=use.route,
        request_id=use.request_id,
        task=use.task_name,
        held=now - use.since,
        in_sql=use.in_sql + running,
        statements=use.statements,
        streams=use.streams,
        where=now_at or taken_at,
        is_there=bool(now_at),
        ended=use.ended,
        use=use,
    )


def route_of(scope: Scope) -> str:
    """Name a job, or a request's route by method and template: never by what a client sent."""
    if scope.get("type") == JOB:
        return f"job {scope['name']}"
    template = template_of(scope)
    return f"{scope.get('method', WEBSOCKET)} {template}" if template else NO_ROUTE


def template_of(scope: Scope) -> str | None:
    """Return the path of a request's route as it was declared: `/items/{item_id}`.

    As FastAPI's telemetry has it: behind the mounts and the root path of the application.
    """
    # With the prefix of `include_router` it is only here.
    inner = scope.get("fastapi")
    route = (inner and inner.get("effective_route_context")) or scope.get("route")
    path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return mounts_of(scope) + path if path else None


def mounts_of(scope: Scope) -> str:
    """Return what led to a route: the proxy's prefix, and the mounts as they were declared."""
    root: str = scope.get("root_path", "").rstrip("/")
    if "app_root_path" not in scope:  # Set by the first mount.
        return root
    prefix: str = scope["app_root_path"].rstrip("/")
    names = {value: name for name, value in scope["path_params"].items()}
    taken = root.removeprefix(prefix).split("/")
    return prefix + "/".join("{" + names[each] + "}" if each in names else each for each in taken)


def time_statements(engine: Engine, note: Callable[[Any, str], None]) -> None:
    """Have an engine note, for each checkout, the statements and the seconds that they take.

    `note` is told of each, with its cursor, before it runs.

    SQLAlchemy's events around a statement cost 8 us each time, for they switch on all others;
    this costs 0.5 us.
    """
    event.listen(engine, "invalidate", time_closing)
    dialect = engine.dialect
    methods: Any = dialect  # As it types them, they could not be replaced.
    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        setattr(dialect, name, timed_statement(getattr(methods, name), note))
    for name in ("do_commit", "do_rollback"):
        setattr(dialect, name, timed_end(getattr(methods, name)))


def timed_statement(
    execute: Callable[..., None], note: Callable[[Any, str], None]
) -> Callable[..., None]:
    """Time what runs a statement."""

    def timed(cursor: Any, statement: str, *others: Any) -> None:
        note(cursor, statement)
        use = use_of(others[-1].root_connection.connection)
        if use is None:
            execute(cursor, statement, *others)
            return
        use.statements += 1
        use.streams = getattr(cursor, "server_side", False)  # of asynchronous drivers
        use.sql_since = began = monotonic()
        try:
            execute(cursor, statement, *others)
        finally:  # Another task may have begun, or ended, a statement on it meanwhile.
            use.in_sql += monotonic() - began
            use.sql_since = None

    return timed


def timed_end(end: Callable[[Any], None]) -> Callable[[Any], None]:
    """Time what ends a transaction."""

    def timed(connection: Any) -> None:
        use = use_of(connection)
        if use is None:
            end(connection)
            return
        use.sql_since = began = monotonic()
        try:
            end(connection)
        finally:
            use.in_sql += monotonic() - began
            use.sql_since = None

    return timed


def time_closing(_connection: object, record: ConnectionPoolEntry, _error: object) -> None:
    """Time what closes a connection whose statement was cut short: a server may be asked first."""
    if (use := use_of(record)) is not None:
        use.sql_since = monotonic()


def use_of(connection: Any) -> Use | None:
    """Return the checkout that a connection is on: one of the pool's, and in use."""
    info = getattr(connection, "record_info", None)
    return info.get(KEY) if info else None
