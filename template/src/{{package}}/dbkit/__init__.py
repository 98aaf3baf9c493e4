"""Pooled SQLAlchemy engines for one or many databases.

The template's: `copier update` brings fixes, so change nothing in this package. Databases
are declared in `databases/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .commands.outside import opened
    from .context import job
    from .database.database import Database
    from .database.databases import Databases
    from .database.readers import Reader
    from .engines.metadata import NAMING_CONVENTION, TYPES
    from .errors import (
        DatabaseError,
        Holder,
        NotConfigured,
        NotOpen,
        PoolClosed,
        PoolOverloaded,
        PoolTimeout,
        ReadOnly,
        TransactionAborted,
        Unreachable,
    )
    from .settings.database import DatabaseSettings
    from .web.dependencies import reader_from, session_from, sync_session_from
    from .web.install import install
    from .web.problems import DATABASE_RESPONSES, Problem, problem

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
    "TransactionAborted",
    "Unreachable",
    "install",
    "job",
    "opened",
    "problem",
    "reader_from",
    "session_from",
    "sync_session_from",
]

_NAMES = {
    "commands.outside": "opened",
    "context": "job",
    "database.database": "Database",
    "database.databases": "Databases",
    "database.readers": "Reader",
    "engines.metadata": "NAMING_CONVENTION TYPES",
    "errors": "DatabaseError Holder NotConfigured NotOpen PoolClosed PoolOverloaded PoolTimeout"
    " ReadOnly TransactionAborted Unreachable",
    "settings.database": "DatabaseSettings",
    "web.dependencies": "reader_from session_from sync_session_from",
    "web.install": "install",
    "web.problems": "DATABASE_RESPONSES Problem problem",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `manage.py --help` imports none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value
