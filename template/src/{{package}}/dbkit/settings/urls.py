"""Database URLs as platforms write them, made into what the async drivers take."""

from collections.abc import Callable
from typing import Literal
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .credentials import TLS_PARAMETERS, tls
from .server import parse_options, write_options

Dialect = Literal["postgresql", "mysql", "sqlite"]

DRIVERS: dict[Dialect, str] = {"postgresql": "asyncpg", "mysql": "asyncmy", "sqlite": "aiosqlite"}
EXAMPLES: dict[Dialect, str] = {
    "postgresql": "postgresql://user:password@host:5432/name",
    "mysql": "mysql://user:password@host:3306/name",
    "sqlite": "sqlite:///folder/file.sqlite3",
}
SEVERAL_HOSTS = "postgresql://user:password@/name?host=first:5432&host=second:5432"
ALIASES = {"postgres": "postgresql", "mariadb": "mysql"}

SETTINGS = {
    "connect_timeout": "connect_timeout",
    "pgbouncer": "pgbouncer",
    "options": "server_settings",
}
"""Parameters that are ours, and the settings that they are."""

PARAMETERS: dict[Dialect, set[str]] = {
    # What asyncpg and `tls()` take; libpq's others would be a TypeError at the first connect.
    "postgresql": {
        *("host", "port", "ssl", "sslmode", "target_session_attrs", "gsslib", "krbsrvname"),
        *("passfile", *TLS_PARAMETERS, *SETTINGS),
    },
    # TLS by the words of PostgreSQL; the servers' own programs have others for it.
    "mysql": {"charset", "ssl", "sslmode", "unix_socket", "connect_timeout", *TLS_PARAMETERS},
}
# What platforms and other libraries write, and what it says is so here anyway.
NEEDLESS: dict[str, set[str]] = {
    "channel_binding": set(),  # asyncpg has none; over TLS, `sslmode` decides what is checked.
    "client_encoding": {"utf8", "utf-8", "unicode"},
    "encoding": {"utf8", "utf-8", "unicode"},
    "charset": {"utf8", "utf8mb4"},
    "gssencmode": {"disable", "prefer"},
    "keepalives": {"1"},
    "load_balance_hosts": {"random"},
    "reconnect": set(),
    "serverversion": set(),
    "sslcompression": {"0"},
    "sslnegotiation": {"postgres"},
    "sslsni": {"1"},
    "supa": set(),
    "uselibpqcompat": set(),
    "workaround": set(),
}
# Settings of ours by the names that other libraries have for them.
MEANT = {
    "connection_limit": "POOL_SIZE",
    "pool": "POOL_SIZE",
    "max_connections": "POOL_SIZE",
    "pool_max_conns": "POOL_SIZE",
    "conn_max_age": "POOL_RECYCLE",
    "max_idle_connection_lifetime": "IDLE_TIMEOUT",
    "pool_max_conn_lifetime": "POOL_RECYCLE",
    "pool_max_conn_idle_time": "IDLE_TIMEOUT",
    "connecttimeout": "CONNECT_TIMEOUT",
    "timeout": "CONNECT_TIMEOUT",
    "command_timeout": "STATEMENT_TIMEOUT",
    "read_timeout": "STATEMENT_TIMEOUT",
    "socket_timeout": "STATEMENT_TIMEOUT",
    "statement_timeout": "STATEMENT_TIMEOUT",
    "lock_timeout": "LOCK_TIMEOUT",
    "prepared_statements": "PGBOUNCER=true, behind a pooler",
    "prepare": "PGBOUNCER=true, behind a pooler",
    "preparethreshold": "PGBOUNCER=true, behind a pooler",
    "statement_cache_size": "PGBOUNCER=true, behind a pooler",
    "prepared_statement_cache_size": "PGBOUNCER=true, behind a pooler",
    "server_settings": "SERVER_SETTINGS",
    "pool_size": "POOL_SIZE",
    "max_overflow": "MAX_OVERFLOW",
    "pool_timeout": "POOL_TIMEOUT",
    "pool_recycle": "POOL_RECYCLE",
    "idle_timeout": "IDLE_TIMEOUT",
    "init_command": "SERVER_SETTINGS",
    "sessionvariables": "SERVER_SETTINGS",
}
ADVICE = {
    "hostaddr": "write the address as host",
    "service": "write host, user and database of the service in the URL",
    "keepalives_idle": "the pool has TCP keepalives of its own",
    "keepalives_interval": "the pool has TCP keepalives of its own",
    "keepalives_count": "the pool has TCP keepalives of its own",
    "tcp_user_timeout": "the pool has one of its own",
}

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
MYSQL_SSL_MODES = {
    "disable": "disable",
    "disabled": "disable",
    "false": "disable",
    "require": "require",
    "required": "require",
    "true": "require",
    "accept_invalid_certs": "require",
    "verify-ca": "verify-ca",
    "verify_ca": "verify-ca",
    "verify-full": "verify-full",
    "verify_identity": "verify-full",
    "strict": "verify-full",
    '{"rejectunauthorized":true}': "verify-full",
    '{"rejectunauthorized":false}': "require",
}
MYSQL_SSL_NAMES = ("sslmode", "ssl-mode", "ssl_mode", "sslaccept")
MAX_PORT = 65535


