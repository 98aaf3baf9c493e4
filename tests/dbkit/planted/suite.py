"""Tests of a service of two databases, some of which do what its fixtures must not let pass.

`test_testing.py` copies this to a rendered service, runs it and reads what became of each test.
"""
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

import asyncio
import gc
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import time_machine
from freezegun import freeze_time
from my_service.databases.audit import audit
from my_service.databases.near import near
from my_service.databases.primary import primary
from my_service.dbkit.errors import PoolTimeout, Unreachable
from my_service.items.models import Item
from my_service.notes.audit import Note
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError

KEPT: list[Any] = []


async def count(database: Any, table: Any) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


# What works


@pytest.mark.parametrize("turn", [1, 2])
async def test_rolled_back_however_written(client: Any, turn: int) -> None:
    assert await count(primary, Item) == 0
    assert await count(audit, Note) == 0

    assert (await client.post("/items", json={"name": "by request"})).status_code == 201
    async with primary.session() as session:
        session.add(Item(name="by session", quantity=turn))
    async with primary.engine.begin() as connection:
        await connection.execute(insert(Item).values(name="by engine", quantity=turn))
    async with primary.engine.connect() as connection:
        await connection.execute(insert(Item).values(name="by commit", quantity=turn))
        await connection.commit()
        await connection.execute(insert(Item).values(name="not committed", quantity=turn))
    autocommit = primary.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(insert(Item).values(name="by autocommit", quantity=turn))
        with pytest.raises(IntegrityError):
            await connection.execute(insert(Item).values(name="by autocommit", quantity=turn))
    async with primary.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        async with driver.transaction():
            await driver.execute("INSERT INTO items (name, quantity) VALUES ('by driver', 1)")
    async with audit.engine.begin() as connection:
        await connection.execute(insert(Note).values(item_id=1, text="by engine"))
    async with audit.session() as session:
        session.add(Note(item_id=1, text="by session"))

    assert await count(primary, Item) == 6
    assert await count(audit, Note) == 2


@pytest.mark.parametrize("turn", [1, 2])
async def test_autocommit_in_a_test_of_its_own(databases: Any, turn: int) -> None:
    autocommit = primary.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(insert(Item).values(name="by autocommit", quantity=turn))
    assert await count(primary, Item) == 1


@pytest.mark.parametrize("turn", [1, 2])
async def test_single_statements_are_rolled_back_too(databases: Any, turn: int) -> None:
    async with primary.driver_connection() as driver:
        await driver.execute("INSERT INTO items (name, quantity) VALUES ('by driver', $1)", turn)
    await primary.execute(insert(Item).values(name="by statement", quantity=turn))
    await audit.execute(insert(Note).values(item_id=1, text="by statement"))

    assert await primary.reader.scalar(select(func.count(Item.id))) == 2
    assert await audit.reader.scalar(select(func.count(Note.id))) == 1
    async with primary.reader.stream(select(Item.name)) as result:
        assert len(await result.all()) == 2
    async with primary.session() as session:
        session.add(Item(name="by session", quantity=turn))


@pytest.mark.parametrize(
    "kind", ["sandbox", pytest.param("committed", marks=pytest.mark.committed)]
)
@pytest.mark.parametrize("freeze", [freeze_time, partial(time_machine.travel, tick=False)])
async def test_time_may_be_frozen(client: Any, freeze: Any, kind: str) -> None:
    """The connections of before are as good as they were, and time-outs go on."""
    body = {"name": "by request"}
    assert (await client.post("/items", json=body)).status_code == 201
    for day in ("2040-01-01", "2001-01-01"):
        with freeze(day):
            assert str(datetime.now(UTC)).startswith(day)
            assert (await client.post("/items", json={"name": day})).status_code == 201
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
    assert await count(primary, Item) == 3


