"""A transaction ends as it was told, or raises: whatever undid it, and however it was begun."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import pytest
from asyncpg import DivisionByZeroError  # pyright: ignore[reportMissingTypeStubs]  # It has none.
from dbkit import Database, Databases, TransactionAborted, install, session_from
from dbkit.engines.sqlstates import sqlstate
from dbkit.testing.sandbox import Sandbox
from fastapi import BackgroundTasks, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient
from shop import Item, fill
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from waiting import until

pytestmark = pytest.mark.anyio

Scope = AsyncSession | AsyncConnection
Act = Callable[[Database, Any], Awaitable[None]]

POSTGRESQL = ("postgresql", "pgbouncer")
MYSQL = ("mariadb", "mysql")
ENGINES = (*POSTGRESQL, *MYSQL, "sqlite")
SLOW = {
    "postgresql": "SELECT pg_sleep(10)",
    "mysql": "SELECT sleep(10)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000)"
    " SELECT count(*) FROM n",
}


@pytest.fixture
async def shop(declared: Database) -> AsyncGenerator[Database]:
    """Open that database."""
    async with declared.open():
        await fill(declared)
        yield declared


def on(*engines: str) -> pytest.MarkDecorator:
    """Run a test on these engines."""
    return pytest.mark.parametrize("declared", engines, indirect=True)


async def names(database: Database) -> list[str]:
    return list(await database.reader.scalars(select(Item.name).order_by(Item.id)))


async def driver_of(scope: Scope) -> Any:
    connection = scope if isinstance(scope, AsyncConnection) else await scope.connection()
    return (await connection.get_raw_connection()).driver_connection


async def insert_new(scope: Scope) -> None:
    await scope.execute(insert(Item).values(name="new"))


# What undoes a transaction while its code goes on. Each has written "new" before.


async def statement_fails(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    with suppress(IntegrityError):
        await scope.execute(insert(Item).values(name="lamp"))  # <- the statement


async def text_fails(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    with suppress(DBAPIError):
        await scope.execute(text("SELECT 1/0"))


async def rows_fail_later(_: Database, scope: Scope) -> None:
    """Read the first rows of a statement that fails in the middle of them."""
    await insert_new(scope)
    rows = await scope.stream(text("SELECT 1 / (70 - n) FROM generate_series(1, 100) AS n"))
    with suppress(DBAPIError, DivisionByZeroError):  # SQLAlchemy leaves it as asyncpg's.
        async for _row in rows:
            pass


async def flush_fails(_: Database, session: AsyncSession) -> None:
    await insert_new(session)
    session.add(Item(name="lamp"))
    with suppress(IntegrityError):
        await session.flush()  # <- the flush


async def flush_fails_in_a_savepoint(_: Database, session: AsyncSession) -> None:
    async with session.begin_nested():
        await flush_fails(_, session)


async def flush_fails_in_run_sync(_: Database, session: AsyncSession) -> None:
    def work(sync: Session) -> None:
        with sync.begin_nested():
            sync.add(Item(name="new"))
            sync.flush()
            with suppress(IntegrityError):
                sync.add(Item(name="lamp"))
                sync.flush()

    await session.run_sync(work)


async def statement_is_cancelled(database: Database, scope: Scope) -> None:
    await insert_new(scope)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await scope.execute(text(SLOW[database.dialect]))


async def driver_rolls_back(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    await (await driver_of(scope)).execute("ROLLBACK;")  # As asyncpg itself does.


async def script_commits(_: Database, scope: Scope) -> None:
    """As sqlite3's `executescript()` does before its first statement."""
    await scope.execute(text("INSERT INTO parts (item_id) VALUES (1)"))
    await (await driver_of(scope)).executescript("SELECT 1")


async def statement_commits(_: Database, scope: Scope) -> None:
    await scope.execute(text("INSERT INTO parts (item_id) VALUES (1)"))
    await scope.execute(text("ANALYZE TABLE items"))
    with suppress(TransactionAborted):  # It would begin another transaction.
        await scope.execute(insert(Item).values(name="after"))


async def procedure_commits(database: Database, scope: Scope) -> None:
    await database.execute(text("DROP PROCEDURE IF EXISTS ends"))
    await database.execute(text("CREATE PROCEDURE ends() BEGIN COMMIT; SELECT 1; END"))
    await scope.execute(text("INSERT INTO parts (item_id) VALUES (1)"))
    await scope.execute(text("CALL ends()"))
    with suppress(TransactionAborted):
        await scope.execute(insert(Item).values(name="after"))


