"""Settings of one database: read from the environment, named as a person types them.

The environment comes first, then `.env`, then what `Database(...)` declares, then the
defaults below. An empty variable counts as absent.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Le, MinLen
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from sqlalchemy import URL

from ..errors import NotConfigured
from .credentials import Password, read_secret
from .misspelt import is_fault, meant_for
from .misspelt import misspelt as find_misspelt
from .server import find_faults, parse_options
from .urls import EXAMPLES, SETTINGS, Dialect, parse_url, settings_in

LONGEST_SHOWN = 30

LogFormat = Literal["json", "text"]


def secret(value: Any) -> Any:
    """Hide a password that is written."""
    return SecretStr(value) if isinstance(value, str) else value


Url = Annotated[URL, PlainValidator(lambda value: value)]
Secret = Annotated[Password | None, PlainValidator(secret)]


class Declared(TypedDict, total=False):
    """Settings that `Database(...)` may declare and the environment may override."""

    url: str
    url_file: str
    password: Callable[[], str | Awaitable[str]]
    password_file: str
    required: bool
    required_at_start: bool
    pool_size: int
    max_overflow: int
    pool_timeout: float
    pool_recycle: float
    sync_pool_size: int
    echo: bool
    min_ready: int
    idle_timeout: float
    keepalive: float
    ping_after: float
    ping_timeout: float
    queue_target: float
    queue_interval: float
    max_waiting: int
    breaker_threshold: int
    drain_timeout: float
    leak_after: float
    connect_timeout: float
    statement_timeout: float
    lock_timeout: float
    idle_in_transaction_timeout: float
    client_check_interval: float
    server_settings: Mapping[str, str]
    pgbouncer: bool
    fallback: bool
    max_lag: float
    read_your_writes: bool


class DatabaseSettings(BaseModel):
    """Connection and pool settings; named as in `create_engine()` where it has the setting."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    url: Url
    """Where to connect, as `postgresql://user:password@host:5432/name` or `sqlite:///file`."""
    url_file: str = ""
    """A file that contains the URL, such as a mounted secret."""
    password: Secret = Field(default=None, repr=False)
    """The password, if the URL has none."""
    password_file: str = ""
    """A file that contains the password; it is read at each connect, so it may change."""
    pgbouncer: bool = False
    """Whether the URL leads to PgBouncer, or a similar pooler, in transaction mode."""
    required: bool = True
    """Whether the service is unready while this database is down."""
    required_at_start: bool = False
    """Whether the service refuses to start while this database is down."""
    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections kept open by each process."""
    max_overflow: int = Field(default=0, ge=0, le=1000)
    """Connections beyond `pool_size` that each process may open under pressure."""
    pool_timeout: float = Field(default=5, ge=0.05, le=300)
    """Seconds to wait for a free connection."""
    pool_recycle: float = Field(default=1800, ge=10, le=86400)
    """Seconds after which a connection is replaced, less up to a fifth."""
    sync_pool_size: int = Field(default=5, ge=1, le=1000)
    """Additional connections that synchronous code of each process may open."""
    echo: bool = False
    """Log every statement with its parameters; for development."""
    statement_timeout: float = Field(default=30, ge=0, le=86400)
    """Seconds after which the server cancels a statement; 0 disables it."""
    lock_timeout: float = Field(default=5, ge=0, le=86400)
    """Seconds after which the server gives up waiting for a lock; 0 disables it."""
    min_ready: int = Field(default=1, ge=0, le=1000)
    """Connections opened at startup, and kept open."""
    idle_timeout: float = Field(default=60, ge=1, le=86400)
    """Seconds after which an idle connection beyond `pool_size` is closed."""
    keepalive: float = Field(default=30, ge=0, le=86400)
    """Seconds between pings of an idle connection; 0 disables them."""
    ping_after: float = Field(default=1, ge=0, le=86400)
    """Seconds of idle time after which a connection is pinged before use."""
    ping_timeout: float = Field(default=1, ge=0.05, le=60)
    """Seconds to wait for the answer to a ping."""
    queue_target: float = Field(default=0.05, ge=0, le=60)
    """Seconds of waiting above which a standing queue is shed; 0 disables shedding."""
    queue_interval: float = Field(default=0.5, ge=0.01, le=60)
    """Seconds for which all waits must exceed `queue_target` before requests are shed."""
    max_waiting: int = Field(default=1000, ge=1, le=100_000)
    """Requests that may wait at the same time; further ones are shed."""
    breaker_threshold: int = Field(default=3, ge=1, le=100)
    """Failed connects in a row after which requests are rejected at once."""
    drain_timeout: float = Field(default=10, ge=0, le=3600)
    """Seconds to wait at shutdown for connections in use."""
    leak_after: float = Field(default=30, ge=0, le=86400)
    """Seconds after which a connection in use is logged with its route and line; 0 disables it."""
    connect_timeout: float = Field(default=5, ge=0.1, le=300)
    """Seconds to wait for the server to accept a connection."""
    idle_in_transaction_timeout: float = Field(default=60, ge=0, le=86400)
    """Seconds after which the server ends an idle transaction; 0 disables it."""
    client_check_interval: float = Field(default=1, ge=0, le=3600)
    """Seconds between the server's checks for a lost client during a statement; 0 disables them."""
    server_settings: Mapping[str, str] = {}
    """Other server settings for each connection, such as `-c search_path=app,public`."""
    fallback: bool = True
    """Whether reads go to the primary while a replica is down or too far behind."""
    max_lag: float = Field(default=10, ge=0, le=1800)
    """Seconds of lag above which a replica is not read; 0 disables the limit."""
    read_your_writes: bool = True
    """Whether a client that has written reads the primary until the replica has caught up."""

    @property
    def max_connections(self) -> int:
        """Most connections that the pool of one process can hold."""
        return self.pool_size + self.max_overflow


