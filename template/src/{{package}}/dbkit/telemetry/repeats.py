"""N+1 in development: one line of the service that asks the same again and again in one request.

Under `manage.py runserver` alone; elsewhere nothing of this is installed, and costs nothing.
"""

import os
import re
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from sqlalchemy import Engine

from ..callsites import calling_place, write
from ..context import RequestContext, current
from ..loggers import logger_named
from ..pool.usage import route_of

logger = logger_named("usage")

RUNSERVER = "RUNSERVER_APP"
"""The variable by which `runserver` tells its processes what to import."""
ENOUGH = 5
"""Values with which one line asks the same, from which on it is named; as Sentry has it."""
SCOPE = "dbkit.repeats"
"""Where the scope of a request has its statements."""

VALUE = r"(?:\$\d+|\?|%s|%\(\w+\)s)"
NAME = r"([\w.\"`]+)"
COMPARED = re.compile(rf"{NAME} *= *{VALUE}|{VALUE}(?:::\w+)? *= *{NAME}")
"""What one statement for all values would have in `in_()`."""
INTENDED = re.compile(
    rf"\bFOR (?:UPDATE|SHARE|NO KEY|KEY)\b|\bOFFSET\b|[<>]=? *{VALUE}.*\b(?:LIMIT|FETCH)\b",
    re.IGNORECASE | re.DOTALL,
)
"""Rows that are locked in turn, and tables that are read page by page."""

named: set[tuple[str, CodeType, int]] = set()
"""The lines that have had their warning."""


@dataclass(slots=True)
class Repeat:
    """The executions of one statement at one line, in one request."""

    advice: str
    values: set[int] = field(default_factory=set[int])
    """The different parameters, by their hash."""


def is_watching() -> bool:
    """Whether this process is one of `runserver`."""
    return RUNSERVER in os.environ


def watch(engine: Engine, name: str) -> None:
    """Note the statements that an engine runs, but for those that are run natively."""
    dialect: Any = engine.dialect  # As SQLAlchemy types its methods, none could be replaced.
    execute = dialect.do_execute

    def noted(cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        note(name, context)
        execute(cursor, statement, parameters, context)

    if is_watching():
        dialect.do_execute = noted


def note(name: str, context: Any) -> None:
    """Note a statement of database `name`, before it runs."""
    statement: str = context.statement
    request = current()
    if request is None or request.scope["type"] != "http":
        return
    if not statement.startswith("SELECT") or INTENDED.search(statement):
        return
    options = context.execution_options.get("_sa_orm_load_options")
    if getattr(options, "_refresh_state", None) is not None:
        return  # What the database has computed for a row that was written.
    if (compared := COMPARED.search(statement)) and (place := calling_place()):
        noted: dict[Any, Repeat] = request.scope.setdefault(SCOPE, {})
        key = (name, statement, place)
        if key not in noted:
            advice = f"select all at once, by {compared[1] or compared[2]}.in_(...)"
            if getattr(options, "_lazy_loaded_from", None) is not None:
                advice = advice_for(context)
            noted[key] = Repeat(advice)
        noted[key].values.add(hash(str(context.parameters)))


def advice_for(context: Any) -> str:
    """Say by which option a relationship is loaded with its objects."""
    loaded = context.invoked_statement._compile_options._current_path.prop  # noqa: SLF001 -- told nowhere else
    option = "selectinload" if loaded.uselist else "joinedload"
    return f"load {loaded} with its objects, by options({option}({loaded}))"


def say_repeats(request: RequestContext) -> None:
    """Warn, once for each line, of what a request has asked again and again."""
    noted: dict[Any, Repeat] = request.scope.get(SCOPE, {})
    for (name, _, place), repeat in noted.items():
        if len(repeat.values) >= ENOUGH and (name, *place) not in named:
            named.add((name, *place))
            logger.warning(
                "%s: %s runs the same statement %d times with different values, at %s: %s",
                name,
                route_of(request.scope),
                len(repeat.values),
                write(*place),
                repeat.advice,
            )
