"""`manage.py dump` and `load`: all of a database in one file, by the server's own programs."""

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

from alembic.util import CommandError
from sqlalchemy import text

from ..database.database import Database
from ..errors import EmbeddedFailed
from .embedded import find_binaries
from .servers import connected, recreate
from .shells import Shell, not_found, to_mysql, to_postgresql, way_in

ENDS = {"postgresql": b"PostgreSQL database dump complete", "mysql": b"-- Dump completed"}
"""What the last lines of a whole dump say."""
NEW = b"SET transaction_timeout = 0;"
"""What pg_dump writes since 17, and servers before that refuse."""
CLEAR = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN
        SELECT nspname FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
    CREATE SCHEMA public;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
END $$
"""


def dump(database: Database, file: Path) -> None:
    """Save a database in a new file, which only its owner can read; `CommandError` if it fails."""
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "r+b") as out:
        try:
            if database.dialect == "sqlite":
                copy(path_of(database), file)
            elif database.dialect == "mysql":
                program = of_mysql(database, "mariadb-dump", "mysqldump")
                (_, *options), told = to_mysql(program, way_in(database))
                own = ["--single-transaction", "--routines", "--no-tablespaces"]
                run(database, ([program, *own, *options], told), output=out)
            else:
                version = asyncio.run(postgresql_version(database))
                program = of_postgresql(database, "pg_dump", version)
                _, told = to_postgresql(program, way_in(database))
                run(database, ([program, "--no-owner", "--no-privileges"], told), output=out)
                out.seek(0)
                place = out.read(4096).find(NEW)
                if version < 17 and place >= 0:  # noqa: PLR2004 -- see above
                    out.seek(place)
                    out.write(b"-- ")  # In place of `SET`.
        except BaseException:
            file.unlink()
            raise


def load(database: Database, file: Path) -> None:
    """Replace what a database holds; `CommandError` if it fails.

    If it does, PostgreSQL and SQLite keep what they held. On MariaDB and MySQL, which cannot, that
    is gone; so the file is looked at first: whether it is a whole dump.
    """
    if database.dialect == "sqlite":
        copy(file, path_of(database))
        return
    with file.open("rb") as dumped:
        dumped.seek(max(0, file.stat().st_size - 500))
        if ENDS[database.dialect] not in dumped.read():
            raise CommandError(
                f"{database.name}: {file} is no whole dump of {database.dialect}: nothing was done"
            )
        dumped.seek(0)
        if database.dialect == "mysql":
            program = of_mysql(database, "mariadb", "mysql")
            asyncio.run(recreate(database))
            run(database, to_mysql(program, way_in(database)), given=dumped)
        else:
            version = asyncio.run(postgresql_version(database))
            program = of_postgresql(database, "psql", version)
            _, told = to_postgresql(program, way_in(database))
            options = ["--no-psqlrc", "--quiet", "--single-transaction", "-v", "ON_ERROR_STOP=1"]
            command = [program, *options, "--command", CLEAR, "--file", "-"]
            run(database, (command, told), given=dumped)


def copy(source: Path, target: Path) -> None:
    """Copy a SQLite database, also while others use either; `CommandError` if it is none."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            if old.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise CommandError(f"{source} is damaged: nothing was done")
            old.backup(new)
    except sqlite3.Error as error:
        raise CommandError(f"{source}: {error}") from error


def path_of(database: Database) -> Path:
    """Return the file of a SQLite database."""
    return Path(database.read_settings().url.database or "")


async def postgresql_version(database: Database) -> int:
    """Return the server's version, as 18."""
    async with connected(database) as connection:
        number = await connection.scalar(text("SHOW server_version_num"))
    return int(str(number)) // 10_000


def of_postgresql(database: Database, name: str, version: int) -> str:
    """Find a program of PostgreSQL's that knows a server of that version: the oldest there is."""
    folders = [None, f"/usr/lib/postgresql/{version}/bin"]
    with suppress(EmbeddedFailed):
        folders.append(str(find_binaries()))
    found = {
        int(number[1]): program
        for folder in folders
        if (program := shutil.which(name, path=folder))
        and (number := re.search(r"(\d+)", said(program)))
    }
    if fitting := [each for each in found if each >= version]:
        return found[min(fitting)]
    there = f"{name} is of {', '.join(map(str, found))}" if found else f"there is no {name}"
    raise CommandError(
        f"{database.name}: its server is PostgreSQL {version}, and {there}: install"
        f" postgresql-client-{version}, or the development dependencies, which have one: uv sync"
    )


def said(program: str) -> str:
    """Return what a program says of its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)  # noqa: S603 -- ours
    return done.stdout


def of_mysql(database: Database, *names: str) -> str:
    """Find MariaDB's program, or MySQL's, first that of the server."""

    async def is_mariadb() -> bool:
        async with connected(database) as connection:
            return "MariaDB" in str(await connection.scalar(text("SELECT VERSION()")))

    mine = names if asyncio.run(is_mariadb()) else names[::-1]
    if program := next(filter(None, map(shutil.which, mine)), None):
        return program
    raise CommandError(f"{database.name}: {not_found(names[0])}")


def run(
    database: Database,
    shell: Shell,
    *,
    given: IO[bytes] | None = None,
    output: IO[bytes] | None = None,
) -> None:
    """Run a program; `CommandError` with what it said if it fails."""
    command, told = shell
    done = subprocess.run(  # noqa: S603 -- a program that was found
        command,
        env={**os.environ, **told},
        stdin=given or subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise CommandError(f"{database.name}: {lines[0]}")