def environment() -> dict[str, str]:
    """Return the variables that are set, `.env` below the process's own."""
    set_: dict[str, str] = {}
    for source in (dotenv_values(".env"), os.environ):
        set_ |= {name: value.strip() for name, value in source.items() if value and value.strip()}
    return set_


def read_settings(
    variables: Mapping[str, str],
    *,
    prefix: str,
    dialect: Dialect,
    declared: Declared,
    name: str = "",
) -> DatabaseSettings:
    """Read the settings of the database `name`; raise `NotConfigured` with every fault."""
    faults = [
        f"{variable}: unknown; did you mean {nearest}?"
        for variable, nearest in misspelt(variables, [prefix]).items()
        if is_fault(variable, [prefix])
    ]
    values: dict[str, Any] = {**declared}
    for field in DatabaseSettings.model_fields:
        if (value := variables.get(prefix + field.upper())) is not None:
            values[field] = value
    faults += read_secrets(variables, prefix, dialect, values)
    url: URL | None = values.get("url")
    if url:  # Its parameters come after variables, and before what is declared.
        found = settings_in(url)
        values |= {each: found[each] for each in found if prefix + each.upper() not in variables}
    sources: dict[str, Mapping[str, str]] = {}
    try:
        sources = read_server_settings(variables, prefix, declared, url)
    except ValueError as error:
        faults.append(f"{prefix}SERVER_SETTINGS: {error}")
    values["server_settings"] = {k: v for each in sources.values() for k, v in each.items()}
    if dialect == "sqlite":  # It takes none; platforms set some for every database.
        values |= {"password": None, "password_file": ""}
    if not values.get("url"):
        unread = ", ".join(meant_for(variables, name, prefix, dialect))
        hint = f" Nothing reads {unread}; is that what you mean?" if unread else ""
        faults.append(
            f"{prefix}URL: not set. Where to connect, as {EXAMPLES[dialect]}."
            f" In development, `manage.py runserver` and `opened(databases)` need none.{hint}"
        )
        values["url"] = URL.create(dialect)
    try:
        settings = DatabaseSettings.model_validate(values)
    except ValidationError as error:
        faults += [fault(variables, prefix, dict(each)) for each in error.errors()]
        raise NotConfigured(faults) from None  # Its text would hold the values again.
    for source, theirs in sources.items():
        wrong = find_faults(theirs, dialect, prefix, pgbouncer=settings.pgbouncer)
        faults += [f"{prefix}{source}: {each}" for each in wrong]
    if faults:
        raise NotConfigured(faults)
    return settings


def read_server_settings(
    variables: Mapping[str, str], prefix: str, declared: Declared, url: URL | None
) -> dict[str, Mapping[str, str]]:
    """Read the settings of the server by where they stand, the last of which wins."""
    own = declared.get("server_settings", {})
    if not isinstance(own, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] -- typed by people
        raise ValueError('declare them as {"search_path": "app,public"}')  # noqa: TRY004 -- a fault
    return {
        "SERVER_SETTINGS, as declared": {name.lower(): str(own[name]) for name in own},
        "URL": parse_options(settings_in(url).get("server_settings", "") if url else ""),
        "SERVER_SETTINGS": parse_options(variables.get(f"{prefix}SERVER_SETTINGS", "")),
    }


def read_log_format(variables: Mapping[str, str]) -> LogFormat:
    """Read how the log is written; unless set, as text on a terminal and as JSON elsewhere."""
    match variables.get("LOG_FORMAT"):
        case None:
            return "text" if sys.stderr.isatty() else "json"
        case "json" | "text" as log_format:
            return log_format
        case other:
            raise NotConfigured([f"LOG_FORMAT: {shown(other)} is neither json nor text."])


