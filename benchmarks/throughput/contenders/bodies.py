"""What is sent and answered, and the tables."""

import os

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

PRIMARY_URL = os.environ["PRIMARY_URL"]
ANALYTICS_URL = os.environ["ANALYTICS_URL"]


class ItemCreate(BaseModel):
    """A new item."""

    name: str
    quantity: int = 0


class ItemRead(BaseModel):
    """An item."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    quantity: int


class ItemPage(BaseModel):
    """A list of items."""

    items: list[ItemRead]


class NoteRead(BaseModel):
    """A note."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    text: str


class Both(BaseModel):
    """A row of each database."""

    item: ItemRead
    note: NoteRead


class Base(DeclarativeBase):
    """Of both tables."""


class Item(Base):
    """In the first database."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    quantity: Mapped[int]


class Note(Base):
    """In the second."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int]
    text: Mapped[str]
