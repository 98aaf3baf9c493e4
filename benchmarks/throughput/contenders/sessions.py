"""FastAPI on async ORM sessions, as tutorials write it; what differs is in the arguments."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from .bodies import ANALYTICS_URL, PRIMARY_URL, Both, Item, ItemCreate, ItemPage, ItemRead, Note


def make_app(*, commit_at_end: bool = False, **pool: Any) -> FastAPI:
    """Make the application; `pool` is for `create_async_engine()`."""

    def depend(url: str) -> Any:
        sessions = async_sessionmaker(create_async_engine(url, **pool), expire_on_commit=False)

        async def session() -> AsyncGenerator[AsyncSession]:
            async with sessions() as session:
                yield session
                if commit_at_end:
                    await session.commit()

        return Depends(session)

    primary, analytics = depend(PRIMARY_URL), depend(ANALYTICS_URL)
    app = FastAPI()

    @app.get("/items/{item_id}", response_model=ItemRead)
    async def read(item_id: int, session: Annotated[AsyncSession, primary]) -> Any:
        return await session.get_one(Item, item_id)

    @app.get("/items", response_model=ItemPage)
    async def page(session: Annotated[AsyncSession, primary], limit: int = 20) -> Any:
        found = await session.scalars(select(Item).order_by(Item.id).limit(limit))
        return {"items": found.all()}

    @app.post("/items", status_code=201, response_model=ItemRead)
    async def create(body: ItemCreate, session: Annotated[AsyncSession, primary]) -> Any:
        item = Item(**body.model_dump())
        session.add(item)
        if commit_at_end:
            await session.flush()
        else:
            await session.commit()
        return item

    @app.get("/both/{item_id}", response_model=Both)
    async def both(
        item_id: int,
        session: Annotated[AsyncSession, primary],
        other: Annotated[AsyncSession, analytics],
    ) -> Any:
        item, note = await session.get_one(Item, item_id), await other.get_one(Note, item_id)
        return {"item": item, "note": note}

    for route in (read, page, create, both):
        assert route
    return app
