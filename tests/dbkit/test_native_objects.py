"""Objects that are read natively are those that SQLAlchemy's own session leaves behind."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportPrivateUsage=false

from collections.abc import AsyncIterator
from typing import Any

import pytest
from dbkit import Database
from dbkit.commands.embedded import EmbeddedPostgres
from dbkit.database.native import BUFFERED, nothing, run_natively
from dbkit.database.readers import get_alone, run_alone
from sqlalchemy import ForeignKey, Integer, bindparam, func, inspect, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    Bundle,
    DeclarativeBase,
    Mapped,
    aliased,
    column_property,
    composite,
    contains_eager,
    defer,
    joinedload,
    load_only,
    mapped_column,
    raiseload,
    reconstructor,
    relationship,
    selectinload,
    subqueryload,
    undefer,
)
from sqlalchemy.util import greenlet_spawn


class Base(DeclarativeBase):
    """Of the classes below."""


class Point:
    """A value of two columns."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __repr__(self) -> str:
        return f"Point({self.x}, {self.y})"

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Shop(Base):
    """With each kind of attribute that one statement loads."""

    __tablename__ = "shops"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("label")
    data: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSONB()))
    notes: Mapped[str] = mapped_column(deferred=True)
    at: Mapped[Point] = composite(mapped_column("x", Integer), mapped_column("y", Integer))
    shelves: Mapped[list["Shelf"]] = relationship(back_populates="shop")


inspect(Shop).add_property("longer", column_property(func.upper(Shop.name)))


