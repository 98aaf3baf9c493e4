"""Where databases are in development: on servers of the service's own, if they have no URL."""

import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .database import Database
from .errors import EmbeddedFailed, NotConfigured
from .settings import environment
from .urls import EXAMPLES, Dialect


def has_url(database: Database) -> bool:
    """Whether a database has a URL of its own: not embedded, and no SQLite file as declared."""
    declared = database.dialect != "sqlite" and "url" in database.declared
    variables = environment()
    return declared or any(
        f"{database.env_prefix}{name}" in variables for name in ("URL", "URL_FILE")
    )


@contextmanager
def development_servers(databases: Iterable[Database]) -> Generator[None]:
    """Give each database that has no URL one on a server of the service's own, while this lasts.

    Only where the development dependencies are installed: in production, a database without
    a URL is an error. The servers keep their data in .postgres/ and .mariadb/.
    """
    missing: dict[Dialect, list[Database]] = {}
    for database in databases:
        if database.dialect != "sqlite" and not database.replica_of and not has_url(database):
            missing.setdefault(database.dialect, []).append(database)
    if not missing:  # As in production, which has no use for what starts servers.
        yield
        return
    from .embedded import EMBEDDED  # noqa: PLC0415 -- see above

    faults: list[str] = []
    for dialect, theirs in missing.items():
        try:
            EMBEDDED[dialect].find()
        except EmbeddedFailed as error:
            where = f"URL: not set. Where to connect, as {EXAMPLES[dialect]}."
            faults += [*(f"{each.env_prefix}{where}" for each in theirs), str(error)]
    if faults:
        raise NotConfigured(faults)
    with ExitStack() as stack:
        for dialect, theirs in missing.items():
            kind = EMBEDDED[dialect]
            server = stack.enter_context(kind(Path(f".{kind.kind}")))  # Git ignores it.
            for database in theirs:
                server.create_database(database.name)
                url = server.url(database.name).render_as_string(hide_password=False)
                os.environ[f"{database.env_prefix}URL"] = url
        yield
