"""What is sent to the server, counted on the wire; and statements without a session."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, assert_type

import pytest
from asyncpg import (  # pyright: ignore[reportMissingTypeStubs] -- it has none
    ConnectionDoesNotExistError,
    InterfaceError,
)
from dbkit import Database
from mariadb import MariaDB
from pool_proxy import Proxy
from shop import Item, fill
from sqlalchemy import URL, CursorResult, Result, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from waiting import until

Act = Callable[[Database], Awaitable[object]]


async def read_by_key(database: Database) -> None:
    await database.reader.get(Item, 1)


async def read_in_a_session(database: Database) -> None:
    async with database.session() as session:
        await session.get(Item, 1)


async def read_from_the_driver(database: Database) -> None:
    async with database.driver_connection() as connection:
        await connection.fetchrow("SELECT id, label FROM items WHERE id = $1", 1)


async def stream(database: Database) -> None:
    async with database.reader.stream(select(Item.id)) as result:
        await result.all()


async def write_one_statement(database: Database) -> None:
    await database.execute(update(Item).values(quantity=3).where(Item.id == 1))


async def insert_in_a_session(database: Database) -> None:
    async with database.session() as session:
        session.add(Item(name=f"item {await read_count(database)}"))


async def change_in_a_session(database: Database) -> None:
    async with database.session() as session:
        item = await session.get_one(Item, 1)
        item.quantity += 1


async def read_count(database: Database) -> int:
    return await database.reader.scalar(select(func.count(Item.id))) or 0


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (read_by_key, 1),
        (read_count, 1),
        (read_from_the_driver, 1),
        (read_in_a_session, 3),  # BEGIN, SELECT, COMMIT
        (stream, 4),  # BEGIN, open the cursor, fetch, ROLLBACK
        (write_one_statement, 1),
        (insert_in_a_session, 4),  # the count, BEGIN, INSERT, COMMIT
        (change_in_a_session, 4),  # BEGIN, SELECT, UPDATE, COMMIT
    ],
)
async def test_round_trips(database_url: URL, act: Act, expected: int) -> None:
    async with Proxy(database_url) as proxy:
        url = proxy.url.render_as_string(hide_password=False)
        async with Database("shop", "postgresql", url=url, pool_size=1).open() as database:
            await fill(database)
            await act(database)  # A statement is prepared once on each connection.
            before = proxy.round_trips
            await act(database)

            assert proxy.round_trips - before == expected


@pytest.mark.parametrize(
    ("act", "before", "expected"),
    [
        (read_by_key, read_count, 1),
        (read_count, read_by_key, 1),
        (read_count, read_in_a_session, 2),  # SET AUTOCOMMIT
        (read_in_a_session, read_in_a_session, 3),  # SELECT, COMMIT, ROLLBACK
        (read_in_a_session, read_count, 4),  # SET AUTOCOMMIT
        (stream, read_count, 1),
        (write_one_statement, read_count, 1),
        (change_in_a_session, change_in_a_session, 4),  # SELECT, UPDATE, COMMIT, ROLLBACK
    ],
)
async def test_round_trips_on_mariadb(
    mariadb: MariaDB, act: Act, before: Act, expected: int
) -> None:
    async with Proxy(await asyncio.to_thread(mariadb.new_database)) as proxy:
        url = proxy.url.render_as_string(hide_password=False)
        async with Database("shop", "mysql", url=url, pool_size=1).open() as database:
            await fill(database)
            await before(database)
            sent = proxy.round_trips
            await act(database)

            assert proxy.round_trips - sent == expected


async def test_a_single_write_is_committed_and_says_what_it_did(database: Database) -> None:
    inserted = await database.execute(insert(Item).values(name="table"))
    changed = await database.execute(update(Item).values(quantity=3).where(Item.id < 3))
    removed = await database.execute(
        delete(Item).where(Item.id == 3).returning(Item.id, Item.name, Item.quantity)
    )

    assert_type(inserted, CursorResult[*tuple[Any, ...]])
    assert inserted.inserted_primary_key == (3,)
    assert changed.rowcount == 2
    assert_type(removed, Result[int, str, int])
    row = removed.one()
    assert (row.id, row.name, row.quantity) == (3, "table", 0)
    assert await database.reader.scalar(select(func.sum(Item.quantity))) == 6
    assert database.pool.checkedout() == 0


async def test_a_single_write_may_return_objects(database: Database) -> None:
    result = await database.execute(insert(Item).values(name="table").returning(Item))

    item = result.scalar_one()
    assert_type(item, Item)
    assert (item.id, item.name) == (3, "table")


async def test_a_single_write_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await database.execute(insert(Item).values(name="lamp"))

    assert await read_count(database) == 2
    assert database.pool.checkedout() == 0


async def test_the_driver_is_counted_by_the_pool(database: Database) -> None:
    async with database.driver_connection() as connection:
        assert connection
        assert database.pool.checkedout() == 1

    assert database.pool.checkedout() == 0


async def test_the_driver_says_itself_that_its_connection_was_cut(database_url: URL) -> None:
    url = database_url.render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, drain_timeout=0).open() as database:

        async def sleep() -> None:
            async with database.driver_connection() as connection:
                await connection.execute("SELECT pg_sleep(60)")

        sleeps = asyncio.create_task(sleep())
        await until(lambda: database.pool.checkedout() == 1)
        await database.stop()
        with pytest.raises((ConnectionDoesNotExistError, InterfaceError)):
            await sleeps


async def test_a_transaction_left_open_in_the_driver_goes_with_its_connection(
    database_url: URL,
) -> None:
    url = database_url.render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, pool_size=1).open() as database:
        await fill(database)
        async with database.driver_connection() as connection:
            await connection.execute("BEGIN; DELETE FROM items WHERE id = 2")

        assert await read_count(database) == 2
        assert await database.reader.scalar(text("SELECT pg_current_xact_id_if_assigned()")) is None
