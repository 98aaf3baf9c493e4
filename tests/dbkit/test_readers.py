"""Readers: one round trip, nothing held, nothing written."""

import asyncio
from pathlib import Path
from typing import Annotated, assert_type

import pytest
from dbkit import Database, Databases, Reader, ReadOnly, install, reader_from
from dbkit.database.readers import is_plain
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from shop import Item
from sqlalchemy import (
    Executable,
    Result,
    ScalarResult,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import aliased, joinedload
from sqlalchemy.orm.exc import DetachedInstanceError
from sqlalchemy.schema import CreateTable
from waiting import until


async def test_a_read_is_typed(database: Database) -> None:
    reader = database.reader

    rows = await reader.execute(select(Item.id, Item.name).order_by(Item.id))
    names = await reader.scalars(select(Item.name).order_by(Item.id))
    count = await reader.scalar(select(func.count(Item.id)))
    item = await reader.get(Item, 1)

    assert_type(rows, Result[int, str])
    assert_type(names, ScalarResult[str])
    assert_type(count, int | None)
    assert_type(item, Item | None)
    assert rows.all() == [(1, "lamp"), (2, "chair")]
    assert names.all() == ["lamp", "chair"]
    assert count == 2
    assert item
    assert item.name == "lamp"
    assert await reader.get(Item, 3) is None


@pytest.mark.parametrize(
    "statement",
    [
        select(Item.id, Item.name).order_by(Item.id),
        select(Item.id, Item.id.label("again")).order_by(Item.id),
        select(Item.__table__.c.label).order_by(Item.__table__.c.id),
        select(Item.__table__).order_by(Item.__table__.c.id),
        select(Item.name).union(select(Item.name)),
        text("SELECT id, label FROM items ORDER BY id"),
    ],
)
async def test_a_row_is_that_of_a_session(database: Database, statement: Executable) -> None:
    async with database.session() as session:
        expected = (await session.execute(statement)).mappings().all()

    assert (await database.reader.execute(statement)).mappings().all() == expected


def test_only_classes_need_an_orm_session() -> None:
    assert is_plain(select(Item.__table__, Item.id))
    assert not is_plain(select(Item))
    assert not is_plain(select(aliased(Item)))
    assert not is_plain(select(Item.name))  # Its column is called label.


async def test_parameters_are_given_beside_the_statement(database: Database) -> None:
    statement = text("SELECT label FROM items WHERE id = :id")

    assert await database.reader.scalar(statement, {"id": 2}) == "chair"


async def test_nothing_is_held_between_two_reads(database: Database) -> None:
    rows = await database.reader.execute(select(Item.id))

    assert database.pool.checkedout() == 0
    assert len(rows.all()) == 2


async def test_what_was_not_loaded_is_never_loaded(database: Database) -> None:
    item = await database.reader.get(Item, 1)

    assert item
    with pytest.raises(DetachedInstanceError):
        item.parts  # noqa: B018 -- touched
    assert database.pool.checkedout() == 0


async def test_what_was_loaded_can_be_used(database: Database) -> None:
    item = await database.reader.get(Item, 1, options=[joinedload(Item.parts)])
    statement = select(Item).options(joinedload(Item.parts)).order_by(Item.id)
    items = (await database.reader.scalars(statement)).unique().all()

    assert item
    assert [part.id for part in item.parts] == [1, 2]
    assert [len(each.parts) for each in items] == [2, 0]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        (insert(Item).values(name="table"), "insert"),
        (update(Item).values(name="table").returning(Item.id), "update"),
        (delete(Item), "delete"),
        (CreateTable(Item.__table__), "create table"),  # pyright: ignore[reportArgumentType]
        (text("  DELETE FROM items"), "delete"),
        (select(Item).with_for_update(), "lock rows"),
    ],
)
async def test_a_write_is_refused(database: Database, statement: Executable, what: str) -> None:
    for read in (database.reader.execute, database.reader.scalar, database.reader.scalars):
        with pytest.raises(ReadOnly) as refused:
            await read(statement)

        assert str(refused.value) == (
            f"shop: a reader does not {what}: every read of it is a transaction of its own; "
            "depend on ShopSession, or use `async with shop.session()`"
        )
    with pytest.raises(ReadOnly):
        database.reader.stream(statement)


@pytest.mark.parametrize("name", ["add", "flush", "commit", "delete"])
async def test_a_reader_is_no_session(database: Database, name: str) -> None:
    with pytest.raises(AttributeError, match=f"shop: a reader does not {name}: .*ShopSession"):
        getattr(database.reader, name)


async def test_a_stream_holds_a_connection_until_its_end(database: Database) -> None:
    async with database.reader.stream(select(Item).order_by(Item.id)) as result:
        names = [item.name async for item in result.scalars()]
        assert database.pool.checkedout() == 1

    assert names == ["lamp", "chair"]
    assert database.pool.checkedout() == 0


async def test_a_stream_that_is_left_early_gives_its_connection_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the block is what ends
        async with database.reader.stream(select(Item.id)) as result:
            await anext(result)
            raise ZeroDivisionError

    assert database.pool.checkedout() == 0
    assert await database.reader.scalar(select(func.count(Item.id))) == 2


async def test_sqlite_readers_do_not_queue_behind_a_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.sqlite3'}"
    async with Database("shop", "sqlite", url=url).open() as database, database.session() as writer:
        await writer.execute(text("CREATE TABLE things (id integer)"))

        assert await database.reader.scalar(text("SELECT count(*) FROM sqlite_master")) == 0
        async with database.reader.stream(text("SELECT 1")) as result:
            assert (await result.one())[0] == 1


async def test_reads_at_once_give_all_back_when_one_fails(database: Database) -> None:
    reader = database.reader
    ids, names = await asyncio.gather(
        reader.scalars(select(Item.id)), reader.execute(select(Item.id, Item.name))
    )

    assert_type(ids, ScalarResult[int])
    assert_type(names, Result[int, str])
    assert (len(ids.all()), len(names.all())) == (2, 2)
    reads = [reader.scalar(text("SELECT nothing")), reader.scalar(select(func.min(Item.id)))]
    failed, found = await asyncio.gather(*reads, return_exceptions=True)
    assert isinstance(failed, Exception)
    assert found == 1
    assert database.pool.checkedout() == 0


async def test_a_read_that_is_cancelled_gives_its_connection_back(database: Database) -> None:
    for steps in range(100):
        read = asyncio.create_task(database.reader.execute(select(Item.id)))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not read.cancel():
            break
        await asyncio.wait([read])
        await until(lambda: database.pool.checkedout() == 0)


async def test_a_route_depends_on_a_reader(tmp_path: Path) -> None:
    database = Database("shop", "sqlite", url=f"sqlite:///{tmp_path}/shop.sqlite3")
    app = FastAPI()
    install(app, Databases(database))

    @app.get("/")
    async def read(reader: Annotated[Reader, reader_from(database)]) -> int:
        assert database.pool.checkedout() == 0
        found = await reader.scalar(text("SELECT 42"))
        assert database.pool.checkedout() == 0
        return int(found)

    async with (
        database.open(),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/")).json() == 42