async def autocommit_is_set(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    await scope.execute(text("SET autocommit = 1"))


async def autocommit_is_set_first(_: Database, scope: Scope) -> None:
    await scope.execute(text("SET autocommit = 1"))
    with suppress(TransactionAborted):  # It would be committed at once.
        await scope.execute(insert(Item).values(name="after"))


async def conflict_rolls_back(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    with suppress(IntegrityError):
        await scope.execute(
            text("INSERT OR ROLLBACK INTO items (label, quantity) VALUES ('lamp', 1)")
        )
    with suppress(TransactionAborted):  # It would be committed at once.
        await scope.execute(text("INSERT INTO items (label, quantity) VALUES ('after', 1)"))


async def trigger_rolls_back(_: Database, scope: Scope) -> None:
    await insert_new(scope)
    await scope.execute(
        text(
            "CREATE TEMPORARY TRIGGER guard BEFORE DELETE ON items"
            " BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        )
    )
    with suppress(DBAPIError):
        async with scope.begin_nested():
            await scope.execute(text("DELETE FROM items"))


async def deadlock(database: Database, scope: Scope) -> None:
    """Lose against another transaction, which has written more."""
    await insert_new(scope)
    await scope.execute(update(Item).values(quantity=1).where(Item.id == 1))
    async with winner(database):
        with suppress(DBAPIError):
            await scope.execute(update(Item).values(quantity=1).where(Item.id == 2))
        with suppress(TransactionAborted):
            await scope.execute(insert(Item).values(name="after"))


async def deadlock_in_a_savepoint(database: Database, scope: Scope) -> None:
    await insert_new(scope)
    await scope.execute(update(Item).values(quantity=1).where(Item.id == 1))
    async with winner(database):
        with pytest.raises(DBAPIError) as caught:
            async with scope.begin_nested():
                await scope.execute(update(Item).values(quantity=1).where(Item.id == 2))
        assert sqlstate(caught.value) == "40P01"


@asynccontextmanager
async def winner(database: Database) -> AsyncGenerator[None]:
    """Hold the second item, and want the first, with so much written that the server spares it."""
    locked = asyncio.Event()

    async def win() -> None:
        async with database.session() as session:
            session.add_all(Item(name=f"weight {number}") for number in range(20))
            await session.flush()
            await session.execute(update(Item).values(quantity=2).where(Item.id == 2))
            locked.set()
            await session.execute(update(Item).values(quantity=2).where(Item.id == 1))
            await session.rollback()

    wins = asyncio.create_task(win())
    await locked.wait()
    yield
    await wins


CORE: list[tuple[Act, tuple[str, ...]]] = [
    (statement_fails, POSTGRESQL),
    (text_fails, POSTGRESQL),
    (rows_fail_later, POSTGRESQL),
    (statement_is_cancelled, ENGINES),
    (driver_rolls_back, ("postgresql", "sqlite")),
    (script_commits, ("sqlite",)),
    (statement_commits, MYSQL),
    (procedure_commits, MYSQL),
    (autocommit_is_set, MYSQL),
    (autocommit_is_set_first, MYSQL),
    (conflict_rolls_back, ("sqlite",)),
    (trigger_rolls_back, ("sqlite",)),
    (deadlock, MYSQL),
    (deadlock_in_a_savepoint, MYSQL),
]
ORM: list[tuple[Act, tuple[str, ...]]] = [
    (flush_fails, ENGINES),
    (flush_fails_in_a_savepoint, ENGINES),
    (flush_fails_in_run_sync, ENGINES),
]


# The ways to a transaction.


async def by_session(database: Database, act: Act) -> None:
    async with database.session() as session:
        await act(database, session)


async def by_run_transaction(database: Database, act: Act) -> None:
    await database.run_transaction(lambda session: act(database, session), attempts=1)


async def by_engine(database: Database, act: Act) -> None:
    async with database.engine.begin() as connection:
        await act(database, connection)


async def by_connection(database: Database, act: Act) -> None:
    async with database.engine.connect() as connection:
        await act(database, connection)
        await connection.commit()


async def by_a_session_of_its_own(database: Database, act: Act) -> None:
    async with AsyncSession(database.engine) as session:
        await act(database, session)
        await session.commit()


async def by_a_task(database: Database, act: Act) -> None:
    async with database.session() as session:
        await asyncio.create_task(act(database, session))  # pyright: ignore[reportArgumentType]


SESSIONS = (by_session, by_run_transaction, by_a_task)
WAYS = (*SESSIONS, by_engine, by_connection, by_a_session_of_its_own)


def cases(
    acts: list[tuple[Act, tuple[str, ...]]], ways: tuple[Callable[..., Any], ...]
) -> list[Any]:
    """Combine what undoes a transaction, on which engine, with the ways to begin one."""
    return [
        pytest.param(engine, act, way, id=f"{engine}-{act.__name__}-{way.__name__}")
        for act, engines in acts
        for engine in engines
        for way in ways
    ]


@pytest.mark.parametrize(
    ("declared", "act", "way"), cases(CORE, WAYS) + cases(ORM, SESSIONS), indirect=["declared"]
)
async def test_what_was_undone_is_not_said_to_be_done(
    shop: Database, act: Act, way: Callable[[Database, Act], Awaitable[None]]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await way(shop, act)

    stocked = way in {by_session, by_run_transaction, by_a_task}
    assert isinstance(caught.value, TransactionAborted) or not stocked
    assert "after" not in await names(shop)
    if act is not autocommit_is_set:
        assert await names(shop) == ["lamp", "chair"]
    await shop.execute(insert(Item).values(name="well"))
    assert "well" in await names(shop)


@on("postgresql", "sqlite")
@pytest.mark.parametrize("way", WAYS)
async def test_the_sandbox_of_a_test_says_the_same(
    shop: Database, way: Callable[[Database, Act], Awaitable[None]]
) -> None:
    acts: list[Act] = [flush_fails, flush_fails_in_a_savepoint] if way in SESSIONS else []
    if shop.dialect == "postgresql":
        acts += [statement_fails, text_fails]
    opened = shop.make(shop.settings.model_copy(update={"pool_size": 1}))
    sandbox = Sandbox("shop", opened.engine)
    with shop.replaced(opened):
        for act in acts:
            with pytest.raises(TransactionAborted):
                await way(shop, act)
            assert await names(shop) == ["lamp", "chair"]
        await by_session(shop, lambda _, session: insert_new(session))
        assert await names(shop) == ["lamp", "chair", "new"]
        assert await sandbox.end(opened.engine) is None
    await opened.engine.dispose()

    assert await names(shop) == ["lamp", "chair"]


@on("postgresql")
async def test_it_is_said_what_undid_it_and_where(shop: Database) -> None:
    with pytest.raises(TransactionAborted) as caught:
        await by_session(shop, statement_fails)

    said = str(caught.value)
    assert said.startswith("shop: the transaction was rolled back before its end: nothing")
    assert "by: INSERT INTO items (label, quantity) VALUES" in said
    assert "(SQLSTATE 23505)" in said
    assert "lamp" not in said
    assert "tests/dbkit/test_transactions.py" in said
    assert "in statement_fails" in said
    assert "async with session.begin_nested():" in said
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert (caught.value.database, caught.value.sqlstate) == ("shop", "23505")


@on(*ENGINES)
async def test_a_savepoint_is_the_way(shop: Database) -> None:
    async with shop.session() as session:
        await insert_new(session)
        for fail in (insert(Item).values(name="lamp"), text("SELECT * FROM nowhere")):
            with suppress(DBAPIError):
                async with session.begin_nested():
                    await session.execute(fail)
        with suppress(IntegrityError):
            async with session.begin_nested():
                session.add(Item(name="lamp"))
        session.add(Item(name="later"))

    assert await names(shop) == ["lamp", "chair", "new", "later"]


@on(*ENGINES)
async def test_who_ends_a_session_himself_is_told_nothing(shop: Database) -> None:
    async with shop.session() as session:
        with suppress(IntegrityError):
            session.add(Item(name="lamp"))
            await session.flush()
        await session.rollback()
    async with shop.session() as session:
        await insert_new(session)
        await session.commit()

    assert await names(shop) == ["lamp", "chair", "new"]


@on(*ENGINES)
async def test_a_generator_that_is_left_says_that_its_session_was_rolled_back(
    shop: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def sessions() -> AsyncGenerator[AsyncSession]:
        async with shop.session() as session:
            yield session

    async def create() -> str:
        async for session in sessions():
            session.add(Item(name="new"))
            return "stored"
        return ""

    assert await create() == "stored"  # Nobody can keep it from saying so.
    gc.collect()
    await until(lambda: "the generator around it was left" in caplog.text)
    assert "shop: a session was rolled back" in caplog.text
    assert "test_transactions.py" in caplog.text
    assert await names(shop) == ["lamp", "chair"]

    async for session in sessions():  # To its end.
        session.add(Item(name="new"))
    assert await names(shop) == ["lamp", "chair", "new"]
    assert caplog.text.count("the generator around it was left") == 1


@on(*ENGINES)
@pytest.mark.parametrize("word", ["COMMIT", "ROLLBACK", "BEGIN"])
async def test_the_ends_of_transactions_are_not_for_text(shop: Database, word: str) -> None:
    for way in WAYS:
        with pytest.raises(InvalidRequestError, match=f"shop: {word} is not for SQL text"):
            await way(shop, lambda _, scope: scope.execute(text(word)))


@on(*POSTGRESQL)
@pytest.mark.parametrize("words", ["COMMIT", "ROLLBACK", "SELECT 1; /* and */ END; SELECT 2"])
async def test_the_drivers_own_text_ends_no_transaction_of_another(
    shop: Database, words: str
) -> None:
    async def act(_: Database, scope: Scope) -> None:
        await insert_new(scope)
        await (await driver_of(scope)).execute(words)

    for way in WAYS:
        with pytest.raises(InvalidRequestError, match="is not for SQL text"):
            await way(shop, act)
    async with shop.driver_connection() as driver, driver.transaction():
        with pytest.raises(InvalidRequestError, match="is not for SQL text"):
            await driver.execute(words)
        await driver.execute("SELECT 'COMMIT'; SELECT 1 AS commit; -- ; COMMIT")
    assert await names(shop) == ["lamp", "chair"]


@on(*MYSQL)
@pytest.mark.parametrize("word", ["BEGIN", "START TRANSACTION", "COMMIT AND CHAIN"])
async def test_a_cursor_of_the_drivers_own_begins_no_other_transaction(
    shop: Database, word: str
) -> None:
    async def act(_: Database, scope: Scope) -> None:
        await insert_new(scope)
        async with (await driver_of(scope)).cursor() as cursor:
            await cursor.execute(word)

    for way in WAYS:
        with pytest.raises(InvalidRequestError, match="is not for SQL text"):
            await way(shop, act)
    assert await names(shop) == ["lamp", "chair"]


@on(*ENGINES)
async def test_a_text_is_one_statement(shop: Database) -> None:
    """Of a second one's errors SQLAlchemy tells nobody."""
    statement = "INSERT INTO items (label, quantity) VALUES ('{}', 1)"
    both = text(f"{statement.format('new')}; {statement.format('lamp')}")
    for way in WAYS:
        with pytest.raises(DBAPIError):
            await way(shop, lambda _, scope: scope.execute(both))
    with pytest.raises(DBAPIError):
        await shop.execute(both)
    assert await names(shop) == ["lamp", "chair"]


@on(*MYSQL)
async def test_what_commits_by_itself_is_refused_in_a_transaction(shop: Database) -> None:
    async def act(_: Database, scope: Scope) -> None:
        await insert_new(scope)
        await scope.execute(text("CREATE TABLE other (id int)"))

    for way in WAYS:
        with pytest.raises(InvalidRequestError, match="shop: CREATE would commit"):
            await way(shop, act)
    assert await names(shop) == ["lamp", "chair"]
    await shop.execute(text("CREATE TABLE other (id int)"))


@on(*MYSQL)
async def test_a_deadlock_in_a_savepoint_is_tried_again(shop: Database) -> None:
    attempts: list[int] = []

    async def work(session: AsyncSession) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            await deadlock_in_a_savepoint(shop, session)
        else:
            await insert_new(session)

    await shop.run_transaction(work)

    assert len(attempts) == 2
    assert "new" in await names(shop)


async def answers(shop: Database, act: Act) -> tuple[int, str]:
    """Have a route act in its session; return the status, and what was stored."""
    app = FastAPI()
    install(app, Databases(shop))

    @app.post("/", status_code=201)
    async def route(session: Annotated[AsyncSession, session_from(shop)]) -> str:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await act(shop, session)
        return "stored"

    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/")
    return response.status_code, response.headers.get("Retry-After", "")


@pytest.mark.parametrize(
    ("declared", "act", "expected"),
    [
        ("postgresql", statement_fails, (500, "")),
        ("pgbouncer", statement_fails, (500, "")),
        ("postgresql", flush_fails, (500, "")),
        ("postgresql", statement_is_cancelled, (500, "")),
        ("sqlite", conflict_rolls_back, (500, "")),
        ("mariadb", deadlock, (503, "1")),
        ("mysql", deadlock_in_a_savepoint, (503, "1")),
    ],
    indirect=["declared"],
)
async def test_no_client_is_told_of_success(
    shop: Database, act: Act, expected: tuple[int, str]
) -> None:
    assert await answers(shop, act) == expected
    assert await names(shop) == ["lamp", "chair"]


async def in_a_background_task(shop: Database, app: FastAPI, told: list[str]) -> None:
    async def work() -> None:
        try:
            await by_session(shop, flush_fails)
        except TransactionAborted:
            told.append("aborted")
            raise
        told.append("stored")

    @app.post("/")
    async def route(tasks: BackgroundTasks) -> None:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        tasks.add_task(work)

    await post(app)


async def in_a_websocket(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.websocket("/")
    async def route(socket: WebSocket) -> None:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await socket.accept()
        await by_session(shop, flush_fails)
        await socket.send_text("stored")

    await converse(app, told)


async def in_a_websocket_by_its_session(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.websocket("/")
    async def route(  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        socket: WebSocket, session: Annotated[AsyncSession, session_from(shop)]
    ) -> None:
        await socket.accept()
        await flush_fails(shop, session)

    await converse(app, told)


async def with_shield(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.post("/")
    async def route() -> str:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await asyncio.shield(by_session(shop, flush_fails))
        return "stored"

    told.append(await post(app))


async def with_shield_of_a_statement(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.post("/")
    async def route(session: Annotated[AsyncSession, session_from(shop)]) -> str:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await asyncio.shield(flush_fails(shop, session))
        return "stored"

    told.append(await post(app))


async def with_a_streaming_response(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.middleware("http")
    async def middleware(request: Request, call_next: Any) -> Response:  # pyright: ignore[reportUnusedFunction] -- Starlette calls it
        return await call_next(request)

    @app.post("/")
    async def route() -> StreamingResponse:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        async def body() -> AsyncGenerator[str]:
            yield "begun, "
            await by_session(shop, flush_fails)
            yield "stored"

        return StreamingResponse(body())

    told.append(await post(app))


async def with_a_middleware(shop: Database, app: FastAPI, told: list[str]) -> None:
    @app.middleware("http")
    async def middleware(request: Request, call_next: Any) -> Response:  # pyright: ignore[reportUnusedFunction] -- Starlette calls it
        return await call_next(request)

    @app.post("/")
    async def route(session: Annotated[AsyncSession, session_from(shop)]) -> StreamingResponse:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        await flush_fails(shop, session)
        return StreamingResponse(iter(["stored"]))

    told.append(await post(app))


async def post(app: FastAPI) -> str:
    """Return the body of a 2xx; "" if there was none, or it broke off."""
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/")
    return response.text if response.is_success else ""


async def converse(app: FastAPI, told: list[str]) -> None:
    """Open a WebSocket, and note what is said before its end."""
    scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            told.append(message["text"])

    try:
        await app(scope, receive, send)
    except TransactionAborted:
        told.append("aborted")


@on("postgresql", "mariadb", "sqlite")
@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (in_a_background_task, ["aborted"]),
        (in_a_websocket, ["aborted"]),
        (in_a_websocket_by_its_session, ["aborted"]),
        (with_shield, [""]),
        (with_shield_of_a_statement, [""]),
        (with_a_streaming_response, ["begun, "]),
        (with_a_middleware, [""]),
    ],
)
async def test_nobody_is_told_of_success_in_any_way(
    shop: Database,
    way: Callable[[Database, FastAPI, list[str]], Awaitable[None]],
    expected: list[str],
) -> None:
    app = FastAPI()
    install(app, Databases(shop))
    told: list[str] = []

    await way(shop, app, told)

    assert told == expected
    assert await names(shop) == ["lamp", "chair"]


@on("postgresql", "mariadb", "sqlite")
async def test_one_of_two_databases_in_a_route_is_undone(shop: Database, tmp_path: Path) -> None:
    other = Database("other", "sqlite", url=f"sqlite:///{tmp_path / 'other.sqlite3'}")
    app = FastAPI()
    install(app, Databases(shop, other))
    undone: list[Database] = []

    @app.post("/")
    async def route(  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
        first: Annotated[AsyncSession, session_from(shop)],
        second: Annotated[AsyncSession, session_from(other)],
    ) -> str:
        for database, session in (shop, first), (other, second):
            if database in undone:
                await flush_fails(database, session)
            else:
                await insert_new(session)
        return "stored"

    async with other.open():
        await fill(other)
        undone[:] = [other]  # It is ended first: nothing is stored in either.
        assert await post(app) == ""
        assert await names(shop) == await names(other) == ["lamp", "chair"]
        undone[:] = [shop]  # The other is committed by then, as the docs say.
        assert await post(app) == ""
        assert await names(shop) == ["lamp", "chair"]
        assert await names(other) == ["lamp", "chair", "new"]


async def by_asyncpg(driver: Any) -> None:
    async with driver.transaction():
        await driver.execute("INSERT INTO items (label, quantity) VALUES ('new', 1)")
        with suppress(Exception):
            await driver.fetch("SELECT 1/0")


async def by_hand(driver: Any) -> None:
    await driver.execute("BEGIN; INSERT INTO items (label, quantity) VALUES ('new', 1)")
    with suppress(Exception):
        await driver.execute("SELECT 1/0")
    await driver.execute("COMMIT")


async def by_hand_and_on(driver: Any) -> None:
    await driver.execute("BEGIN; INSERT INTO items (label, quantity) VALUES ('new', 1)")
    with suppress(Exception):
        await driver.execute("SELECT 1/0")
    try:
        await driver.execute("COMMIT AND CHAIN")
    finally:
        await driver.execute("ROLLBACK")


@on("postgresql")
@pytest.mark.parametrize("act", [by_asyncpg, by_hand, by_hand_and_on])
async def test_a_transaction_of_the_drivers_own_is_not_said_to_be_done(
    shop: Database, act: Callable[[Any], Awaitable[None]]
) -> None:
    async with shop.driver_connection() as driver:
        with pytest.raises(TransactionAborted, match="by: SELECT 1/0"):
            await act(driver)

    assert await names(shop) == ["lamp", "chair"]


@on("postgresql", "pgbouncer")
async def test_a_commit_before_other_statements_is_refused(shop: Database) -> None:
    async with shop.driver_connection() as driver:
        await driver.execute("BEGIN; INSERT INTO items (label, quantity) VALUES ('new', 1)")
        with suppress(Exception):
            await driver.execute("SELECT 1/0")
        with pytest.raises(InvalidRequestError, match="shop: this way to COMMIT"):
            await driver.execute("COMMIT; SELECT 1")
        await driver.execute("ROLLBACK; BEGIN; SELECT 'COMMIT; '; SELECT 1")
        await driver.execute("COMMIT /* ; */ ; -- and no more")

    assert await names(shop) == ["lamp", "chair"]


@on("postgresql", "pgbouncer")
@pytest.mark.parametrize("word", ["COMMIT", "end", "-- well\n COMMIT AND CHAIN"])
async def test_a_commit_whose_answer_the_driver_drops_is_refused(shop: Database, word: str) -> None:
    async def prepared(driver: Any) -> None:
        await (await driver.prepare(word)).fetch()

    ways: list[Callable[[Any], Awaitable[Any]]] = [
        lambda driver: driver.fetch(word),
        lambda driver: driver.fetchval(word),
        lambda driver: driver.executemany(word, [()]),
        prepared,
    ]
    for way in ways:
        async with shop.driver_connection() as driver:
            await driver.execute("BEGIN; INSERT INTO items (label, quantity) VALUES ('new', 1)")
            with suppress(Exception):
                await driver.execute("SELECT 1/0")
            with pytest.raises(InvalidRequestError, match="shop: this way to COMMIT"):
                await way(driver)
            await driver.execute("ROLLBACK")
    async with shop.driver_connection() as driver:  # Outside of one, it commits nothing.
        await driver.fetch("COMMIT")

    assert await names(shop) == ["lamp", "chair"]
