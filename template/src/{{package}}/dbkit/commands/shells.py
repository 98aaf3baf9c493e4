"""The shell of a database: which program it is, and how it is told where to connect."""

import asyncio
import shutil
import ssl
import sys
from contextlib import suppress
from importlib.util import find_spec

from sqlalchemy import URL

from ..database.database import Database
from ..errors import EmbeddedFailed
from ..settings.credentials import TLS_PARAMETERS, Credentials
from ..settings.server import write_options
from .embedded import find_binaries
from .programs import how_to_install

Shell = tuple[list[str], dict[str, str]]
"""A program to run, and what its environment tells it: arguments are open to every user."""


def way_in(database: Database) -> URL:
    """Return where the database is, with the password and the settings of its sessions."""
    settings = database.read_settings()
    secret = asyncio.run(Credentials(settings.password, settings.password_file).ask())
    url = settings.url.set(password=secret or settings.url.password)
    if database.dialect == "postgresql" and settings.server_settings:
        url = url.update_query_dict({"options": write_options(settings.server_settings)})
    return url


def shell_postgresql(url: URL) -> Shell:
    """Return psql, from the PATH or from the embedded server's folder."""
    psql = shutil.which("psql")
    if psql is None:
        with suppress(EmbeddedFailed):
            psql = shutil.which("psql", path=find_binaries())
    if psql is None:
        sys.exit(not_found("psql"))
    return to_postgresql(psql, url)


def to_postgresql(program: str, url: URL) -> Shell:
    """Return a program of PostgreSQL's, told where to connect."""
    given = {
        "PGHOST": url.host,
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        "PGSSLMODE": url.query.get("ssl"),
        "PGOPTIONS": url.query.get("options"),
        **{f"PG{name.upper()}": url.query.get(name) for name in TLS_PARAMETERS},
    }
    return [program], {name: str(value) for name, value in given.items() if value}


def shell_mysql(url: URL) -> Shell:
    """Return mariadb, or mysql, from the PATH."""
    program = shutil.which("mariadb") or shutil.which("mysql")
    if program is None:
        sys.exit(not_found("mariadb"))
    return to_mysql(program, url)


def to_mysql(program: str, url: URL) -> Shell:
    """Return a program of MariaDB's or MySQL's, told where to connect."""
    authority, folder = url.query.get("sslrootcert"), None
    if authority == "system":
        machine = ssl.get_default_verify_paths()
        authority, folder = machine.cafile, machine.capath
    given = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "socket": url.query.get("unix_socket"),
        "ssl-ca": authority,
        "ssl-capath": folder,
        "ssl-cert": url.query.get("sslcert"),
        "ssl-key": url.query.get("sslkey"),
    }
    options = [f"--{name}={value}" for name, value in given.items() if value]
    password = {"MYSQL_PWD": url.password} if url.password else {}
    return [program, *options, str(url.database)], password


def shell_sqlite(url: URL) -> Shell:
    """Return sqlite3, or Python's own from 3.12 on."""
    if program := shutil.which("sqlite3"):
        return [program, str(url.database)], {}
    if find_spec("sqlite3.__main__") is None:
        sys.exit(not_found("sqlite3"))
    return [sys.executable, "-m", "sqlite3", str(url.database)], {}


def not_found(program: str) -> str:
    """Say which package has a shell that is not there."""
    return f"{program} is not in PATH; to install it: {how_to_install(program)}"


SHELLS = {"postgresql": shell_postgresql, "mysql": shell_mysql, "sqlite": shell_sqlite}
