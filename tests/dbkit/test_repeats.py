"""N+1, named in development: by route, line, count and the option to try; and what is none."""

from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import pytest
from dbkit import Database, Databases, install
from dbkit.database.native import Native
from dbkit.telemetry.repeats import ENOUGH, RUNSERVER, named
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from shop import Item, Part, fill
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

pytestmark = pytest.mark.anyio
ROWS = ENOUGH + 1


@pytest.fixture
def in_development(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNSERVER, "shop.main:app")
    named.clear()


@pytest.fixture
async def shop(in_development: None, declared: Database) -> AsyncGenerator[Database]:
    async with declared.open() as database:
        await fill(database)
        items = [{"name": f"chair {n}"} for n in range(ROWS)]
        await database.execute(insert(Item).values(items))
        yield database
        database.close_sync()


async def read_one_by_one(shop: Database) -> None:
    for number in range(ROWS):
        await shop.reader.get(Item, number)


async def execute_one_by_one(shop: Database) -> None:
    for number in range(ROWS):
        await shop.reader.execute(select(Part.id).where(Part.item_id == number))


async def load_lazily(shop: Database) -> None:
    def load(session: Session) -> None:
        for item in session.scalars(select(Item).limit(ROWS)):
            assert item.parts is not None

    async with shop.session() as session:
        await session.run_sync(load)


def load_lazily_in_a_thread(shop: Database) -> None:
    with shop.sync.session() as session:
        for item in session.scalars(select(Item).limit(ROWS)).all():
            assert item.parts is not None


async def ask_in_text(shop: Database) -> None:
    async with shop.session() as session:
        for number in range(ROWS):
            await session.execute(text("SELECT id FROM items WHERE id = :id"), {"id": number})


async def ask_in_two_places(shop: Database) -> None:
    for number in range(ENOUGH - 1):
        await shop.reader.get(Item, number)
    for number in range(ENOUGH - 1):
        await shop.reader.get(Item, number)


async def ask_the_same(shop: Database) -> None:
    for _ in range(ROWS):
        await shop.reader.get(Item, 1)


async def insert_one_by_one(shop: Database) -> None:
    async with shop.session() as session:
        for number in range(ROWS):
            await session.execute(insert(Item), {"name": f"lamp {number}"})
            await session.execute(insert(Part), [{"item_id": 1}, {"item_id": 2}])


async def refresh_what_was_written(shop: Database) -> None:
    async with shop.session() as session:
        for number in range(ROWS):
            session.add(item := Item(name=f"table {number}"))
            await session.flush()
            await session.refresh(item)


async def read_page_by_page(shop: Database) -> None:
    for number in range(ROWS):
        page = select(Item).where(Item.quantity == 0).order_by(Item.id)
        await shop.reader.scalars(page.where(Item.id > number).limit(3))
        await shop.reader.scalars(page.offset(number).limit(1))


async def lock_in_turn(shop: Database) -> None:
    async with shop.session() as session:
        for number in range(ROWS):
            await session.get(Item, number, with_for_update=True)


REPEATS: dict[Callable[[Database], Any], str] = {
    read_one_by_one: "select all at once, by items.id.in_(...)",
    execute_one_by_one: "select all at once, by parts.item_id.in_(...)",
    load_lazily: "load Item.parts with its objects, by options(selectinload(Item.parts))",
    load_lazily_in_a_thread: "load Item.parts with its objects, by options(selectinload",
    ask_in_text: "select all at once, by id.in_(...)",
}
INTENDED = (
    *(ask_in_two_places, ask_the_same, insert_one_by_one, refresh_what_was_written),
    read_page_by_page,
)


async def serve(shop: Database, *works: Callable[[Database], Any]) -> None:
    """Do each in a request."""
    app = FastAPI()
    install(app, Databases(shop))
    for work in works:
        app.get(f"/{work.__name__}")(partial(work, shop))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for work in works:
            answer = await client.get(f"/{work.__name__}")
            assert answer.status_code == 200, answer.text


async def test_what_repeats_is_named_by_route_line_count_and_what_to_try(
    shop: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(shop, *REPEATS)
    said = [each for each in caplog.messages if "the same statement" in each]

    if shop.dialect == "postgresql":  # Also what is run natively was seen.
        assert shop.pool.counters.native >= 2 * ROWS
    for (work, advice), message in zip(REPEATS.items(), said, strict=True):
        start = f"shop: GET /{work.__name__} runs the same statement {ROWS} times"
        assert message.startswith(f"{start} with different values, at "), message
        assert f" in {work.__name__}: " in message or " in load: " in message
        assert "test_repeats.py:" in message
        assert advice in message


@pytest.mark.parametrize("declared", ["postgresql"], indirect=True)
async def test_what_is_meant_to_repeat_is_not_named(
    shop: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(shop, *INTENDED, lock_in_turn)

    assert [each for each in caplog.messages if "the same statement" in each] == []


async def test_in_production_nothing_is_there(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    dialect = database.engine.sync_engine.dialect
    await serve(database, read_one_by_one)

    assert "repeats" not in dialect.do_execute.__module__
    assert type(vars(dialect).get("native")) in {Native, type(None)}
    assert [each for each in caplog.messages if "the same statement" in each] == []
