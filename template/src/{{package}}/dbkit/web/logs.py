"""The log: one line for each request, and one format for all loggers.

JSON for machines, text for people; `LOG_FORMAT` says which. Whoever configures logging on their
own (`uvicorn --log-config`, or a handler on the root logger) keeps what they have.
`LOG_TRACEBACKS` says how much of a traceback is written.
"""

import json
import logging
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ..clock import monotonic
from ..context import RequestContext, job_name, request_id
from ..errors import NotConfigured
from ..loggers import logger_named
from ..pool.usage import template_of
from ..settings.database import LogFormat, environment, read_full_tracebacks, read_log_format
from .tracebacks import write_traceback

logger = logger_named("logs")
failures = logger_named("logs.errors")

CLIENT_LEFT = 499
"""The status of a request whose client did not wait for an answer, as nginx has it."""

LONGEST_PATH = 200
QUIET = {"/livez", "/readyz", "/startupz", "/metrics", "/pools/state"}
"""Asked every few seconds: only what goes wrong there has a line."""
SAFE_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")

SHORT_ID = 8
"""Characters of a request's id in the text; what is longer is in JSON."""
SERVERS = (
    *("uvicorn", "uvicorn.error", "uvicorn.access", "hypercorn.error", "hypercorn.access"),
    *("gunicorn.error", "gunicorn.access", "_granian", "granian.access"),
)
"""The loggers of servers."""

to_json = json.JSONEncoder(default=str).encode

STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
IN_MESSAGE = {"method", "route", "path", "status", "request_id", "database", "sqlstate", "where"}
"""What the text of a request's line says already, or what nobody reads there."""


def take_over() -> None:
    """Give all lines one form: the server's, the service's and those of libraries.

    Called when the application starts, and at its first request, for hypercorn makes its loggers in
    between. Whatever the server, its lines go to the root logger, and its access log is left out:
    the request's line says more. A handler that somebody chose stays: one on the root logger, one
    that writes to a file, or uvicorn's with another formatter.
    """
    server = logging.getLogger("uvicorn")
    chosen = any(type(each.formatter).__module__ != "uvicorn.logging" for each in server.handlers)
    if chosen or any(not is_ours(each) for each in logging.root.handlers):
        return
    if not logging.root.handlers:
        logging.root.addHandler(new_handler())
        own = logging.getLogger(__name__.partition(".")[0])
        if server.handlers:  # uvicorn --log-level, of libraries their warnings, and --no-access-log
            own.setLevel(logging.getLogger("uvicorn.error").level)
            logger.disabled = not logging.getLogger("uvicorn.access").handlers
        elif own.level == logging.NOTSET:
            own.setLevel(logging.INFO)
        # uvicorn logs errors, also as gunicorn's worker.
        failures.disabled = bool(server.handlers or logging.getLogger("uvicorn.error").handlers)
    for name in SERVERS:
        log = logging.getLogger(name)
        # A list of its own: gunicorn's worker for uvicorn shares gunicorn's.
        log.handlers = [each for each in log.handlers if type(each) is not logging.StreamHandler]
        log.propagate = not name.endswith("access")


def new_handler() -> logging.Handler:
    """Make the handler of all lines, in the form that the environment asks for."""
    log_format: LogFormat = "json"
    full = True
    with suppress(NotConfigured):  # `databases.open()` refuses to start, and says why.
        log_format = read_log_format(environment())
        full = read_full_tracebacks(environment(), log_format)
    handler = logging.StreamHandler()
    as_text = log_format == "text"
    handler.setFormatter(TextFormatter(full=full) if as_text else JsonFormatter(full=full))
    handler.addFilter(is_new)
    return handler


def is_ours(handler: logging.Handler) -> bool:
    """Whether a handler writes in our form."""
    return isinstance(handler.formatter, TextFormatter | JsonFormatter)


def say_failed(error: Exception) -> None:
    """Log an error that nobody has handled, where it is not uvicorn that does."""
    if any(is_ours(each) for each in logging.root.handlers):
        failures.error("Exception in ASGI application", exc_info=error)


def is_new(record: logging.LogRecord) -> bool:
    """Whether a server's record repeats nothing: a line of its own, or an error of `say_failed`."""
    if failures.disabled or not record.name.startswith(("hypercorn", "gunicorn", "_granian")):
        return True
    if any(type(each) is logging.StreamHandler for each in logging.getLogger(record.name).handlers):
        return False
    return not record.exc_info and "raised an exception" not in str(record.msg)  # as Granian has it


def say(request: RequestContext, status: int) -> None:
    """Log a finished request by its route, or by its path (no query) if no route matched."""
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


def find_id(headers: dict[bytes, bytes]) -> str:
    """Return the id that a request came with, its trace's if it has none, or a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")[:64]
    if not given and (trace := headers.get(b"traceparent")):
        given = trace.decode("latin-1").partition("-")[2].partition("-")[0][:32]
    return given if given and SAFE_ID.fullmatch(given) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with what the caller gave as `extra`."""

    def __init__(self, *, full: bool = True) -> None:
        super().__init__()
        self.full = full

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
        if job := job_name():
            line["job"] = job
        line |= extras(record)
        if record.exc_info:
            line["exception"] = write_exception(record, full=self.full)
        return without_passwords(to_json(line))


class TextFormatter(logging.Formatter):
    """For people: the time, the level, the message, and what the caller gave as `extra`."""

    def __init__(self, *, full: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self.full = full

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Write the first line; a traceback comes below it."""
        fields = {k: v for k, v in extras(record).items() if k not in IN_MESSAGE}
        for name, use in fields.pop("databases", {}).items():
            words = "{statements} in {sql_ms} ms, held {held_ms} ms, waited {waited_ms} ms"
            fields[name] = words.format_map(use)
        words = [super().formatMessage(record).rstrip(), *(f"{k}={v}" for k, v in fields.items())]
        if name := request_id():
            # As holders of connections are shown.
            words.append(f"[{job_name() or name[:SHORT_ID]}]")
        return "  ".join(words)

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        if record.exc_info:
            record.exc_text = write_exception(record, full=self.full)
        return without_passwords(super().format(record))


def write_exception(record: logging.LogRecord, *, full: bool) -> str:
    """Write the traceback of a record."""
    error = record.exc_info[1] if record.exc_info else None
    return write_traceback(error, full=full) if error is not None else ""


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the caller gave as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


def without_passwords(text: str) -> str:
    """Hide the passwords of URLs, which only messages of others hold."""
    return PASSWORD.sub(r"\1***@", text) if "://" in text else text
