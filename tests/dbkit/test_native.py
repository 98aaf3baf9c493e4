"""A statement that runs natively gives what SQLAlchemy's way gives: rows, types, errors, text."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportUnknownLambdaType=false
# pyright: reportAttributeAccessIssue=false, reportPrivateUsage=false

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pickle import dumps, loads
from types import NoneType
from typing import Any

import native_statements as statements
import pytest
from catalogue import Money, Status
from dbkit import Database
from dbkit.commands.embedded import EmbeddedPostgres
from dbkit.database.native import nothing, run_natively
from dbkit.database.readers import run_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from native_statements import (
    ERRORS,
    FULL,
    PARTS,
    READS,
    ROWS,
    WRITES,
    Case,
    metadata,
    parts,
    things,
)
from sqlalchemy import (
    Dialect,
    Double,
    Integer,
    bindparam,
    event,
    func,
    insert,
    literal,
    not_,
    select,
    text,
    update,
)
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import await_only, greenlet_spawn, immutabledict
from waiting import until

Way = Callable[[Database, Any, Any], Coroutine[Any, Any, Any]]


async def natively(database: Database, statement: Any, params: Any) -> Any:
    """Run a statement natively; the refusal, if it is refused."""
    engine = database.engine.sync_engine
    result = await run_natively(engine, statement, params, nothing)
    assert result is not None, "SQLAlchemy has to run it"
    return result


async def by_sqlalchemy(database: Database, statement: Any, params: Any) -> Any:
    """Run a statement as SQLAlchemy does."""
    engine = database.engine.sync_engine
    return await greenlet_spawn(run_alone, engine, statement, params, nothing)


@pytest.fixture(scope="module")
async def shop(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """Open a database with rows of each type."""
    postgres.create_database("native")
    url = postgres.url("native").render_as_string(hide_password=False)
    settings: dict[str, Any] = {"pool_size": 2, "statement_timeout": 0.5}
    async with Database("shop", "postgresql", url=url, **settings).open() as database:
        await make(database)
        yield database


async def make(database: Database) -> None:
    """Make the tables, and two functions that fail."""
    async with database.session() as session:
        await (await session.connection()).run_sync(metadata.create_all)
        await session.execute(text(statements.RAISES))
        await session.execute(text(statements.RAISES_CODE))


async def fill(database: Database) -> None:
    """Have the same rows, and the same numbers to come."""
    statements.numbers = count(1)
    async with database.session() as session:
        names = ", ".join(f'"{name}"' for name in metadata.tables)
        await session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        await session.execute(text("DROP TABLE IF EXISTS made"))
        for name in ("serials", "numbered_ids"):
            await session.execute(text(f"ALTER SEQUENCE {name} RESTART"))
        for row in ROWS:
            await session.execute(insert(things), row)
        await session.execute(insert(parts), PARTS)


async def outcome(database: Database, way: Way, case: Case) -> dict[str, Any]:
    """Run a statement, and note all that its caller can see of it."""
    used = database.pool.usage.routes.get("(no route)")
    before = used.statements if used else 0
    try:
        result = await way(database, case.statement, case.params)
    except Exception as error:  # noqa: BLE001 -- to be compared
        seen = of_error(error)
    else:
        seen = of_result(result)
    used = database.pool.usage.routes.get("(no route)")
    seen["statements counted"] = (used.statements if used else 0) - before
    seen["connections held"] = database.pool.checkedout()
    if case.after is not None:
        written = await by_sqlalchemy(database, case.after, None)
        seen["written"] = of_result(written)
    return seen


def of_result(result: Any) -> dict[str, Any]:
    """Note what a result says."""
    seen: dict[str, Any] = {"class": type(result), "returns rows": result.returns_rows}
    if isinstance(result, CursorResult):
        context: Any = result.context
        seen |= {
            "text": context.statement,
            "parameters": repr(context.parameters),
            "compiled parameters": repr(context.compiled_parameters),
            "rows": result.rowcount,
            "closed": context.root_connection.closed,
        }
        for name in (
            "is_insert",
            "inserted_primary_key",
            "inserted_primary_key_rows",
            "returned_defaults",
            "returned_defaults_rows",
            "postfetch_cols",
            "prefetch_cols",
            "last_inserted_params",
            "last_updated_params",
            "lastrow_has_defaults",
            "supports_sane_rowcount",
            "lastrowid",
        ):
            try:
                value = getattr(result, name)
                seen[name] = repr(value() if callable(value) else value)
            except Exception as error:  # noqa: BLE001 -- to be compared
                seen[name] = repr(error)
    if result.returns_rows:
        seen["keys"] = list(result.keys())
        seen["by column"] = sorted(map(repr, result._metadata._keymap))  # noqa: SLF001
        found = result.all()
        seen["found"] = repr(found)
        seen["types"] = [[type(value) for value in row] for row in found]
        seen["mappings"] = repr([row._asdict() for row in found])
        seen["hashes"] = [type(row) for row in found]
    return {name: without_addresses(value) for name, value in seen.items()}


def without_addresses(value: Any) -> Any:
    """Leave out where in memory an object is."""
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def of_error(error: BaseException) -> dict[str, Any]:
    """Note what an error says."""
    seen: dict[str, Any] = {
        "class": type(error),
        "text": str(error),
        "notes": getattr(error, "__notes__", []),
        "cause": repr(error.__cause__),
    }
    for name in (
        "database",
        "schema_differs",
        "code",
        "connection_invalidated",
        "ismulti",
        "statement",
        "params",
        "hide_parameters",
        "detail",
    ):
        seen[name] = repr(getattr(error, name, None))
    if isinstance(error, StatementError):
        orig: Any = error.orig
        seen["orig"] = type(orig), str(orig), getattr(orig, "sqlstate", None), repr(orig.__cause__)
    return seen


async def compare(database: Database, case: Case, *, times: int = 2) -> None:
    """Run a statement both ways, on the same rows; natively so often: it is compiled but once."""
    pool = database.pool
    native = pool.counters.native
    if case.by_sqlalchemy:
        assert (
            await run_natively(database.engine.sync_engine, case.statement, case.params, nothing)
            is None
        )
        assert pool.counters.native == native
        return
    await fill(database)
    expected = await outcome(database, by_sqlalchemy, case)
    for turn in range(times):
        if not turn or case.after is not None or not case.statement.is_select:
            await fill(database)
        again = await outcome(database, natively, case)
        assert again == expected
    await until(lambda: pool.checkedout() == 0)


@pytest.mark.parametrize("name", [*READS, *WRITES])
async def test_the_result_is_the_same(shop: Database, name: str) -> None:
    await compare(shop, (READS | WRITES)[name])


@pytest.mark.parametrize("name", ERRORS)
async def test_the_error_is_the_same(shop: Database, name: str) -> None:
    await compare(shop, ERRORS[name], times=1)


NAMES = select(things.c.name).where(things.c.id == bindparam("id"))


class Awaited(TypeDecorator[int]):
    """A type that asks somebody asynchronous, which SQLAlchemy's way allows."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Return what it is told."""
        return await_only(asyncio.sleep(0, value))


