"""Pooled SQLAlchemy engines for one or many databases.

The template's: `copier update` brings fixes, so change nothing in this package. Databases
are declared in `databases/`.
"""

from .app import install
from .database import Database, Databases
from .dependencies import session_from
from .errors import (
    DatabaseError,
    NotConfigured,
    NotOpen,
    PoolClosed,
    PoolOverloaded,
    PoolTimeout,
    Unreachable,
)
from .exception_handlers import DATABASE_RESPONSES, Problem, problem
from .metadata import NAMING_CONVENTION, TYPES
from .settings import DatabaseSettings

__all__ = [
    "DATABASE_RESPONSES",
    "NAMING_CONVENTION",
    "TYPES",
    "Database",
    "DatabaseError",
    "DatabaseSettings",
    "Databases",
    "NotConfigured",
    "NotOpen",
    "PoolClosed",
    "PoolOverloaded",
    "PoolTimeout",
    "Problem",
    "Unreachable",
    "install",
    "problem",
    "session_from",
]
