"""Pooled SQLAlchemy engines for one or many databases.

The template's: `copier update` brings fixes, so change nothing in this package. Databases
are declared in `databases/`.
"""

from .app import install
from .database import Database
from .databases import Databases
from .dependencies import reader_from, session_from
from .errors import (
    DatabaseError,
    NotConfigured,
    NotOpen,
    PoolClosed,
    PoolOverloaded,
    PoolTimeout,
    ReadOnly,
    Unreachable,
)
from .exception_handlers import DATABASE_RESPONSES, Problem, problem
from .metadata import NAMING_CONVENTION, TYPES
from .readers import Reader
from .settings import DatabaseSettings
from .usage import Holder

__all__ = [
    "DATABASE_RESPONSES",
    "NAMING_CONVENTION",
    "TYPES",
    "Database",
    "DatabaseError",
    "DatabaseSettings",
    "Databases",
    "Holder",
    "NotConfigured",
    "NotOpen",
    "PoolClosed",
    "PoolOverloaded",
    "PoolTimeout",
    "Problem",
    "ReadOnly",
    "Reader",
    "Unreachable",
    "install",
    "problem",
    "reader_from",
    "session_from",
]
