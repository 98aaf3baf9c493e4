"""What errors of the kit hold, and who catches them."""

import pickle
from pathlib import Path

import pytest
from dbkit import Database, DatabaseError, NotConfigured, NotOpen, PoolTimeout, Unreachable
from dbkit.commands.embedded import EmbeddedFailed
from dbkit.errors import Unwritten
from running import free_port
from shop import Item
from sqlalchemy import exc, select, text

NOWHERE = "postgresql://me:hunter2@127.0.0.1:{port}/shop"


@pytest.mark.parametrize(
    ("error", "database"),
    [
        (NotOpen("shop"), "shop"),
        (PoolTimeout("shop", "no connection: 5 in use"), "shop"),
        (PoolTimeout("shop", Unwritten(lambda: "no connection: 5 in use")), "shop"),
        (Unreachable("shop", "cannot connect", cause=OSError("away"), retry_after=3), "shop"),
        (NotConfigured(["DATABASE_URL: not set"]), ""),
        (EmbeddedFailed("/srv: no server"), ""),
    ],
)
def test_an_error_holds_its_database_and_survives_pickle(
    error: DatabaseError, database: str
) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 -- ours

    assert (error.database, again.database) == (database, database)
    assert str(again) == str(error)
    assert again.detail == error.detail
    assert again.retry_after == error.retry_after
    assert f"{database}: {error.detail}".removeprefix(": ") == str(error)


async def test_a_server_that_is_not_there_is_sqlalchemys_operational_error() -> None:
    url = NOWHERE.format(port=free_port())
    async with Database("shop", "postgresql", url=url, connect_timeout=1).open() as database:
        for kind in (Unreachable, exc.OperationalError, exc.DBAPIError, exc.SQLAlchemyError):
            with pytest.raises(kind) as caught:
                await database.reader.scalar(text("select 1"))
            assert isinstance(caught.value, Unreachable)
            assert caught.value.connection_invalidated
        assert "nothing listens there" in str(caught.value)
        assert "hunter2" not in str(caught.value)


async def test_an_autoflush_that_finds_no_server_says_so(tmp_path: Path) -> None:
    """SQLAlchemy adds to the error that the flush was automatic."""
    url = NOWHERE.format(port=free_port())
    async with Database("shop", "postgresql", url=url, connect_timeout=1).open() as database:
        with pytest.raises(Unreachable) as caught:  # noqa: PT012 -- the session raises it
            async with database.session() as session:
                session.add(Item(name="lamp"))
                await session.scalars(select(Item))
        assert "autoflush" in caught.value.__notes__[0]