def read_full_tracebacks(variables: Mapping[str, str], log_format: LogFormat) -> bool:
    """Read whether tracebacks are logged whole; unless set, in JSON and not in text."""
    match variables.get("LOG_TRACEBACKS"):
        case None:
            return log_format == "json"
        case "full" | "short" as extent:
            return extent == "full"
        case other:
            raise NotConfigured([f"LOG_TRACEBACKS: {shown(other)} is neither full nor short."])


def origins(prefix: str, declared: Declared, url: URL) -> dict[str, str]:
    """Say where each setting comes from: `environment`, `.env`, `URL`, `declared`, `default`."""
    sources = {"environment": os.environ, ".env": dotenv_values(".env")}
    found: dict[str, str] = {}
    for field in DatabaseSettings.model_fields:
        name = f"{prefix}{field.upper()}"
        set_ = (each for each, values in sources.items() if (values.get(name) or "").strip())
        otherwise = "declared" if field in declared else "default"
        found[field] = next(set_, "URL" if field in settings_in(url) else otherwise)
    return found


def read_secrets(
    variables: Mapping[str, str], prefix: str, dialect: Dialect, values: dict[str, Any]
) -> Iterator[str]:
    """Put the URL in the place of its text or its file; yield what is wrong with the secrets."""
    sound = URL.create(dialect)  # In the place of a URL whose fault has been said.
    for field in ("url", "password"):
        variable = prefix + field.upper()
        if variable in variables:
            if f"{variable}_FILE" in variables:
                yield f"{variable}_FILE: {variable} is set too; unset one of them"
            values.pop(f"{field}_file", None)  # as declared
        elif file := values.get(f"{field}_file"):
            try:
                values[field] = read_secret(file)
            except ValueError as error:
                yield f"{variable}_FILE: {error}"
                values[field] = sound
    if values.get("url", sound) is not sound:
        try:
            values["url"] = parse_url(str(values["url"]), dialect, prefix)
        except ValueError as error:
            yield f"{prefix}URL{'_FILE' if values.get('url_file') else ''}: {error}"
            values["url"] = sound
    if values.get("url") and values["url"].password:
        yield from settle(values["url"].password, variables, prefix, values)


def settle(
    held: str, variables: Mapping[str, str], prefix: str, values: dict[str, Any]
) -> Iterator[str]:
    """Settle on the password that the URL holds, also before a callable: development sets URLs."""
    if values.get("password_file"):
        yield f"{prefix}PASSWORD_FILE: the URL holds a password too; leave one of them out"
    elif held != variables.get(f"{prefix}PASSWORD", held):  # Platforms set both.
        yield f"{prefix}PASSWORD: the URL holds another one; leave one of them out"
    values["password"] = None


def misspelt(
    variables: Iterable[str], prefixes: Iterable[str], names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Map each variable that looks like a database's setting, and is none, to the nearest."""
    return find_misspelt(variables, prefixes, DatabaseSettings.model_fields, names)


def fault(
    variables: Mapping[str, str],
    prefix: str,
    error: Mapping[str, Any],
    model: type[BaseModel] = DatabaseSettings,
) -> str:
    """Say what is wrong with one setting, what it means, and its bounds."""
    (field,) = error["loc"]
    variable = f"{prefix}{field.upper()}"
    if error["type"] == "extra_forbidden":
        nearest = get_close_matches(field, list(model.model_fields), 1)
        return f"{variable}: {field} is declared, but unknown" + "".join(
            f"; did you mean {each}?" for each in nearest
        )
    info = model.model_fields[field]
    if error["type"] == "missing":
        return f"{variable}: not set. {info.description}"
    value = "the value" if info.annotation is str else shown(error["input"])
    in_url = " or in the URL" if field in SETTINGS.values() else ""
    source = "" if variable in variables else f", as declared{in_url},"
    return f"{variable}: {value}{source} is not {expected(info)}. {explain(info)}"


def shown(value: object) -> str:
    """Show a value that is short, and no URL pasted to the wrong place with its password."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN and "@" not in text else "the value"


def expected(info: FieldInfo) -> str:
    """Name the values that a setting takes: `an integer from 1 to 1000`."""
    if info.annotation is bool:
        return "true or false"
    if info.annotation is str:
        least = next(m.min_length for m in info.metadata if isinstance(m, MinLen))
        return f"{least} characters or more"
    low = next((m.ge for m in info.metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in info.metadata if isinstance(m, Le)), None)
    noun = "an integer" if info.annotation is int else "a number"
    return f"{noun} from {low} to {high}"


def explain(info: FieldInfo) -> str:
    """Say what a setting means, with its unit, and its default."""
    if info.is_required() or info.default == "":
        return f"{info.description}"
    default = str(info.default).lower() if info.annotation is bool else info.default
    return f"{info.description} Default: {default}."
