"""Statements that were prepared before a migration changed their tables."""

from collections.abc import AsyncIterator

import pytest
from dbkit import Database
from dbkit.engines.sqlstates import is_stale
from shop import Item, fill
from sqlalchemy import URL, Row, insert, select, text
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.ext.asyncio import AsyncSession

ITEMS = select(Item.__table__).order_by(Item.id)
WIDEN = "ALTER TABLE items ALTER COLUMN quantity TYPE numeric"
NARROW = "ALTER TABLE items ALTER COLUMN quantity TYPE bigint"


@pytest.fixture
async def shop(database_url: URL) -> AsyncIterator[Database]:
    url = database_url.render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, pool_size=2).open() as database:
        await fill(database)
        yield database


async def migrate(database_url: URL, *statements: str) -> None:
    """Change the schema as another process does."""
    url = database_url.render_as_string(hide_password=False)
    database = Database("other", "postgresql", url=url)
    async with database.open() as other, other.session() as session:
        for each in statements:
            await session.execute(text(each))


async def test_a_read_is_asked_again(shop: Database, database_url: URL) -> None:
    async def ways() -> list[int]:
        read: list[Row[tuple[object, ...]]] = list((await shop.reader.execute(ITEMS)).all())
        objects = (await shop.reader.scalars(select(Item).order_by(Item.id))).all()
        got = await shop.reader.get(Item, 1)
        async with shop.reader.stream(ITEMS) as result:
            streamed = [row async for row in result]
        assert got
        return [len(read), len(objects), got.id, len(streamed)]

    for change in (WIDEN, NARROW, WIDEN):
        assert await ways() == [2, 2, 1, 2]
        await migrate(database_url, change)
    assert await ways() == [2, 2, 1, 2]


async def test_a_single_write_is_asked_again_and_done_once(
    shop: Database, database_url: URL
) -> None:
    add = insert(Item).returning(Item.name, Item.quantity)
    await shop.execute(add, {"name": "sofa", "quantity": 1})
    await migrate(database_url, WIDEN)

    assert (await shop.execute(add, {"name": "bed", "quantity": 1})).one() == ("bed", 1)
    labels = (await shop.reader.scalars(select(Item.name).order_by(Item.id))).all()
    assert labels == ["lamp", "chair", "sofa", "bed"]


async def test_a_transaction_is_begun_again_by_run_transaction_alone(
    shop: Database, database_url: URL
) -> None:
    async def work(session: AsyncSession) -> int:
        return len((await session.execute(ITEMS)).all())

    async with shop.session() as session:
        await work(session)
    await migrate(database_url, WIDEN)
    with pytest.raises(NotSupportedError) as caught:
        async with shop.session() as session:
            await work(session)
    assert is_stale(caught.value)

    await migrate(database_url, NARROW)
    assert await shop.run_transaction(work) == 2


async def test_an_enum_that_was_made_anew_is_found_again(shop: Database, database_url: URL) -> None:
    await migrate(
        database_url,
        "CREATE TYPE mood AS ENUM ('good')",
        "ALTER TABLE items ADD COLUMN mood mood DEFAULT 'good'",
    )
    by_mood = text("SELECT count(*) FROM items WHERE mood = CAST(:mood AS mood)")
    assert await shop.reader.scalar(by_mood, {"mood": "good"}) == 2

    await migrate(
        database_url,
        "ALTER TYPE mood RENAME TO old",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "ALTER TABLE items ALTER COLUMN mood DROP DEFAULT",
        "ALTER TABLE items ALTER COLUMN mood TYPE mood USING mood::text::mood",
        "DROP TYPE old",
    )
    assert await shop.reader.scalar(by_mood, {"mood": "good"}) == 2


async def test_a_composite_type_that_has_changed_costs_one_connection(
    shop: Database, database_url: URL
) -> None:
    await migrate(
        database_url,
        "CREATE TYPE size AS (width int)",
        "CREATE TABLE beds (size size)",
        "INSERT INTO beds VALUES (ROW(1))",
    )
    sizes = text("SELECT size FROM beds")
    assert tuple(await shop.reader.scalar(sizes)) == (1,)
    await migrate(database_url, "ALTER TYPE size ADD ATTRIBUTE height int")

    answers: list[object] = []
    for _ in range(4):
        try:
            answers.append(tuple(await shop.reader.scalar(sizes)))
        except Exception as error:  # noqa: BLE001 -- it is compared
            answers.append(type(error).__name__)
    assert answers[-1] == (1, None)
