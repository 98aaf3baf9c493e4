"""What a check is given, and what it finds."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from ...database.database import Database
from ...settings.database import DatabaseSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. Ids are stable; those with an E fail the check, those with a W do not."""

    id: str
    database: str
    """The database, or the file, in which it was found."""
    text: str
    hint: str = ""

    @property
    def is_error(self) -> bool:
        """Whether this finding fails the check."""
        return ".E" in self.id


@dataclass(frozen=True, slots=True)
class Subject:
    """A database to check, its settings, and an AUTOCOMMIT connection as the service makes them."""

    database: Database
    settings: DatabaseSettings
    connection: AsyncConnection

    def finding(self, id_: str, text: str, hint: str = "") -> Finding:
        """Say what was found in this database."""
        return Finding(id_, self.database.name, text, hint)
