"""A role for a service that reads and writes rows, and owns no table."""

import base64
import getpass
import hashlib
import hmac
import os
import sys

from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ..database.database import Database
from .servers import connected

ROWS = "SELECT, INSERT, UPDATE, DELETE"
ROUNDS = 4096
"""As many as PostgreSQL's own."""
RELATIONS = text("""
SELECT oid::regclass::text AS name, relkind = 'S' AS is_sequence FROM pg_class
WHERE relnamespace = ANY (CAST(:schemas AS text[])::regnamespace[])
AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND pg_has_role(relowner, 'USAGE')
""")
"""What belongs to the user, or to a role that it is in."""


async def grant(database: Database, role: str) -> str:
    """Let a role read and write all rows, also of later tables; make it if it is not there."""
    if database.dialect == "sqlite":
        raise CommandError(
            f"{database.name}: SQLite has no roles: its file has an owner and a mode"
        )
    async with connected(database) as connection:
        if role == (connection.engine.url.username or ""):
            raise CommandError(f"{database.name}: {role} is the user of the URL: name another role")
        make = on_postgresql if database.dialect == "postgresql" else on_mysql
        is_new = await make(database, connection, role)
    return f"{'created' if is_new else 'granted again to'} {role}: it reads and writes rows"


def ask_password(role: str) -> str:
    """Ask for the password of a new role, or read it from the input."""
    terminal = sys.stdin.isatty()
    password = getpass.getpass(f"Password of {role}: ") if terminal else sys.stdin.readline()
    if not (password := password.rstrip("\r\n")):
        raise CommandError(f"{role} is new: give its password on the terminal, or as the input")
    return password


async def on_postgresql(database: Database, connection: AsyncConnection, role: str) -> bool:
    """Make the role and its rights; return whether it is new."""
    assert database.base is not None  # noqa: S101 -- it is migrated
    quote = connection.dialect.identifier_preparer.quote_identifier
    if not await connection.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL")):
        raise CommandError(
            f"{database.name}: first run `manage.py migrate --database {database.name}`,"
            " as the user who is to own the tables"
        )
    count = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
    is_new = not await connection.scalar(count, {"name": role})
    here = await connection.scalar(text("SELECT current_schema()"))
    schemas = {each.schema or here for each in database.base.metadata.tables.values()} | {here}
    url, to = connection.engine.url, quote(role)
    grants = [f"GRANT CONNECT ON DATABASE {quote(url.database or '')} TO {to}"]
    for schema in map(quote, sorted(schemas)):
        later = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT"
        grants += [
            f"GRANT USAGE ON SCHEMA {schema} TO {to}",
            f"{later} {ROWS} ON TABLES TO {to}",
            f"{later} USAGE, SELECT ON SEQUENCES TO {to}",
        ]
    for each in await connection.execute(RELATIONS, {"schemas": [*map(quote, schemas)]}):
        rights = "USAGE, SELECT ON SEQUENCE" if each.is_sequence else f"{ROWS} ON"
        grants.append(f"GRANT {rights} {each.name} TO {to}")
    grants.append(f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {to}")
    if is_new:
        # The server gets no password that it could log.
        grants.insert(0, f"CREATE ROLE {to} LOGIN PASSWORD '{verifier(ask_password(role))}'")
    for each in grants:
        await connection.exec_driver_sql(each)
    return is_new


def verifier(password: str) -> str:
    """Return what PostgreSQL keeps of a password (RFC 5803)."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    first, second, third = (base64.b64encode(each).decode() for each in parts)
    return f"SCRAM-SHA-256${ROUNDS}:{first}${second}:{third}"


async def on_mysql(_database: Database, connection: AsyncConnection, role: str) -> bool:
    """Make the user and its rights, which are those of the database and so of all its tables."""
    there = text("SELECT count(*) FROM information_schema.user_privileges WHERE grantee = :name")
    is_new = not await connection.scalar(there, {"name": f"'{role}'@'%'"})
    if is_new:
        create = text("CREATE USER :role@'%' IDENTIFIED BY :password")
        await connection.execute(create, {"role": role, "password": ask_password(role)})
    # In the name of a database, they are patterns.
    name = (connection.engine.url.database or "").replace("_", r"\_").replace("%", r"\%")
    quoted = connection.dialect.identifier_preparer.quote_identifier(name)
    rights = f"{ROWS}, CREATE TEMPORARY TABLES"  # In which `check` compares definitions.
    await connection.execute(text(f"GRANT {rights} ON {quoted}.* TO :role@'%'"), {"role": role})
    return is_new
