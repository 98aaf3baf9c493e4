"""Where databases are in development: a PostgreSQL without a URL is an embedded one."""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from .database import Database
from .embedded import EmbeddedPostgres, find_binaries
from .errors import EmbeddedFailed, NotConfigured
from .settings import environment

EMBEDDED = Path(".postgres")  # in the project's folder, ignored by git


def has_url(database: Database) -> bool:
    """Whether a database has a URL of its own: not embedded, and no SQLite file as declared."""
    declared = database.dialect != "sqlite" and "url" in database.declared
    variables = environment()
    return declared or any(
        f"{database.env_prefix}{name}" in variables for name in ("URL", "URL_FILE")
    )


@contextmanager
def development_servers(databases: Iterable[Database]) -> Generator[None]:
    """Give each PostgreSQL database that has no URL an embedded one, for as long as it lasts.

    Only where the development dependencies are installed: in production, a database without
    a URL is an error.
    """
    missing = [
        database
        for database in databases
        if database.dialect == "postgresql" and not has_url(database) and not database.replica_of
    ]
    if not missing:
        yield
        return
    try:
        find_binaries()
    except EmbeddedFailed as error:
        faults = [f"{database.env_prefix}URL: not set" for database in missing]
        raise NotConfigured([*faults, str(error)]) from None
    with EmbeddedPostgres(EMBEDDED) as server:
        for database in missing:
            server.create_database(database.name)
            url = server.url(database.name).render_as_string(hide_password=False)
            os.environ[f"{database.env_prefix}URL"] = url
        yield