@pytest.mark.parametrize(
    "kind", ["sandbox", pytest.param("committed", marks=pytest.mark.committed)]
)
async def test_requests_use_the_session_of_the_test(
    client: Any, shared_session: Any, kind: str
) -> None:
    item = Item(name="by the test", quantity=1)
    shared_session.add(item)
    await shared_session.flush()

    changed = await client.patch(f"/items/{item.id}", json={"quantity": 7})
    taken = await client.post("/items", json={"name": item.name})
    made = await client.post("/items", json={"name": "by request"})

    assert (changed.status_code, taken.status_code, made.status_code) == (200, 409, 201)
    assert item.quantity == 7  # The object that the test has, and not a copy.
    assert await shared_session.scalar(select(func.count(Item.id))) == 2
    await shared_session.commit()
    assert len((await client.get("/items")).json()["items"]) == 2  # By a reader.


async def test_requests_use_a_session_that_overrides_theirs(client: Any, running_app: Any) -> None:
    async with primary.sessions() as session:
        running_app.dependency_overrides[primary.request_session] = lambda: session

        await client.post("/items", json={"name": "by request"})

        assert await session.scalar(select(func.count(Item.id))) == 1


async def test_an_error_undoes_its_own_transaction(client: Any) -> None:
    for database, row in ((primary, Item(name="a", quantity=1)), (audit, Note(item_id=1, text=""))):
        with pytest.raises(RuntimeError, match="planned"):  # noqa: PT012 -- an `async with` is one
            async with database.session() as session:
                session.add(row)
                await session.flush()
                raise RuntimeError("planned")
        assert await count(database, type(row)) == 0


async def test_requests_at_once(client: Any) -> None:
    names = [f"item {number}" for number in range(20)]

    answers = await asyncio.gather(*(client.post("/items", json={"name": n}) for n in names))

    assert {answer.status_code for answer in answers} == {201}
    assert await count(primary, Item) == 20


async def test_isolation_levels_are_taken(databases: Any) -> None:
    serializable = primary.engine.execution_options(isolation_level="SERIALIZABLE")
    async with serializable.begin() as connection:
        assert (await connection.execute(select(1))).scalar() == 1


async def test_pool_of_one_with_whom_to_wait_for(databases: Any) -> None:
    async with primary.session() as session:
        await session.execute(select(1))
        with pytest.raises(InvalidRequestError) as raised:
            await count(primary, Item)
    assert "primary: the sandbox has one connection, and this task holds it already" in str(
        raised.value
    )
    assert "suite.py" in str(raised.value)
    assert "end the first session before the second begins" in str(raised.value)


async def test_isolated_tasks_at_once(client: Any, isolated: Any, assert_checkouts: Any) -> None:
    count_items = select(func.count()).select_from(Item)
    everybody = asyncio.Barrier(8)
    databases: set[str] = set()

    async def task(number: int) -> None:
        async with isolated():
            databases.add(primary.settings.url.database)
            await everybody.wait()
            for _ in range(number):
                body = {"name": f"lamp {_}"}
                assert (await client.post("/items", json=body)).status_code == 201
            async with audit.session() as session:
                session.add(Note(item_id=1, text="bright"))
            await everybody.wait()
            assert await count(primary, Item) == number
            assert await near.reader.scalar(count_items) == number
            assert await count(audit, Note) == 1

    with assert_checkouts(sum(range(8)) + 8 * 4):
        await asyncio.gather(*(task(number) for number in range(8)))

    assert len(databases) == 8
    assert await count(primary, Item) == 0
    assert await count(audit, Note) == 0


async def test_plants_a_leak_in_an_isolated_task(isolated: Any) -> None:
    async with isolated():
        KEPT.append(await primary.engine.connect())  # the isolated leak


@pytest.mark.committed
@pytest.mark.parametrize("turn", [1, 2])
async def test_committed_in_a_copy_of_its_own(client: Any, turn: int) -> None:
    assert primary.pool.size() == 10
    assert "_main_" in primary.settings.url.database
    assert "_main_" in audit.settings.url.database
    async with primary.session() as first:
        first.add(Item(name="lamp", quantity=turn))
        await first.flush()
        assert await count(primary, Item) == 0
    assert await count(primary, Item) == 1


