"""Pooled SQLAlchemy engines for one or many databases.

The template's: `copier update` brings fixes, so change nothing in this package. Databases
are declared in `databases/`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app import install
    from .context import job
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
        TransactionAborted,
        Unreachable,
    )
    from .exception_handlers import DATABASE_RESPONSES, Problem, problem
    from .metadata import NAMING_CONVENTION, TYPES
    from .outside import opened
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
    "TransactionAborted",
    "Unreachable",
    "install",
    "job",
    "opened",
    "problem",
    "reader_from",
    "session_from",
]

_MODULES = {
    "install": "app",
    "job": "context",
    "Database": "database",
    "Databases": "databases",
    "reader_from": "dependencies",
    "session_from": "dependencies",
    "DatabaseError": "errors",
    "NotConfigured": "errors",
    "NotOpen": "errors",
    "PoolClosed": "errors",
    "PoolOverloaded": "errors",
    "PoolTimeout": "errors",
    "ReadOnly": "errors",
    "TransactionAborted": "errors",
    "Unreachable": "errors",
    "DATABASE_RESPONSES": "exception_handlers",
    "Problem": "exception_handlers",
    "problem": "exception_handlers",
    "NAMING_CONVENTION": "metadata",
    "TYPES": "metadata",
    "opened": "outside",
    "Reader": "readers",
    "DatabaseSettings": "settings",
    "Holder": "usage",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `manage.py --help` imports none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value
