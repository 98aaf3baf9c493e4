"""A session of psycopg for each request, in the thread pool, as the best-known template does."""

from collections.abc import Generator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, make_url, select
from sqlalchemy.orm import Session

from .bodies import ANALYTICS_URL, PRIMARY_URL, Both, Item, ItemCreate, ItemPage, ItemRead, Note

app = FastAPI()


def depend(url: str) -> Any:
    """Depend on a session."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=10)

    def session() -> Generator[Session]:
        with Session(engine) as session:
            yield session

    return Depends(session)


Primary = Annotated[Session, depend(PRIMARY_URL)]
Analytics = Annotated[Session, depend(ANALYTICS_URL)]


@app.get("/items/{item_id}", response_model=ItemRead)
def read(item_id: int, session: Primary) -> Any:
    """Read one."""
    return session.get_one(Item, item_id)


@app.get("/items", response_model=ItemPage)
def page(session: Primary, limit: int = 20) -> Any:
    """Read some."""
    return {"items": session.scalars(select(Item).order_by(Item.id).limit(limit)).all()}


@app.post("/items", status_code=201, response_model=ItemRead)
def create(body: ItemCreate, session: Primary) -> Any:
    """Write one."""
    item = Item(**body.model_dump())
    session.add(item)
    session.commit()
    session.refresh(item)
    return item


@app.get("/both/{item_id}", response_model=Both)
def both(item_id: int, session: Primary, other: Analytics) -> Any:
    """Read one of each database."""
    return {"item": session.get_one(Item, item_id), "note": other.get_one(Note, item_id)}