@pytest.mark.committed("audit")
async def test_committed_in_one_database_alone(client: Any) -> None:
    assert audit.pool.size() == 10
    assert primary.pool.size() == 1


async def test_exhausted(client: Any, pool_exhausted: Any) -> None:
    async with pool_exhausted("primary"):
        answer = await client.get("/items")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (await client.get("/items")).status_code == 200


@pytest.mark.committed("primary")
async def test_exhausted_in_full(client: Any, pool_exhausted: Any) -> None:
    async with pool_exhausted("primary"):
        assert primary.pool.checkedout() == 10
        assert (await client.get("/items")).status_code == 503
    assert (await client.get("/items")).status_code == 200


@pytest.mark.parametrize("name", ["primary", "audit"])
async def test_down(client: Any, database_down: Any, add_rows: Any, name: str) -> None:
    await add_rows(Item(name="lamp", quantity=1), Note(item_id=1, text="bright"))
    route = {"primary": "/items/1", "audit": "/audit/notes/1"}[name]
    async with database_down(name):
        assert (await client.get(route)).status_code == 503
        assert (await client.get("/readyz")).json()["databases"][name]["status"] == "down"
    assert (await client.get("/readyz")).json()["databases"][name]["status"] == "up"
    assert [await count(primary, Item), await count(audit, Note)] == [1, 1]


async def exhaust_replica(pool_exhausted: Any) -> None:
    async with pool_exhausted("near"):
        with pytest.raises(PoolTimeout, match="near: no connection within"):
            await near.reader.scalar(select(1))
        assert await primary.reader.scalar(select(1)) == 1
    assert await near.reader.scalar(select(1)) == 1


async def test_exhausted_replica(pool_exhausted: Any) -> None:
    await exhaust_replica(pool_exhausted)


@pytest.mark.committed
async def test_exhausted_replica_in_full(pool_exhausted: Any) -> None:
    await exhaust_replica(pool_exhausted)


async def test_down_replica(client: Any, database_down: Any, add_rows: Any) -> None:
    """Its primary is not, and serves its reads."""
    await add_rows(Item(name="lamp", quantity=1))
    count_items = select(func.count()).select_from(Item)
    async with database_down("near"):
        assert [near.status, primary.status] == ["down", "up"]
        with pytest.raises(Unreachable):
            await near.engine.connect()
        assert await near.reader.scalar(count_items) == 1
        assert (await client.get("/items")).status_code == 200
    assert [near.status, await near.reader.scalar(count_items)] == ["up", 1]


@pytest.mark.parametrize("name", ["primary", "audit"])
async def test_slow(databases: Any, slow_database: Any, name: str) -> None:
    with slow_database(name, 0.5), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), databases[name].session() as session:
            await session.execute(select(1))


async def test_a_task_that_ends_soon_is_no_fault(databases: Any) -> None:
    async def hold() -> None:
        async with primary.session() as session:
            await session.execute(text("SELECT pg_sleep(0.5)"))

    KEPT.append(asyncio.create_task(hold()))
    while not primary.pool.checkedout():  # noqa: ASYNC110 -- there is no event
        await asyncio.sleep(0.001)


def test_sync_client(sync_client: Any, assert_checkouts: Any) -> None:
    with assert_checkouts(1):
        created = sync_client.post("/items", json={"name": "lamp"})
    assert sync_client.get(f"/items/{created.json()['id']}").json() == created.json()


def test_sync_client_is_rolled_back(sync_client: Any) -> None:
    assert sync_client.get("/items").json()["items"] == []


def test_overrides_are_set_in_one_test(running_app: Any, databases: Any) -> None:
    running_app.dependency_overrides[count] = count


def test_overrides_are_gone_in_the_next(running_app: Any) -> None:
    assert running_app.dependency_overrides == {}


# What is planted


async def test_plants_a_leak(databases: Any) -> None:
    connection = await primary.engine.connect()  # the leak
    KEPT.append(connection)
    await connection.execute(insert(Item).values(name="leaked", quantity=1))


