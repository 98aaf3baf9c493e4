"""Alembic, configured in code: one history per database, in `migrations/<name>/`."""

from .comparing import UNSEEN
from .connecting import LOCK_INTERVAL, connect
from .failures import DIRECTORY, MigrationFailed
from .history import Migration, history
from .running import fake, migrate, sql
from .writing import Differences, compare, make, tidy

__all__ = [
    "DIRECTORY",
    "LOCK_INTERVAL",
    "UNSEEN",
    "Differences",
    "Migration",
    "MigrationFailed",
    "compare",
    "connect",
    "fake",
    "history",
    "make",
    "migrate",
    "sql",
    "tidy",
]
