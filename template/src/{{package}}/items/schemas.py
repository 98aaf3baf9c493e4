"""Bodies of requests and responses; their limits are those of the tables."""

from typing import Annotated

from fastapi import Path
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema


def whole(value: object) -> object:
    """Take 3.0 as 3: in JSON they are the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# No NUL: PostgreSQL cannot store one.
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]+$")]
# Strict: neither "3" nor true is a number.
Quantity = Annotated[int, Field(strict=True, ge=0, le=1_000_000), BeforeValidator(whole)]
# Up to 2**53 a number in JSON is exact for everybody, OpenAPI included.
ItemId = Annotated[int, Path(ge=1, le=2**53 - 1)]


class ItemCreate(BaseModel):
    """What a client sends to create an item."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    quantity: Quantity = 0


class ItemUpdate(BaseModel):
    """What a client sends to change an item: only the fields that change."""

    model_config = ConfigDict(extra="forbid")

    name: Name | SkipJsonSchema[None] = None
    quantity: Quantity | SkipJsonSchema[None] = None

    @field_validator("name", "quantity")
    @classmethod
    def refuse_null(cls, value: object) -> object:
        """Refuse null, which the columns do not take; a field that is left out is not validated."""
        if value is None:
            raise ValueError("leave it out to keep its value")
        return value


class ItemRead(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    quantity: int


class ItemPage(BaseModel):
    """A page of items; `next` is the `after` of the next page, null on the last."""

    items: list[ItemRead]
    next: int | None


class NotFound(BaseModel):
    """What a client gets when there is no such item."""

    detail: str
