"""How the tables of every database are made; for the declarative bases in `databases/`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer
from sqlalchemy.types import TypeEngine

# Constraints without a name cannot be dropped by a migration. Source: Alembic, "The
# Importance of Naming Constraints".
NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# 64 bits for integers, which SQLite's INTEGER has anyway; times with their time zone.
TYPES: dict[type, TypeEngine[Any]] = {
    int: BigInteger().with_variant(Integer(), "sqlite"),
    datetime: DateTime(timezone=True),
}
