"""Two tables, for tests of reads and writes."""

from dbkit import Database
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Of the tables below."""


class Item(Base):
    """A row whose column is named otherwise in its table."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("label", String(40), unique=True)
    quantity: Mapped[int] = mapped_column(default=0)
    parts: Mapped[list["Part"]] = relationship()


class Part(Base):
    """What an item may load, or not."""

    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))


async def fill(database: Database) -> None:
    """Make the tables, with two items; the first one has two parts."""
    async with database.session() as session:
        await (await session.connection()).run_sync(Base.metadata.create_all)
        session.add_all([Item(name="lamp", parts=[Part(), Part()]), Item(name="chair")])
