"""The log: a line for each request, and everybody's lines in one form.

JSON for machines, text for people; `LOG_FORMAT` says which. Whoever configures logging on their
own (`uvicorn --log-config`, or a handler on the root logger) keeps what they have.
"""

import json
import logging
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from urllib.parse import quote

from starlette.types import Scope

from .context import RequestContext, request_id
from .errors import NotConfigured
from .settings import LogFormat, environment, read_log_format
from .usage import template_of

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for an answer, as nginx has it."""

LONGEST_PATH = 200
QUIET = {"/livez", "/readyz", "/startupz", "/metrics", "/pools/state"}
"""Asked every few seconds: only what goes wrong there has a line."""
SAFE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")

to_json = json.JSONEncoder(default=str).encode

STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
IN_MESSAGE = {"method", "route", "path", "status", "request_id"}
"""What the text of a request's line says already, or what nobody reads there."""


def take_over_uvicorn() -> None:
    """Give all lines one form, when it is uvicorn that runs the application."""
    server, access = logging.getLogger("uvicorn"), logging.getLogger("uvicorn.access")
    # By its module: whoever does not run uvicorn need not import it.
    ours = any(type(each.formatter).__module__ == "uvicorn.logging" for each in server.handlers)
    if not ours or logging.root.handlers:
        return
    log_format: LogFormat = "json"
    with suppress(NotConfigured):  # `databases.open()` refuses to start, and says why.
        log_format = read_log_format(environment())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter())
    logging.root.addHandler(handler)
    # The service's own lines, as `uvicorn --log-level` says; of libraries, their warnings.
    own = logging.getLogger(__name__.partition(".")[0])
    own.setLevel(logging.getLogger("uvicorn.error").level)
    logger.disabled = not access.handlers  # uvicorn --no-access-log
    for each in (server, access):
        each.handlers.clear()
    server.propagate, access.propagate = True, False


def say(request: RequestContext, status: int) -> None:
    """Write the line of a request: its route, and its path only if it has none, without a query."""
    scope = request.scope
    quiet = status < 400 and scope["path"] in QUIET  # noqa: PLR2004 -- the first of the errors
    level = logging.DEBUG if quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    route = template_of(scope)
    where = {"route": route} if route else {"path": quote(scope["path"])[:LONGEST_PATH]}
    line: dict[str, Any] = {
        "method": scope["method"],
        **where,
        "status": status or CLIENT_LEFT,
        "duration_ms": round(1000 * (monotonic() - request.since), 1),
    }
    if request.uses:
        line["databases"] = {
            name: {
                "statements": each.statements,
                "sql_ms": round(1000 * each.in_sql, 1),
                "held_ms": round(1000 * each.held, 1),
                "waited_ms": round(1000 * each.waited, 1),
            }
            for name, each in request.uses.items()
        }
    message = f"{line['method']} {line.get('route') or line['path']} {line['status']}"
    # Not by logger.info(): that looks for its caller, which costs as much as the rest.
    logger.handle(logger.makeRecord(logger.name, level, "", 0, message, (), None, extra=line))


def find_id(scope: Scope) -> str:
    """Return the id that a request came with, its trace's if it has none, or a new one."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    given = headers.get(b"x-request-id", b"").decode("latin-1")[:64]
    if not given and (trace := headers.get(b"traceparent")):
        given = trace.decode("latin-1").partition("-")[2].partition("-")[0][:32]
    return given if SAFE_ID.fullmatch(given) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with what the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if name := request_id():
            line["request_id"] = name
        line |= extras(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_passwords(to_json(line))


class TextFormatter(logging.Formatter):
    """For people: the time, the level, the message, and what the caller gave as `extra`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Write the first line; a traceback comes below it."""
        fields = {k: v for k, v in extras(record).items() if k not in IN_MESSAGE}
        for name, use in fields.pop("databases", {}).items():
            words = "{statements} in {sql_ms} ms, held {held_ms} ms, waited {waited_ms} ms"
            fields[name] = words.format_map(use)
        return "  ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        return without_passwords(super().format(record))


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the caller gave as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


def without_passwords(text: str) -> str:
    """Hide the passwords of URLs, which only messages of others hold."""
    return PASSWORD.sub(r"\1***@", text) if "://" in text else text
