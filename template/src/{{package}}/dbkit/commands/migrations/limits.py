"""Columns that MariaDB, MySQL or SQLite take, and keep less of than the model says."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Index, Interval

LIMITS = "migrations.W013"

MYSQL = {
    "DATETIME": ("microseconds", "mysql.DATETIME(fsp=6)"),
    "TIME": ("microseconds", "mysql.TIME(fsp=6)"),
    "TIMESTAMP": ("microseconds", "mysql.TIMESTAMP(fsp=6)"),
    "FLOAT": ("digits after the seventh", "Double()"),
    "NUMERIC": ("digits after the point", "Numeric(precision, scale)"),
    "DECIMAL": ("digits after the point", "Numeric(precision, scale)"),
}
"""What is lost by a type without precision, and the type to use."""

DIGITS = 15
"""Decimal digits that SQLite, whose numbers are doubles, keeps."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A column or index that the server keeps less of than the model says, or does not take."""

    name: str
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name} {self.text}; use {self.advice}"


def digits(type_: str) -> float:
    """Return how many decimal digits a type may hold."""
    number = re.fullmatch(r"(?:NUMERIC|DECIMAL)(?:\((\d+).*\))?", type_)
    if not number:
        return 0
    return int(number[1]) if number[1] else float("inf")


def of_indexes(indexes: Iterable[Index], dialect: Any) -> Iterator[Limit]:
    """Yield the indexes that a server does not take."""
    for index in indexes:
        if getattr(dialect, "is_mariadb", False) and not is_plain(index):
            text = "is an index on an expression, which MariaDB does not have"
            yield Limit(str(index.name), text, "a generated column, with an index on that")


def is_plain(index: Index) -> bool:
    """Whether an index is on columns alone."""
    return all(isinstance(getattr(each, "element", each), Column) for each in index.expressions)


def of_columns(columns: Iterable[Column[Any]], dialect: Any) -> Iterator[Limit]:
    """Yield the columns that a server does not keep as the model says."""
    for column in columns:
        type_: str = dialect.type_compiler_instance.process(column.type)
        name = f"{column.table.name}.{column.name}"
        if dialect.name == "mysql" and isinstance(column.type, Interval):
            text = f"is {type_} there, and loses microseconds"
            yield Limit(name, text, "a BigInteger of microseconds")
        elif dialect.name == "mysql" and type_ in MYSQL:
            lost, advice = MYSQL[type_]
            yield Limit(name, f"is {type_} there, and loses {lost}", advice)
        elif dialect.name == "sqlite" and digits(type_) > DIGITS:
            text = f"is {type_} there, and loses digits after the {DIGITS}th"
            yield Limit(name, text, f"Numeric(precision, scale) of up to {DIGITS} digits")
        if column.computed and not column.nullable and getattr(dialect, "is_mariadb", False):
            text = "is generated and NOT NULL, which MariaDB does not take"
            yield Limit(name, text, "nullable=True")
