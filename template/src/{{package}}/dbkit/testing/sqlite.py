"""Databases of tests in files of SQLite."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

from sqlalchemy import URL

from ..database.database import Database
from . import kept
from .home import WORKER, Home


class SqliteHome(Home):
    """Files next to the one that is named; each worker migrates a template of its own."""

    server = sqlite3.sqlite_version

    def __init__(self, database: Database, base: URL, cache: Path | None = None) -> None:
        super().__init__(database, base, cache)
        self.template = self.at(f"{WORKER}_template")

    async def keep(self, file: Path) -> None:
        """Keep the file."""
        made = file.with_suffix(f".{WORKER}")
        shutil.copyfile(str(self.template.database), made)
        kept.replace_kept(made, file)

    async def load(self, file: Path) -> bool:
        """Copy the file that was kept."""
        with contextlib.suppress(FileNotFoundError):  # Another worker has just replaced it.
            shutil.copyfile(file, str(self.template.database))
            return True
        return False

    async def make_template(self) -> None:
        """Migrate an empty file."""
        delete_file(self.template)
        await self.migrate()

    async def copy(self, url: URL) -> None:
        """Make a copy of the template at `url`, in place of what is there."""
        delete_file(url)
        shutil.copyfile(str(self.template.database), str(url.database))

    async def delete(self, url: URL) -> None:
        """Delete a file; open connections keep the data until they close."""
        delete_file(url)

    async def clear(self) -> None:
        """Delete this worker's files."""
        await super().clear()
        delete_file(self.template)


def delete_file(url: URL) -> None:
    """Delete a database of SQLite, and its journal."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{url.database}{suffix}").unlink(missing_ok=True)


HOME = SqliteHome
