"""Code of a service that runs while the pool connects: its mistakes look like mistakes."""

import logging
from typing import Any

import pytest
from dbkit import Database, Unreachable
from sqlalchemy import URL, event, text
from waiting import until

ONE = text("select 1")


@pytest.fixture
async def database(database_url: URL) -> Any:
    url = database_url.render_as_string(hide_password=False)
    async with Database("shop", "postgresql", url=url, pool_size=2).open() as database:
        yield database


def backends(database: Database) -> Any:
    """Count the connections of the pool to the server, without the pool."""
    count = text(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and application_name like '%shop'"
    )
    return database.probe._engine, count  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] -- beside the pool


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [("int('x')", ValueError), ("{}['codec']", KeyError), ("nowhere", Exception)],
)
async def test_a_mistake_in_a_connect_listener_is_raised_as_it_is(
    database: Database, mistake: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "dbkit")
    failing = True

    @event.listens_for(database.engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
        if failing and mistake == "nowhere":
            connection.cursor().execute("select nowhere")
        elif failing:
            eval(mistake)  # noqa: S307 -- one of the three above

    database.pool.retire()
    for _ in range(5):
        with pytest.raises(kind) as caught:
            await database.reader.scalar(ONE)
        assert not isinstance(caught.value, Unreachable)

    assert database.pool.snapshot().breaker == "closed"
    (line,) = [each for each in caplog.records if each.name == "dbkit.pool.connections"]
    assert line.getMessage() == "shop: a new connection failed in the service"
    assert line.exc_info
    # What the driver had opened is closed.
    engine, count = backends(database)

    async def is_closed() -> bool:
        async with engine.connect() as beside:
            return await beside.scalar(count) <= 1  # the probe's

    await until(is_closed)

    failing = False
    assert await database.reader.scalar(ONE) == 1


async def test_a_do_connect_listener_is_called_with_what_is_connected_with(
    database: Database,
) -> None:
    seen: list[str] = []

    @event.listens_for(database.engine.sync_engine, "do_connect")
    def look(_dialect: object, _record: object, _args: object, kwargs: Any) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
        seen.append(kwargs["server_settings"]["application_name"])
        kwargs["server_settings"] = kwargs["server_settings"] | {"application_name": "mine"}

    database.pool.retire()
    assert await database.reader.scalar(text("show application_name")) == "mine"
    assert seen[0].endswith(":shop")


async def test_a_mistake_in_a_do_connect_listener_is_raised_as_it_is(database: Database) -> None:
    @event.listens_for(database.engine.sync_engine, "do_connect")
    def fail(*_: object) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
        raise TypeError("no token")

    database.pool.retire()
    with pytest.raises(TypeError, match="no token"):
        await database.reader.scalar(ONE)


async def test_a_mistake_in_what_returns_a_password_is_raised_as_it_is(database_url: URL) -> None:
    def password() -> str:
        tokens: dict[str, str] = {}
        return tokens["token"]

    url = database_url._replace(password=None).render_as_string(hide_password=False)
    database = Database("shop", "postgresql", url=url, password=password)
    with pytest.raises(KeyError, match="token"):
        async with database.open():
            await database.reader.scalar(ONE)