class Shelf(Base):
    """With a parent that is loaded by a join."""

    __tablename__ = "shelves"

    shop_id: Mapped[int] = mapped_column(ForeignKey("shops.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    shop: Mapped[Shop] = relationship(back_populates="shelves", lazy="joined")


class Catalogue(Base):
    """With children that are loaded by a statement more."""

    __tablename__ = "catalogues"

    id: Mapped[int] = mapped_column(primary_key=True)
    shop_id: Mapped[int] = mapped_column(ForeignKey("shops.id"))
    shop: Mapped[Shop] = relationship(lazy="selectin")
    seen = ""

    @reconstructor
    def look(self) -> None:
        """Note that it was loaded."""
        self.seen = "loaded"


class Curious(Base):
    """One that asks for more when it is loaded."""

    __tablename__ = "curious"

    id: Mapped[int] = mapped_column(primary_key=True)
    shop_id: Mapped[int] = mapped_column(ForeignKey("shops.id"))
    shop: Mapped[Shop] = relationship()

    @reconstructor
    def look(self) -> None:
        """Load another."""
        self.found = self.shop.name


class Animal(Base):
    """Of several kinds, in a table and one more."""

    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Cat(Animal):
    """In the same table."""

    lives: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class Dog(Animal):
    """In another."""

    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    bark: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


@pytest.fixture(scope="module")
async def shop(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """Open a database with objects."""
    postgres.create_database("objects")
    url = postgres.url("objects").render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, pool_size=2).open() as database:
        async with database.session() as session:
            await (await session.connection()).run_sync(Base.metadata.create_all)
            for n in (1, 2):
                shelves = [Shelf(number=i) for i in range(n)]
                session.add(
                    Shop(
                        name=f"shop {n}", data={"n": n}, notes="x", at=Point(n, 0), shelves=shelves
                    )
                )
                await session.flush()
            session.add_all([Catalogue(shop_id=1), Catalogue(shop_id=2), Curious(shop_id=1)])
            session.add_all([Cat(lives=9), Dog(bark="wau"), Animal()])
        yield database


def seen(value: Any, known: dict[int, int]) -> Any:
    """Describe a value and, of an object, its state and all that is loaded."""
    if isinstance(value, list | tuple):
        return [type(value), *(seen(each, known) for each in value)]
    if not isinstance(value, Base):
        return type(value), repr(value)
    if id(value) in known:
        return "the same as", known[id(value)]
    known[id(value)] = len(known)
    state: Any = inspect(value)
    for name in state.unloaded & set(state.mapper.relationships.keys()):
        with pytest.raises(SQLAlchemyError):  # Detached, or told to raise.
            getattr(value, name)
    return {
        "class": type(value),
        "loaded": {
            name: seen(each, known)
            for name, each in sorted(vars(value).items())
            if name != "_sa_instance_state"
        },
        "unloaded": state.unloaded,
        "key": state.key,
        "states": (state.detached, state.persistent, state.modified, state.expired),
        "expired": state.expired_attributes,
        "session": state.session,
        "options": [type(each) for each in state.load_options],
    }


def of(result: Any, *, unique: bool) -> dict[str, Any]:
    """Describe a result."""
    rows = list((result.unique() if unique else result).all())
    return {
        "class": type(result),
        "keys": list(result.keys()),
        "rows": seen([tuple(row) for row in rows], {}),
        "types": [type(row) for row in rows],
    }


Other = aliased(Shop)
NATIVE: dict[str, Any] = {
    "a class": select(Shop).order_by(Shop.id),
    "a constant": (select(Shop).where(Shop.id == bindparam("id")), {"id": 2}),
    "no object": select(Shop).where(Shop.id == 99),
    "a class and columns": select(Shop, Shop.name, func.length(Shop.name)).order_by(Shop.id),
    "two classes": select(Shop, Shelf).join(Shelf.shop).order_by(Shop.id, Shelf.number),
    "an outer join": select(Shop, Cat).outerjoin(Cat, Cat.id == Shop.id).order_by(Shop.id),
    "an alias": select(Shop, Other).join(Other, Other.id == Shop.id + 1),
    "a column of another name": select(Shop.name).order_by(Shop.id),
    "a composite": select(Shop.at).order_by(Shop.id),
    "a bundle": select(Bundle("b", Shop.id, Shop.name)).order_by(Shop.id),
    "a parent by a join": select(Shelf).order_by(Shelf.shop_id, Shelf.number),
    "children by a join": select(Shop).options(joinedload(Shop.shelves)).order_by(Shop.id),
    "children that are there": select(Shop)
    .join(Shop.shelves)
    .options(contains_eager(Shop.shelves))
    .order_by(Shop.id, Shelf.number),
    "some columns": select(Shop).options(load_only(Shop.id)).order_by(Shop.id),
    "without a column": select(Shop).options(defer(Shop.data)).order_by(Shop.id),
    "with a deferred column": select(Shop).options(undefer(Shop.notes)).order_by(Shop.id),
    "nothing more": select(Shelf).options(raiseload("*")).order_by(Shelf.number),
    "of several kinds": select(Cat).order_by(Cat.id),
    "of another table": select(Dog).order_by(Dog.id),
    "from a subquery": select(aliased(Shop, select(Shop).where(Shop.id == 1).subquery())),
}
BY_SQLALCHEMY: dict[str, Any] = {
    "children by a statement more": select(Shop).options(selectinload(Shop.shelves)),
    "children by a subquery": select(Shop).options(subqueryload(Shop.shelves)),
    "a parent by a statement more": select(Catalogue).order_by(Catalogue.id),
    "one that asks for more": select(Curious),
    "from text": select(Shop).from_statement(text("SELECT * FROM shops")),
    "execution options": select(Shop).execution_options(populate_existing=True),
}


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("name", NATIVE)
async def test_objects_are_the_same(shop: Database, name: str, unique: bool) -> None:
    statement, params = NATIVE[name] if isinstance(NATIVE[name], tuple) else (NATIVE[name], None)
    engine = shop.engine.sync_engine
    expected = await greenlet_spawn(run_alone, engine, statement, params, nothing)
    result = await run_natively(engine, statement, params, nothing, BUFFERED)

    assert result is not None
    unique = unique or name.startswith("children")  # Or it raises.
    assert of(result, unique=unique) == of(expected, unique=unique)
    assert shop.pool.checkedout() == 0


@pytest.mark.parametrize("name", BY_SQLALCHEMY)
async def test_what_asks_for_more_goes_sqlalchemys_way(shop: Database, name: str) -> None:
    statement = BY_SQLALCHEMY[name]
    engine = shop.engine.sync_engine
    expected = await greenlet_spawn(run_alone, engine, statement, None, nothing)

    assert await run_natively(engine, statement, None, nothing, BUFFERED) is None
    before = shop.pool.snapshot().native
    assert await run_natively(engine, statement, None, nothing, BUFFERED) is None
    assert shop.pool.snapshot().native == before  # It is known by now.
    assert of(await shop.reader.execute(statement), unique=False) == of(expected, unique=False)


async def test_a_select_of_a_writer_runs_once(shop: Database) -> None:
    await shop.execute(text("CREATE SEQUENCE counted"))
    writing = select(Shop, func.nextval("counted")).where(Shop.id == 1)
    with_more = writing.options(selectinload(Shop.shelves))

    (_, number) = (await shop.execute(with_more)).one()

    assert number == await shop.reader.scalar(text("SELECT last_value FROM counted")) == 1


KEYS: list[tuple[Any, Any]] = [
    *((Shop, each) for each in (1, 2, 99, "1", 1.0, [1], (1,), {"id": 2}, object())),
    *((Shelf, each) for each in ((1, 0), [2, 1], {"shop_id": 1, "number": 0}, (1, 99), (1, None))),
    *((Shelf, each) for each in (1, {"shop_id": 1}, (1, 2, 3))),
    *((kind, each) for kind in (Animal, Cat, Dog, Catalogue, Curious) for each in (1, 2, 3)),
    *((each, 1) for each in (Other, Shop.__table__, object, inspect(Shop))),
]


@pytest.mark.parametrize("options", [(), (joinedload(Shop.shelves),)], ids=["", "joined"])
@pytest.mark.parametrize("number", range(len(KEYS)))
async def test_what_is_got_is_the_same(
    shop: Database, number: int, options: tuple[Any, ...]
) -> None:
    entity, key = KEYS[number]
    engine = shop.engine.sync_engine

    async def get(way: Any) -> Any:
        try:
            return seen(await way, {})
        except Exception as error:  # noqa: BLE001 -- to be compared
            return type(error), str(error)

    expected = await get(greenlet_spawn(get_alone, engine, entity, key, options))

    for _ in range(2):  # The second time, the statement is known.
        assert await get(shop.reader.get(entity, key, options=options)) == expected
    assert shop.pool.checkedout() == 0