def listen(target: Any, name: str) -> Callable[[], None]:
    """Listen to nothing, until what is returned is called."""

    def listener(*arguments: Any, **_: Any) -> Any:
        return None

    event.listen(target, name, listener)
    return lambda: event.remove(target, name, listener)


def patched(target: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute, until what is returned is called."""
    before = getattr(target, name)
    setattr(target, name, value)
    return lambda: setattr(target, name, before)


def another_do_execute(engine: Any) -> Callable[[], None]:
    return patched(engine.dialect, "do_execute", partial(engine.dialect.do_execute))


CHANGES: dict[str, tuple[str, Callable[[Any], Callable[[], None]]]] = {
    "after_cursor_execute": (
        "listeners to the engine",
        lambda engine: listen(engine, "after_cursor_execute"),
    ),
    "checkout": ("listeners to the pool", lambda engine: listen(engine, "checkout")),
    "checkin": ("listeners to the pool", lambda engine: listen(engine, "checkin")),
    "reset": ("listeners to the pool", lambda engine: listen(engine.pool, "reset")),
    "do_execute": ("listeners to do_execute", lambda engine: listen(engine, "do_execute")),
    "another": ("another do_execute", another_do_execute),
    "pool": (
        "echo_pool",
        lambda engine: patched(engine.pool, "_should_log_debug", lambda: True),
    ),
    "options": (
        "execution options",
        lambda engine: patched(engine, "_execution_options", immutabledict({"a": 1})),
    ),
}


@pytest.fixture
async def own(postgres: EmbeddedPostgres, shop: Database) -> AsyncIterator[Database]:
    """Open the same database, with a pool of its own that says what it does."""
    await fill(shop)
    url = postgres.url("native").render_as_string(hide_password=False)
    settings: dict[str, Any] = {"pool_size": 2, "queue_target": 0, "echo": True}
    async with Database("shop", "postgresql", url=url, **settings).open() as database:
        yield database


@pytest.mark.parametrize("change", CHANGES)
async def test_what_somebody_listens_to_goes_sqlalchemys_way(
    own: Database, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    why, begin = CHANGES[change]
    for _ in range(3):  # From now on it has its plan.
        await own.reader.scalar(NAMES, {"id": 1})
    end = begin(own.engine.sync_engine)
    try:
        with caplog.at_level("INFO", "sqlalchemy.engine"):
            assert await own.reader.scalar(NAMES, {"id": 1}) == "lamp"
    finally:
        end()

    assert own.pool.snapshot().native == 3
    assert f"in a greenlet, for {why}:" in caplog.text


async def test_a_statement_that_runs_again_is_compiled_no_more(
    own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = select(things.c.name).where(things.c.id == bindparam("id"))
    for _ in range(2):
        assert await own.reader.scalar(statement, {"id": 1}) == "lamp"
    with monkeypatch.context() as changed:
        changed.setattr(type(statement), "_compile_w_cache", None)
        assert await own.reader.scalar(statement, {"id": 1}) == "lamp"

    derived = statement.add_columns(things.c.small)
    assert list((await own.reader.execute(derived, {"id": 1})).keys()) == ["name", "small"]
    one = select(literal(1))
    for _ in range(2):
        assert await own.reader.scalar(one) == 1
    assert await own.reader.scalar(loads(dumps(one))) == 1  # noqa: S301 -- ours
    with pytest.raises(StatementError, match="A value is required"):
        await own.reader.scalar(statement)


@pytest.mark.parametrize(
    "build",
    [
        lambda: select(things),
        lambda: select(things.c.id, things.c.name),
        lambda: select(things.c.id.label("number"), things.c.name),
        lambda: select(func.length(things.c.name)),
        lambda: select(things.alias()),
        lambda: select(things.c.id).union_all(select(parts.c.id)),
    ],
)
async def test_a_row_knows_the_columns_of_its_own_statement(
    own: Database, build: Callable[[], Any]
) -> None:
    for _ in range(3):
        statement = build()
        row: Any = (await own.reader.execute(statement)).first()
        columns = statement._all_selected_columns  # noqa: SLF001 -- those of the row
        assert [repr(row._mapping[column]) for column in columns] == list(map(repr, row))  # noqa: SLF001 -- public


async def test_a_listener_to_all_sessions_is_told_of_text(own: Database) -> None:
    end = listen(Session, "do_orm_execute")
    try:
        assert await own.reader.scalar(text("SELECT 1")) == 1
    finally:
        end()

    assert own.pool.snapshot().native == 0


async def test_which_way_a_statement_went_is_counted_and_said(
    own: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "sqlalchemy.engine"):
        assert await own.reader.scalar(NAMES, {"id": 1}) == "lamp"

    assert own.pool.snapshot().native == 1
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("SELECT things.name")
    assert said[1].startswith("[generated in ")
    assert said[1].endswith("s (native)] (1,)")


async def test_a_type_that_awaits_goes_sqlalchemys_way(own: Database) -> None:
    statement = select(things.c.name).where(things.c.id == literal(1, Awaited))

    assert await own.reader.scalar(statement) == "lamp"

    assert own.pool.snapshot().native == 0
    assert own.pool.checkedout() == 0


async def test_what_may_not_begin_sends_nothing(own: Database) -> None:
    def begin() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await run_natively(own.engine.sync_engine, text("DELETE FROM parts"), None, begin)

    assert own.pool.checkedout() == own.pool.snapshot().lost == 0
    assert await own.reader.scalar(select(func.count()).select_from(parts)) == len(PARTS)


async def test_a_transaction_after_it_is_one(own: Database) -> None:
    for way in (NAMES, text("SELECT 1 / 0")):
        with suppress(DBAPIError):
            await own.reader.execute(way, {"id": 1})
        async with own.session() as session:
            await session.execute(update(things).values(small=99))
            await session.rollback()

    assert await own.reader.scalar(select(func.max(things.c.small))) == FULL["small"]


async def pool_after_cancellation(database: Database, way: Way) -> dict[str, Any]:
    """Cancel a statement that runs; return what the pool says then."""
    pool = database.pool
    before = vars(pool.snapshot())
    task = asyncio.create_task(way(database, text("SELECT pg_sleep(60)"), None))
    await until(lambda: any(use.sql_since for use in pool.uses()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: pool.checkedout() == 0)
    after = vars(pool.snapshot())
    return {name: after[name] - before[name] for name in ("lost", "retired", "native", "in_use")}


async def test_a_cancellation_does_the_same(own: Database) -> None:
    expected = await pool_after_cancellation(own, by_sqlalchemy)

    assert await pool_after_cancellation(own, natively) == expected
    assert expected["lost"] == 1


async def test_what_nobody_awaits_any_more_gives_its_connection_up(
    own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own.reader.scalar(text("SELECT 1"))
    pool, reading = own.pool, own.reader.execute(text("SELECT pg_sleep(60)"))
    loop = asyncio.get_running_loop()
    # asyncpg tells a caller that there is no more.
    monkeypatch.setattr(loop, "_exception_handler", lambda _loop, _context: None)
    reading.send(None)
    assert pool.checkedout() == 1

    reading.close()  # As the garbage collector does.

    await until(lambda: pool.checkedout() == 0)
    assert pool.snapshot().lost == 1
    assert await own.reader.scalar(text("SELECT 1")) == 1


async def test_a_new_pool_is_used_at_once(own: Database) -> None:
    await own.reader.scalar(NAMES, {"id": 1})
    await own.engine.dispose()

    assert await own.reader.scalar(NAMES, {"id": 1}) == "lamp"

    assert own.pool.snapshot().native == 2
    assert own.pool.snapshot().idle == 1


async def test_each_caller_gets_its_own_row(own: Database) -> None:
    """Of many at once on few connections, of which some are cancelled in the middle."""
    chance = random.Random(17)  # noqa: S311 -- the same each time
    own_value = text("SELECT :n + 0 * length(pg_sleep(:seconds)::text)").bindparams(
        bindparam("n", type_=Integer), bindparam("seconds", type_=Double)
    )

    async def ask(number: int) -> None:
        params = {"n": number, "seconds": chance.choice([0.0, 0.001, 0.005])}
        assert await own.reader.scalar(own_value, params) == number

    tasks = [asyncio.create_task(ask(number)) for number in range(200)]
    for task in chance.sample(tasks, 60):
        await asyncio.sleep(0.001)
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(each) for each in ended} <= {NoneType, asyncio.CancelledError}
    assert ended.count(None) >= 140
    assert own.pool.checkedout() == 0


COLUMNS = [column for column in things.c if column.key not in {"pickled", "relation"}]
NUMBERS = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1))
TEXTS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
CONDITIONS = st.one_of(
    st.builds(things.c.small.__eq__, NUMBERS.map(lambda n: n and n % 2**15)),
    st.builds(things.c.id.in_, st.lists(st.integers(-5, 5), max_size=5)),
    st.builds(things.c.name.not_in, st.lists(TEXTS, max_size=3)),
    st.builds(things.c.name.contains, st.text("a%_/", max_size=3), autoescape=st.booleans()),
    st.builds(things.c.tags.contains, st.lists(st.text("ab", max_size=2), max_size=2)),
    st.builds(things.c.tree.contains, st.dictionaries(st.text("ac", max_size=1), NUMBERS)),
    st.builds(things.c.price.__lt__, st.decimals(-(10**9), 10**9, places=2)),
    st.builds(things.c.at_there.__gt__, st.datetimes(datetime(1, 1, 3), timezones=st.just(UTC))),  # noqa: DTZ001 -- which has one
    st.builds(things.c.key.__eq__, st.one_of(st.none(), st.uuids())),
    st.builds(things.c.picture.__eq__, st.one_of(st.none(), st.binary())),
    st.builds(things.c.status.__eq__, st.sampled_from([None, *Status])),
    st.builds(things.c.cents.__eq__, st.builds(Money, st.integers(-(2**63), 2**63 - 1))),
)


@st.composite
def selects(draw: st.DrawFn) -> Any:
    """Draw a statement that reads."""
    columns = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=6))
    labelled = [
        each.label(f"x{n}") if draw(st.booleans()) else each for n, each in enumerate(columns)
    ]
    statement: Any = select(*labelled)
    for condition in draw(st.lists(CONDITIONS, max_size=3)):
        statement = statement.where(not_(condition) if draw(st.booleans()) else condition)
    if draw(st.booleans()):
        statement = statement.outerjoin(parts, parts.c.thing_id == things.c.id)
        statement = statement.add_columns(parts.c.note, literal(draw(NUMBERS), Integer))
    statement = statement.order_by(things.c.id)
    if draw(st.booleans()):
        statement = statement.limit(draw(st.integers(0, 5))).offset(draw(st.integers(0, 2)))
    if draw(st.booleans()):
        statement = select(func.count()).select_from(statement.subquery())
    return statement


VALUES = st.fixed_dictionaries(
    {"name": TEXTS.map(lambda text: text and text[:20])},
    optional={
        "small": st.integers(-(2**16), 2**16),  # Some are out of range.
        "price": st.decimals(-(10**11), 10**11, places=2),
        "wide": st.floats(),
        "tags": st.lists(TEXTS, max_size=3),
        "data": st.recursive(NUMBERS | TEXTS, lambda each: st.lists(each, max_size=3)),
        "day": st.one_of(st.none(), st.dates()),
        "took": st.timedeltas(timedelta(days=-(10**6)), timedelta(days=10**6)),
        "cents": st.builds(Money, st.integers(-(2**63), 2**63 - 1)),
    },
)


@st.composite
def writes(draw: st.DrawFn) -> Any:
    """Draw a statement that writes."""
    values = draw(VALUES)
    statement: Any = insert(things).values(values)
    if draw(st.booleans()):
        statement = update(things).values(values).where(things.c.id == draw(st.integers(1, 5)))
    if draw(st.booleans()):
        statement = statement.returning(*draw(st.lists(st.sampled_from(COLUMNS), min_size=1)))
    return statement


@pytest.fixture(scope="module")
def runner(postgres: EmbeddedPostgres) -> Iterator[tuple[asyncio.Runner, Database]]:
    """Open the same database in a loop that hypothesis can run."""
    postgres.create_database("drawn")
    url = postgres.url("drawn").render_as_string(hide_password=False)
    database = Database("shop", "postgresql", url=url, pool_size=1)
    with asyncio.Runner() as runner:
        runner.run(database.start(database.read_settings({})))
        runner.run(make(database))
        yield runner, database
        runner.run(database.stop())


@settings(max_examples=150, deadline=None)
@given(statement=st.one_of(selects(), writes()))
def test_drawn_statements_are_the_same(
    runner: tuple[asyncio.Runner, Database], statement: Any
) -> None:
    loop, database = runner
    after = select(things).order_by(things.c.id) if statement.is_dml else None

    loop.run(compare(database, Case(statement, after=after)))
