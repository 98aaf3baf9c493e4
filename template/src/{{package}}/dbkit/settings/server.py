"""Settings of the server for each connection: PostgreSQL's parameters, session variables, PRAGMAs.

They are written as libpq's `options` are: `-c search_path=app,public -c work_mem=64MB`, where `-c`
may be left out, and a backslash precedes a space that belongs to a value.
"""

import re
from collections.abc import Iterator, Mapping

# Which of our own settings decides.
OURS = {
    "statement_timeout": "STATEMENT_TIMEOUT",
    "max_statement_time": "STATEMENT_TIMEOUT",
    "max_execution_time": "STATEMENT_TIMEOUT",
    "lock_timeout": "LOCK_TIMEOUT",
    "lock_wait_timeout": "LOCK_TIMEOUT",
    "innodb_lock_wait_timeout": "LOCK_TIMEOUT",
    "busy_timeout": "LOCK_TIMEOUT",
    "idle_in_transaction_session_timeout": "IDLE_IN_TRANSACTION_TIMEOUT",
    "idle_transaction_timeout": "IDLE_IN_TRANSACTION_TIMEOUT",
    "client_connection_check_interval": "CLIENT_CHECK_INTERVAL",
}
FIXED = {
    "client_encoding": "the driver speaks UTF-8",
    "autocommit": "the pool sets it",
    "time_zone": "times are stored in UTC",
    "sql_mode": "without TRADITIONAL, values that do not fit are cut",
    "foreign_keys": "they are always checked",
}
FIXED_ON = {"mysql": {"autocommit", "time_zone", "sql_mode"}, "sqlite": {"foreign_keys"}}
FIXED_ON["postgresql"] = {"client_encoding"}

TRACKED = {"application_name", "datestyle", "standard_conforming_strings", "timezone"}
"""What PgBouncer sets anew for each transaction, in every version."""
ROUTING = {"endpoint", "project", "reference"}
"""What tells a platform's proxy whose database is meant; it takes them as they are."""

TOKEN = re.compile(r"(?:\\.|[^\s\\])+")
NAME = re.compile(r"[A-Za-z_][\w.]*")


def parse_options(text: str) -> dict[str, str]:
    """Parse `-c name=value` and the like; a `ValueError` says what is no setting."""
    found: dict[str, str] = {}
    routing: list[str] = []
    for token in TOKEN.findall(text):
        if token == "-c":  # noqa: S105 -- no password
            continue
        name, equals, value = token.removeprefix("-c").partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
        if not equals or not NAME.fullmatch(name):
            raise ValueError("write settings of the server as -c name=value -c name=value")
        if name in ROUTING:
            routing.append(token)
        else:
            found[name.lower()] = re.sub(r"\\(.)", r"\1", value)
    if routing:
        found["options"] = " ".join(routing)
    return found


def write_options(settings: Mapping[str, str]) -> str:
    """Write settings so that `parse_options` reads them."""
    written = [
        value if name == "options" else f"-c {name}=" + re.sub(r"([\s\\])", r"\\\1", value)
        for name, value in settings.items()
    ]
    return " ".join(written)


def find_faults(
    settings: Mapping[str, str], dialect: str, prefix: str, *, pgbouncer: bool
) -> Iterator[str]:
    """Say which settings cannot be set so, and what to do instead."""
    for name in settings:
        if name in OURS:
            yield f"{name} is set by {prefix}{OURS[name]}, in seconds"
        elif name in FIXED_ON[dialect]:
            yield f"{name} cannot be set: {FIXED[name]}"
        elif pgbouncer and name not in TRACKED:
            yield (
                f"{name} cannot be set with {prefix}PGBOUNCER=true: the next transaction may be on"
                f" another connection to the server; ALTER ROLE ... SET {name} = ... holds for all"
            )
