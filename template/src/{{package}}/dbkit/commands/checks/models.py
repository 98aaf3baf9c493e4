"""Whether what the service declares works: its models, and its setup of connections."""

from collections.abc import AsyncGenerator
from typing import Any

from sqlalchemy import Column, Dialect, Table
from sqlalchemy.orm import Mapper

from .finding import Finding, Subject

SHOWN = 5
"""Columns that a finding names."""


async def check_models(subject: Subject) -> AsyncGenerator[Finding]:
    """Find columns that a flush leaves unread: using them afterwards raises `MissingGreenlet`."""
    base, dialect = subject.database.base, subject.connection.dialect
    if base is None:
        return
    unread = sorted({each for mapper in base.registry.mappers for each in find(mapper, dialect)})
    if unread:
        more = [f"{len(unread) - SHOWN} more"] if len(unread) > SHOWN else []
        yield subject.finding(
            "models.W001",
            "the server computes columns that are not read back after a write, so that using them"
            f" raises MissingGreenlet: {', '.join(unread[:SHOWN] + more)}",
            'give the declarative base `__mapper_args__ = {"eager_defaults": True}`, and so each'
            " model that has __mapper_args__ of its own",
        )


async def check_on_connect(subject: Subject) -> AsyncGenerator[Finding]:
    """Open a connection as the pool does; what the setup needs may come with a migration."""
    database = subject.database
    if database.on_connect is None:
        return
    engine = database.connecting(subject.settings, on_connect=database.on_connect)
    try:
        async with engine.connect():
            pass
    except Exception as error:  # noqa: BLE001 -- it is the service's own
        yield subject.finding(
            "database.E005",
            f"on_connect fails: {str(error).partition(chr(10))[0] or type(error).__name__}",
            "the service cannot use a connection; apply pending migrations first, or correct it",
        )


def find(mapper: Mapper[Any], dialect: Dialect) -> list[str]:
    """List what SQLAlchemy does not read after an INSERT or UPDATE."""
    eager = mapper.base_mapper.eager_defaults
    if eager is True:
        return []
    inserts_read = eager == "auto" and dialect.insert_returning
    tables: Any = [each for each in mapper.tables if isinstance(each, Table)]
    columns: list[Column[Any]] = [column for table in tables for column in table.columns]
    return [
        str(column)
        for column in columns
        if is_computed_at_update(column)
        or (not inserts_read and not column.primary_key and is_computed_at_insert(column))
    ]


def is_computed_at_insert(column: Column[Any]) -> bool:
    """Whether the server computes a value that an INSERT leaves out."""
    default = column.default
    return column.server_default is not None or bool(default and default.is_clause_element)


def is_computed_at_update(column: Column[Any]) -> bool:
    """Whether the server computes a new value at each UPDATE."""
    onupdate = column.onupdate
    return column.server_onupdate is not None or bool(onupdate and onupdate.is_clause_element)
