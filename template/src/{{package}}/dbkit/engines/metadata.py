"""How the tables of every database are made; for the declarative bases in `databases/`."""

from datetime import UTC, datetime, time
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Double, Float, Integer, Time
from sqlalchemy.dialects.mysql import DATETIME, TIME
from sqlalchemy.types import TypeDecorator, TypeEngine

# Constraints without a name cannot be dropped by a migration. Source: Alembic, "The
# Importance of Naming Constraints".
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class NoTimeZone(ValueError):
    """A datetime without a time zone; reported as invalid data (422)."""


class Moment(TypeDecorator[datetime]):
    """A time with its time zone. MySQL and SQLite, which keep none, have it in UTC."""

    # MySQL would cut microseconds off.
    impl = DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone, as asyncpg does; the other drivers drop the zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise NoTimeZone("a time without a time zone")
        return value if dialect.name == "postgresql" else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time its zone back."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


# 64 bits for integers, which SQLite's INTEGER has anyway; times with their time zone. MySQL would
# cut microseconds off, and the eighth digit of a float.
TYPES: dict[type, TypeEngine[Any]] = {
    int: BigInteger().with_variant(Integer(), "sqlite"),
    datetime: Moment(),
    float: Float().with_variant(Double(), "mysql"),
    time: Time().with_variant(TIME(fsp=6), "mysql"),
}