def parse_url(text: str, dialect: Dialect, prefix: str = "DATABASE_") -> URL:
    """Parse a URL for `dialect`; a `ValueError` says what to write, without the URL itself.

    `prefix` begins the names of variables in messages. What of its parameters is a setting of ours
    stays in it, by its name in `SETTINGS`.
    """
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
    translate: dict[Dialect, Callable[[URL], URL]] = {
        "postgresql": postgresql,
        "mysql": mysql,
        "sqlite": lambda url: sqlite(url, prefix),
    }
    url = translate[dialect](url)
    if dialect != "sqlite":
        check_server(url, dialect, prefix)
    try:
        driver_url(url).get_dialect()().create_connect_args(driver_url(url))
    except (ArgumentError, ValueError):
        raise ValueError(f"its hosts or ports cannot be read; {example}") from None
    return url


def settings_in(url: URL) -> dict[str, str]:
    """Return the settings of ours that a parsed URL holds."""
    return {field: str(url.query[name]) for name, field in SETTINGS.items() if name in url.query}


def driver_url(url: URL) -> URL:
    """Return a parsed URL without what is not for the driver."""
    return url.difference_update_query([*TLS_PARAMETERS, *SETTINGS])


def postgresql(url: URL) -> URL:
    """Translate libpq's parameters to asyncpg's, or to ours."""
    query = without_needless(url)
    # A password in the query would be shown: SQLAlchemy masks only the one before the host.
    url = url.set(
        username=str(query.pop("user", "")) or url.username,
        password=str(query.pop("password", "")) or url.password,
        database=str(query.pop("dbname", "")) or url.database,
        host=unquote(url.host or "") or None,  # libpq writes the folder of a socket as %2Frun.
    )
    if mode := query.pop("sslmode", None):
        query["ssl"] = mode
    if (mode := query.get("ssl")) and mode not in SSL_MODES:
        raise ValueError(f"sslmode is one of {', '.join(SSL_MODES)}")
    if "," in (url.host or ""):
        raise ValueError(f"names several hosts; write them as {SEVERAL_HOSTS}")
    options = parse_options(str(query.pop("options", "")))
    for name, setting in (
        ("fallback_application_name", "application_name"),
        ("application_name", "application_name"),
        ("schema", "search_path"),  # Prisma's
        ("currentSchema", "search_path"),  # JDBC's
        ("search_path", "search_path"),  # pgx's
    ):
        if name in query:
            options[setting] = str(query.pop(name))
    if options:
        query["options"] = write_options(options)
    return url.set(query=query)


def mysql(url: URL) -> URL:
    """Translate what platforms write to asyncmy's parameters."""
    query = without_needless(url)
    if "charset" in query:
        raise ValueError("parameter charset is utf8mb4 or left out")
    for written in MYSQL_SSL_NAMES:
        if mode := query.pop(written, None):
            query["ssl"] = mode
    for written, name in (("ca", "rootcert"), ("cert", "cert"), ("key", "key")):
        if file := query.pop(f"ssl_{written}", None):
            query[f"ssl{name}"] = file
    # mysqlclient's and PyMySQL's, which TiDB and others write.
    checks = [str(query.pop(f"ssl_verify_{each}", "")).lower() for each in ("cert", "identity")]
    if "true" in checks:
        query["ssl"] = "verify-full" if checks[1] == "true" else "verify-ca"
    if mode := query.get("ssl"):
        if (word := str(mode).lower().replace(" ", "")) not in MYSQL_SSL_MODES:
            raise ValueError("sslmode is one of disable, require, verify-ca, verify-full")
        query["ssl"] = MYSQL_SSL_MODES[word]
    return url.set(query=query)


def without_needless(url: URL) -> dict[str, str | tuple[str, ...]]:
    """Return the parameters but those that say what is so anyway."""
    query = dict(url.query)
    for name, value in url.query.items():
        sound = NEEDLESS.get(name.lower())
        if sound is not None and (not sound or str(value).lower() in sound):
            del query[name]
    return query


def check_server(url: URL, dialect: Dialect, prefix: str) -> None:
    """Refuse what would only fail at the first connect: parameters, ports and files."""
    if unknown := sorted(url.query.keys() - PARAMETERS[dialect]):
        name = unknown[0]
        if variable := MEANT.get(name.lower()):
            raise ValueError(f"parameter {name} is not taken here; set {prefix}{variable}")
        if advice := ADVICE.get(name):
            raise ValueError(f"parameter {name} is not taken here; {advice}")
        raise ValueError(
            f"parameter {name} is not known here; it takes"
            f" {', '.join(sorted(PARAMETERS[dialect]))}; settings of the server go in"
            f" {prefix}SERVER_SETTINGS"
        )
    if not url.database:
        raise ValueError(f"names no database; write it as {EXAMPLES[dialect]}")
    if url.port is not None and not 1 <= url.port <= MAX_PORT:
        raise ValueError(f"has port {url.port}; ports go from 1 to {MAX_PORT}")
    tls(url)


def sqlite(url: URL, prefix: str) -> URL:
    """Ask for a file: each connection of a pool would have a memory of its own."""
    if url.host:
        raise ValueError(f"names a host: it lacks a third slash; write it as {EXAMPLES['sqlite']}")
    if url.database in (None, "", ":memory:"):
        raise ValueError(f"names no file; write it as {EXAMPLES['sqlite']}")
    if url.query:
        raise ValueError(
            f"has parameters, and takes none; write it as {EXAMPLES['sqlite']}, and PRAGMAs in"
            f" {prefix}SERVER_SETTINGS"
        )
    return url


def hosts(url: URL) -> list[URL]:
    """Return the URLs of one server each, of a URL that may name several."""
    named = url.query.get("host", "")
    return [url] if isinstance(named, str) else [url.update_query_dict({"host": h}) for h in named]


def shown(url: URL) -> str:
    """Write a URL for people: without its password, and of its parameters, only where it leads."""
    where = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    url = url.set(drivername=url.get_backend_name(), query=where)
    return url.render_as_string(hide_password=True)