async def test_plants_a_leak_for_the_garbage_collector(databases: Any) -> None:
    connection = await audit.engine.connect()  # the drop
    with pytest.warns(match="garbage collector"):  # noqa: PT031 -- whichever of the two collects it
        del connection
        gc.collect()


async def test_plants_a_task(databases: Any) -> None:
    async def hold() -> None:
        async with primary.session() as session:
            session.add(Item(name="task's", quantity=1))
            await session.flush()
            await asyncio.sleep(60)  # in the task

    KEPT.append(asyncio.create_task(hold(), name="planted"))
    while not primary.pool.checkedout():  # noqa: ASYNC110 -- there is no event
        await asyncio.sleep(0.001)


async def test_plants_a_waiting_task(databases: Any) -> None:
    async def use() -> None:
        await count(primary, Item)
        await asyncio.sleep(60)  # asleep

    KEPT.append(asyncio.create_task(use(), name="sleeper"))
    await asyncio.sleep(0.1)


async def test_plants_a_commit(databases: Any) -> None:
    async with primary.session() as session:
        session.add(Item(name="committed", quantity=1))
        await session.execute(text("commit"))  # the commit


async def test_plants_a_commit_in_sqlite(databases: Any) -> None:
    async with audit.session() as session:
        session.add(Note(item_id=1, text="committed"))
        await session.execute(text("/* for real */ COMMIT;"))  # the other commit


@pytest.mark.parametrize("name", ["primary", "audit"])
async def test_plants_a_commit_by_the_driver(databases: Any, name: str) -> None:
    row = {"primary": Item(name="driver", quantity=1), "audit": Note(item_id=1, text="driver")}
    async with databases[name].session() as session:
        session.add(row[name])
    async with databases[name].engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("COMMIT")


async def test_plants_a_second_connection(client: Any) -> None:
    async with primary.session() as session:
        session.add(Item(name="first", quantity=1))
        await session.flush()  # the first
        await client.get("/items")


async def test_plants_a_lost_connection(databases: Any) -> None:
    async with primary.session() as session:
        session.add(Item(name="lost", quantity=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), primary.session() as session:
            await session.execute(text("SELECT pg_sleep(5)"))
    await count(primary, Item)  # after the loss


async def test_plants_one_statement_too_many(client: Any, assert_statements: Any) -> None:
    with assert_statements(1):
        await client.get("/items")
        await client.get("/items/1")


async def test_plants_one_checkout_too_many(client: Any, assert_checkouts: Any) -> None:
    with assert_checkouts(1, "primary"):
        await client.get("/items")
        await count(primary, Item)  # the other checkout


async def test_plants_a_slow_replica(databases: Any, slow_database: Any) -> None:
    with slow_database("near", 0.5):
        await near.reader.scalar(select(1))


@pytest.mark.committed("primry")
async def test_plants_a_wrong_name(databases: Any) -> None: ...


async def test_plants_a_wrong_name_of_what_is_down(database_down: Any) -> None:
    async with database_down("primry"):
        pass


@pytest.mark.committed
async def test_plants_an_engine_of_its_own(databases: Any) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    connection = await create_async_engine(primary.settings.url).connect()
    KEPT.append(connection)
    await connection.execute(select(1))


@pytest.mark.committed
async def test_a_connection_on_its_way_out_is_no_fault(databases: Any) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    connection = await create_async_engine(primary.settings.url).connect()
    KEPT.append(connection)
    driver: Any = (await connection.get_raw_connection()).driver_connection
    asyncio.get_running_loop().call_later(0.1, driver.terminate)


def test_plants_another_loop(databases: Any) -> None:
    asyncio.run(count(primary, Item))


async def test_plants_a_use_outside(running_app: Any) -> None:
    await count(primary, Item)


async def test_nothing_of_all_this_is_left(databases: Any) -> None:
    assert await count(primary, Item) == 0
    assert await count(audit, Note) == 0
    assert not primary.pool.snapshot().waiting
