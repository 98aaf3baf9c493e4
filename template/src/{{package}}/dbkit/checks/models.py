"""Whether the models read what the server computes."""

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
