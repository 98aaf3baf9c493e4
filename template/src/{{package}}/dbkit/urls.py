"""Database URLs as platforms write them, made into what the async drivers take."""

from typing import Literal
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .credentials import TLS_PARAMETERS, tls

Dialect = Literal["postgresql", "mysql", "sqlite"]

DRIVERS: dict[Dialect, str] = {"postgresql": "asyncpg", "mysql": "asyncmy", "sqlite": "aiosqlite"}
EXAMPLES: dict[Dialect, str] = {
    "postgresql": "postgresql://user:password@host:5432/name",
    "mysql": "mysql://user:password@host:3306/name",
    "sqlite": "sqlite:///folder/file.sqlite3",
}
SEVERAL_HOSTS = "postgresql://user:password@/name?host=first:5432&host=second:5432"
ALIASES = {"postgres": "postgresql", "mariadb": "mysql"}

PARAMETERS: dict[Dialect, set[str]] = {
    # What asyncpg and `tls()` take; libpq's others would be a TypeError at the first connect.
    "postgresql": {
        *("host", "port", "ssl", "sslmode", "target_session_attrs", "gsslib", "krbsrvname"),
        *TLS_PARAMETERS,
    },
    # TLS by the words of PostgreSQL; the servers' own programs have others for it.
    "mysql": {"charset", "ssl", "sslmode", "unix_socket", *TLS_PARAMETERS},
}
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
MYSQL_SSL_MODES = {
    "disable": "disable",
    "disabled": "disable",
    "require": "require",
    "required": "require",
    "true": "require",
    "verify-ca": "verify-ca",
    "verify_ca": "verify-ca",
    "verify-full": "verify-full",
    "verify_identity": "verify-full",
}
MAX_PORT = 65535


def parse_url(text: str, dialect: Dialect) -> URL:
    """Parse a URL for `dialect`; a `ValueError` says what to write, without the URL itself."""
    example = f"write it as {EXAMPLES[dialect]}"
    malformed = f"not a database URL; {example} (percent-encode special characters in the password)"
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise ValueError(malformed) from None
    # What holds an "@" more is taken for a host, a database or a parameter, and would be shown.
    if dialect != "sqlite" and (text.count("@") > 1 or "@" in (url.database or "")):
        raise ValueError(malformed)
    backend, _, driver = url.drivername.lower().partition("+")
    backend = ALIASES.get(backend, backend)
    if backend != dialect:
        raise ValueError(f"is for {backend}, but this database is {dialect}; {example}")
    if driver and driver != DRIVERS[dialect]:
        raise ValueError(
            f"driver {driver} cannot work here; write {dialect}:// or {dialect}+{DRIVERS[dialect]}://"
        )
    url = url.set(drivername=f"{dialect}+{DRIVERS[dialect]}")
    if twice := [
        name for name, value in url.query.items() if name != "host" and not isinstance(value, str)
    ]:
        raise ValueError(f"parameter {twice[0]} is given twice")
    url = {"postgresql": postgresql, "mysql": mysql, "sqlite": sqlite}[dialect](url)
    if dialect != "sqlite":
        check_server(url, dialect)
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        raise ValueError(f"its hosts or ports cannot be read; {example}") from None
    return url


def postgresql(url: URL) -> URL:
    """Translate libpq's parameters to asyncpg's, or to ours."""
    query = dict(url.query)
    # A password in the query would be shown: SQLAlchemy masks only the one before the host.
    url = url.set(
        username=str(query.pop("user", "")) or url.username,
        password=str(query.pop("password", "")) or url.password,
        database=str(query.pop("dbname", "")) or url.database,
        host=unquote(url.host or "") or None,  # libpq writes the folder of a socket as %2Frun.
    )
    # asyncpg has no channel binding; over TLS, `sslmode` decides what is checked.
    query.pop("channel_binding", None)
    if mode := query.pop("sslmode", None):
        query["ssl"] = mode
    if (mode := query.get("ssl")) and mode not in SSL_MODES:
        raise ValueError(f"sslmode is one of {', '.join(SSL_MODES)}")
    if "," in (url.host or ""):
        raise ValueError(f"names several hosts; write them as {SEVERAL_HOSTS}")
    return url.set(query=query)


def mysql(url: URL) -> URL:
    """Translate what platforms write to asyncmy's parameters."""
    query = dict(url.query)
    if str(query.pop("charset", "utf8mb4")).lower() not in {"utf8mb4", "utf8"}:
        raise ValueError("parameter charset is utf8mb4 or left out")
    for written in ("sslmode", "ssl-mode", "ssl_mode"):
        if mode := query.pop(written, None):
            query["ssl"] = mode
    for written, name in (("ca", "rootcert"), ("cert", "cert"), ("key", "key")):
        if file := query.pop(f"ssl_{written}", None):
            query[f"ssl{name}"] = file
    if mode := query.get("ssl"):
        if str(mode).lower() not in MYSQL_SSL_MODES:
            raise ValueError("sslmode is one of disable, require, verify-ca, verify-full")
        query["ssl"] = MYSQL_SSL_MODES[str(mode).lower()]
    return url.set(query=query)


def check_server(url: URL, dialect: Dialect) -> None:
    """Refuse what would only fail at the first connect: parameters, ports and files."""
    if unknown := sorted(url.query.keys() - PARAMETERS[dialect]):
        raise ValueError(
            f"parameter {unknown[0]} is not known here; it takes"
            f" {', '.join(sorted(PARAMETERS[dialect]))}"
        )
    if not url.database:
        raise ValueError(f"names no database; write it as {EXAMPLES[dialect]}")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise ValueError(f"has port {url.port}; ports go from 1 to {MAX_PORT}")
    tls(url)


def sqlite(url: URL) -> URL:
    """Ask for a file: each connection of a pool would have a memory of its own."""
    if url.host:
        raise ValueError(f"names a host: it lacks a third slash; write it as {EXAMPLES['sqlite']}")
    if url.database in (None, "", ":memory:"):
        raise ValueError(f"names no file; write it as {EXAMPLES['sqlite']}")
    if url.query:
        raise ValueError(f"has parameters, and takes none; write it as {EXAMPLES['sqlite']}")
    return url


def shown(url: URL) -> str:
    """Write a URL for people: without its password, and of its parameters, only where it leads."""
    where = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    url = url.set(drivername=url.get_backend_name(), query=where)
    return url.render_as_string(hide_password=True)
