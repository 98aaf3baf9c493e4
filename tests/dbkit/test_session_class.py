"""Sessions of a class that the service chooses, as SQLModel's."""

from pathlib import Path
from typing import Any

import pytest
from dbkit import Database, TransactionAborted
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.main import default_registry

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    """As docs/adopting.md has it."""

    registry = default_registry


class Lamp(SQLModel, table=True):
    """A table of SQLModel's."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)


async def test_sessions_of_sqlmodel_have_exec_and_the_promises_of_ours(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'file.sqlite3'}"
    declared = Database("primary", "sqlite", base=Base, url=url, session_class=AsyncSession)
    async with declared.open() as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with database.session() as session:
            session.add(Lamp(name="desk"))
        with pytest.raises(TransactionAborted):  # noqa: PT012 -- the end of a session raises
            async with database.session() as session:
                session.add(Lamp(name="desk"))
                with pytest.raises(IntegrityError):
                    await session.flush()
        async with database.sessions() as made:
            asynchronous: Any = made
            found = (await asynchronous.exec(select(Lamp.name))).all()
        with database.sync.sessions() as made:
            synchronous: Any = made
            found += synchronous.exec(select(Lamp.name)).all()
        database.close_sync()

    assert found == ["desk", "desk"]
