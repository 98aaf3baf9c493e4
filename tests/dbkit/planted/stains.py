"""Tests with real commits, each of which leaves something behind and finds nothing of the others.

`test_testing.py` copies this to a rendered service, and runs it.
"""
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

import pytest
from my_service.databases.primary import primary
from my_service.items.models import Item
from sqlalchemy import Connection, func, inspect, select, text

STAINS = [
    "SELECT 1",
    "INSERT INTO items (name, quantity) VALUES ('stain', 1)",
    "DELETE FROM alembic_version",
    "UPDATE alembic_version SET version_num = 'stain'",
    "CREATE TABLE stain (id int)",
    "CREATE VIEW stain AS SELECT 1 AS one",
    "ALTER TABLE items ADD COLUMN stain int",
    "DROP TABLE items",
]
ON_POSTGRESQL = [
    "ALTER SEQUENCE items_id_seq RESTART WITH 5",
    "TRUNCATE items",
    "CREATE FUNCTION stain() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE RULE stain AS ON DELETE TO items DO INSTEAD NOTHING",
    "CREATE TEMPORARY TABLE items (id serial, name text, quantity int)",
    "SET default_transaction_read_only = on",
    "SET ROLE pg_monitor",
    "SELECT pg_advisory_lock(1)",
    "LISTEN stain",
    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()""",
]
ALL = [*STAINS, *(ON_POSTGRESQL if primary.dialect == "postgresql" else []), "SELECT 2"]
FOUND: list[Any] = []


def schema(connection: Connection) -> list[Any]:
    there = inspect(connection)
    columns = [column["name"] for column in there.get_columns("items")]
    return [sorted(there.get_table_names()), there.get_view_names(), columns]


async def state() -> list[Any]:
    async with primary.engine.connect() as connection:
        found = [*await connection.run_sync(schema), primary.pool.size()]
        found.append(await connection.scalar(text("SELECT version_num FROM alembic_version")))
        if primary.dialect == "postgresql":
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            locks += (
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            channels = "SELECT count(*) FROM pg_listening_channels()"
            user = "SELECT current_user"
            found += [await connection.scalar(text(each)) for each in (locks, channels, user)]
    async with primary.session() as session:
        found.append(await session.scalar(select(func.count()).select_from(Item)))
        session.add(item := Item(name="first", quantity=1))
        await session.flush()
        return [*found, item.id]


@pytest.mark.committed
@pytest.mark.parametrize("stain", ALL)
async def test_finds_what_migrations_made(databases: Any, stain: str) -> None:
    assert primary.pool.size() == 10
    FOUND.append(await state())
    assert FOUND[-1] == FOUND[0]
    assert FOUND[-1][-2:] == [0, 1]

    primary.pool.resize(3, 0)
    autocommit = primary.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.exec_driver_sql(stain)


@pytest.mark.committed
@pytest.mark.parametrize("turn", [1, 2])
async def test_is_not_copied_anew_for_rows(databases: Any, turn: int) -> None:
    """The connection is even that of the test before."""
    async with primary.engine.connect() as connection:
        FOUND.append((await connection.get_raw_connection()).driver_connection)
        await connection.execute(text("INSERT INTO items (name, quantity) VALUES ('a', 1)"))
        await connection.commit()
    assert turn == 1 or primary.dialect != "postgresql" or FOUND[-1] is FOUND[-2]
