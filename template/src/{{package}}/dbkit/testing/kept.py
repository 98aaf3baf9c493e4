"""What the migrations of a database have made, kept in pytest's cache for the next runs.

`pytest --cache-clear` forgets it, and so does any change to the folder of the migrations.
"""

import asyncio
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sqlalchemy import URL

from ..commands.embedded import find_binaries
from ..commands.migrations import DIRECTORY
from ..database.database import Database
from ..errors import EmbeddedFailed


def kept_file(cache: Path, database: Database, server: str) -> Path:
    """Name the file for what these migrations make on a `server` of this version."""
    digest = sha256(server.encode())
    for path in sorted((DIRECTORY / database.name).rglob("*.py")):
        digest.update(f"\n{path}\n".encode() + path.read_bytes())
    return cache / f"{database.name}-{digest.hexdigest()[:16]}"


async def dump(url: URL, file: Path) -> None:
    """Keep a database of PostgreSQL; nothing is kept where there is no pg_dump that can."""
    made = file.with_suffix(f".{os.getpid()}")
    options = ("--no-owner", "--no-privileges", f"--file={made}")
    if await run("pg_dump", url, *options):
        replace_kept(made, file)


async def load(url: URL, file: Path) -> bool:
    """Make an empty database of PostgreSQL what was kept; return whether it is."""
    options = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction")
    return await run("psql", url, *options, f"--file={file}")


def replace_kept(made: Path, file: Path) -> None:
    """Put a new file in the place of what was kept of the same database."""
    name = file.name.rpartition("-")[0]
    for old in file.parent.glob(f"{name}-{'?' * 16}"):
        old.unlink(missing_ok=True)
    made.replace(file)


async def run(program: str, url: URL, *options: str) -> bool:
    """Run one of PostgreSQL's programs on a database; return whether it did what it should."""
    with suppress(EmbeddedFailed):
        program = shutil.which(program, path=find_binaries()) or program
    variables = {
        "PGHOST": url.host,
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
    }
    environment = {**os.environ, **{name: str(value) for name, value in variables.items() if value}}
    nowhere = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            program, *options, env=environment, stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
    except OSError:  # There is no such program.
        return False
    return await process.wait() == 0
