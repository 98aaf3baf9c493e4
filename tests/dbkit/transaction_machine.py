"""A model of transactions: what was stored, and what was answered, whatever their code does."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Annotated, Any

from dbkit import Database, Databases, install, session_from
from fastapi import FastAPI
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from shop import Item
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

SESSIONS = ("session", "run_transaction", "route")
WAYS = (*SESSIONS, "engine", "driver")
MOMENTS = st.integers(0, 40).map(lambda tenths: tenths / 10_000)
"""Seconds, about as long as a statement takes."""
SLOW = {"postgresql": "SELECT pg_sleep(5)", "mysql": "SELECT sleep(5)"}
PATIENCE = 20


class Planted(Exception):
    """An error of the service's own."""


@dataclass
class Savepoint:
    """A savepoint, or the transaction itself, in the model."""

    written: set[str] = field(default_factory=set[str])
    aborted: str = ""
    """What has failed in it and was caught: "statement" or "flush"; nothing more can be done."""


class World:
    """One server, one database that is open, and the loop of both."""

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        self.runner = runner
        self.database = database
        self.runs = 0
        self.body: Callable[[Any], Awaitable[None]] | None = None
        self.app = FastAPI()
        install(self.app, Databases(database))

        @self.app.post("/", status_code=201)
        async def act(session: Annotated[AsyncSession, session_from(database)]) -> str:  # pyright: ignore[reportUnusedFunction] -- FastAPI calls it
            assert self.body is not None
            await self.body(session)
            return "stored"


class Unit:
    """One transaction of a service, told step by step what to do."""

    def __init__(self, world: World, way: str) -> None:
        self.world = world
        self.way = way
        self.steps: asyncio.Queue[tuple[str, Any, asyncio.Future[bool]]] = asyncio.Queue()
        self.client_leaves = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    async def run(self) -> bool:
        """Return whether its caller was told that all is well."""
        database = self.world.database
        if self.way == "session":
            async with database.session() as session:
                await self.follow(session)
        elif self.way == "run_transaction":
            await database.run_transaction(self.follow, attempts=1)
        elif self.way == "engine":
            async with database.engine.begin() as connection:
                await self.follow(connection)
        elif self.way == "driver":
            async with database.driver_connection() as driver, driver.transaction():
                await self.follow(driver)
        else:
            return await self.request()
        return True

    async def request(self) -> bool:
        """Send a request; return whether the answer was a 2xx."""
        self.world.body = self.follow
        statuses: list[int] = []
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/"}
        scope |= {"headers": [], "query_string": b""}
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.client_leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        with suppress(SQLAlchemyError, Planted):  # As a server does, which has sent 500 then.
            await self.world.app(scope, receive, send)
        return statuses != [] and statuses[0] < 300

    async def follow(self, scope: Any) -> None:
        """Do what it is told, until the end of this savepoint or of the transaction."""
        while True:
            step, argument, done = await self.steps.get()
            if step == "leave":
                done.set_result(True)
                if argument:
                    raise Planted
                return
            try:
                if step == "savepoint":
                    await self.nest(scope, done)
                else:
                    await getattr(self, step)(scope, argument)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and self.is_leaving():
                    raise
                if not done.done():
                    done.set_result(False)
            else:
                if not done.done():
                    done.set_result(True)

    def is_leaving(self) -> bool:
        return bool(self.task.cancelling()) or self.client_leaves.is_set()

    async def nest(self, scope: Any, done: asyncio.Future[bool]) -> None:
        begin = scope.transaction if self.way == "driver" else scope.begin_nested
        async with begin():
            done.set_result(True)
            await self.follow(scope)

    async def tell(self, step: str, argument: Any = None) -> bool:
        """Have it do a step; return whether that raised nothing."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.steps.put_nowait((step, argument, done))
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([done, self.task], return_when=asyncio.FIRST_COMPLETED)
        return done.done() and done.result()

    async def outcome(self) -> bool:
        """Return, once it has ended, whether its caller was told that all is well."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([self.task])
        return not self.task.cancelled() and self.task.exception() is None and self.task.result()

    # Steps

    async def write(self, scope: Any, name: str) -> None:
        if self.way == "driver":
            await scope.execute("INSERT INTO items (label, quantity) VALUES ($1, 0)", name)
        else:
            await scope.execute(insert(Item).values(name=name))

    async def write_in_a_task(self, scope: Any, name: str) -> None:
        await asyncio.create_task(self.write(scope, name))

    async def write_shielded(self, scope: Any, name: str) -> None:
        await asyncio.shield(self.write(scope, name))

    async def flush(self, scope: AsyncSession, name: str) -> None:
        scope.add(Item(name=name))
        await scope.flush()

    async def add(self, scope: AsyncSession, name: str) -> None:
        scope.add(Item(name=name))

    async def fail_at_the_driver(self, scope: Any, _: None) -> None:
        """Have the driver, past SQLAlchemy, run what fails."""
        await scope.execute(text("SELECT 1"))  # asyncpg begins with the first statement.
        connection = scope if self.way == "engine" else await scope.connection()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute("SELECT 1/0")

    async def cancel(self, scope: Any, _: None) -> None:
        """Cancel a statement that the server runs, in a transaction that has begun."""
        if self.way == "driver":
            await scope.execute("SELECT 1")
        else:
            await scope.execute(text("SELECT 1"))
        async with asyncio.timeout(0.02):
            statement = SLOW[self.world.database.dialect]
            await scope.execute(statement if self.way == "driver" else text(statement))

    async def write_within(self, scope: Any, argument: tuple[str, float]) -> None:
        """Write, or be cancelled: for a connection, in BEGIN, or in the statement."""
        name, seconds = argument
        async with asyncio.timeout(seconds):
            await self.write(scope, name)

    async def set(self, scope: Any, _: None) -> None:
        await scope.execute(text("SET LOCAL lock_timeout = '2s'"))

    async def block(self, _scope: Any, _: None) -> None:
        time.sleep(0.005)  # noqa: ASYNC251 -- that is what is tried

    async def roll_back(self, scope: Any, _: None) -> None:
        await scope.rollback()

    async def commit(self, scope: Any, _: None) -> None:
        await scope.commit()

    async def roll_back_on_conflict(self, scope: Any, name: str) -> None:
        statement = "INSERT OR ROLLBACK INTO items (label, quantity) VALUES (:name, 0)"
        await scope.execute(text(statement), {"name": name})

    async def deadlock(self, scope: Any, names: tuple[str, str]) -> None:
        """Lose against a transaction that has written more."""
        mine, theirs = names
        change = update(Item).values(quantity=Item.quantity + 1)
        locked = asyncio.Event()

        async def win() -> None:
            async with self.world.database.session() as session:
                weight = [{"name": f"{theirs} {number}"} for number in range(50)]
                await session.execute(insert(Item), weight)
                await session.execute(change.where(Item.name == theirs))
                locked.set()
                await session.execute(change.where(Item.name == mine))
                await session.rollback()

        await scope.execute(change.where(Item.name == mine))
        # Of no request: one that commits is finished, whether its client leaves or not.
        wins = asyncio.create_task(win(), context=Context())
        await locked.wait()
        try:
            await scope.execute(change.where(Item.name == theirs))
        finally:
            await wins


class TransactionMachine(RuleBasedStateMachine):
    """Transactions begin one after the other, in every way, and their code does what it likes."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.runs += 1
        self.run_number = self.world.runs
        self.number = 0
        self.history: list[tuple[str, Any, bool]] = []
        self.stored: set[str] = set()
        self.unit: Unit | None = None
        self.savepoints: list[Savepoint] = []
        self.undone = False
        """Whether the whole transaction is gone, and its code goes on."""
        self.over = False
        """Whether its code has ended it itself."""
        self.unsure = False
        """Whether it may be gone: something was cancelled, and nobody knows when."""
        self.unknown: set[str] = set()
        """What may be stored or not: COMMIT was cancelled."""

    def run(self, work: Awaitable[Any]) -> Any:
        async def waiting() -> Any:
            return await work

        return self.world.runner.run(waiting())

    def new_name(self) -> str:
        self.number += 1
        return f"run {self.run_number} item {self.number}"

    @property
    def dialect(self) -> str:
        return self.world.database.dialect

    @property
    def top(self) -> Savepoint:
        return self.savepoints[-1]

    @property
    def is_well(self) -> bool:
        return not (self.undone or self.over or self.unsure or self.top.aborted)

    def tell(self, step: str, argument: Any = None) -> bool:
        assert self.unit is not None
        done = self.run(self.unit.tell(step, argument))
        self.history.append((step, argument, done))
        return done

    @initialize()
    def open(self) -> None:
        self.taken = [self.new_name(), self.new_name()]

        async def store() -> None:
            async with self.world.database.session() as session:
                session.add_all(Item(name=name) for name in self.taken)

        self.run(store())
        self.stored.update(self.taken)

    # A transaction begins and ends

    # The only rule then: hypothesis leaves some out in each run, but never the last one.
    @precondition(lambda self: self.unit is None)
    @rule(way=st.sampled_from(WAYS), after_another=st.booleans())
    def begins(self, way: str, *, after_another: bool) -> None:
        if after_another:
            self.another_task_writes()
        if way == "driver" and self.dialect != "postgresql":
            way = "engine"
        self.savepoints, self.undone, self.over, self.unsure = [Savepoint()], False, False, False

        self.history = [(way, "", True)]

        async def begin() -> Unit:
            return Unit(self.world, way)

        self.unit = self.run(begin())

    @precondition(lambda self: self.unit)
    @rule(fails=st.booleans())
    def leaves(self, *, fails: bool) -> None:
        """Leave the innermost savepoint, or the transaction."""
        self.tell("leave", fails)
        left = self.savepoints.pop()
        if not self.savepoints:
            answered = self.outcome()
            well = not (fails or self.undone or left.aborted)
            if self.unsure and not fails:
                well = answered
            assert answered == well, f"told {answered}, not {well}"
            if well and not self.over:
                self.stored |= left.written
            self.check()
        elif not self.over and not self.undone:
            if not fails and left.aborted == "statement":
                self.top.aborted = "statement"  # RELEASE fails: what is around it may go back.
            elif not fails and not left.aborted:
                self.top.written |= left.written

    @precondition(lambda self: self.unit)
    @rule()
    def client_leaves(self) -> None:
        assert self.unit is not None
        unit = self.unit

        async def leave() -> None:
            if unit.way == "route":
                unit.client_leaves.set()
            else:
                unit.task.cancel()

        self.run(leave())
        assert not self.outcome()
        self.check()

    @precondition(lambda self: self.unit and self.is_well and len(self.savepoints) == 1)
    @rule(seconds=MOMENTS)
    def client_leaves_at_the_end(self, seconds: float) -> None:
        """Leave while the transaction ends: at COMMIT, before or behind it."""
        assert self.unit is not None
        unit = self.unit

        async def end_and_leave() -> None:
            done = asyncio.get_running_loop().create_future()
            unit.steps.put_nowait(("leave", False, done))
            await asyncio.sleep(seconds)
            if unit.way == "route":
                unit.client_leaves.set()
            else:
                unit.task.cancel()

        self.run(end_and_leave())
        (self.stored if self.outcome() else self.unknown).update(self.top.written)
        self.check()

    def outcome(self) -> bool:
        assert self.unit is not None
        unit, self.unit = self.unit, None
        return self.run(unit.outcome())

    def check(self) -> None:
        """Compare what is stored with the model."""
        mine = Item.name.startswith(f"run {self.run_number} ", autoescape=True)
        found = set(self.run(self.world.database.reader.scalars(select(Item.name).where(mine))))
        surplus, missing = found - self.stored - self.unknown, self.stored - found
        history = "".join(f"\n  {each}" for each in self.history)
        assert not surplus, f"stored, though nobody was told so: {surplus}{history}"
        assert not missing, f"lost, though somebody was told otherwise: {missing}{history}"

    @precondition(lambda self: self.unit and self.is_well and len(self.savepoints) < 4)
    @rule()
    def savepoint_begins(self) -> None:
        assert self.tell("savepoint")
        self.savepoints.append(Savepoint())

    # What its code does

    @precondition(lambda self: self.unit and not self.unsure)
    @rule(how=st.sampled_from(["write", "write_in_a_task", "write_shielded"]))
    def writes(self, how: str) -> None:
        name = self.new_name()
        assert self.tell(how, name) == self.is_well
        if self.is_well:
            self.top.written.add(name)

    @precondition(lambda self: self.unit and self.is_well and len(self.savepoints) == 1)
    @rule(seconds=MOMENTS)
    def write_is_cancelled(self, seconds: float) -> None:
        """Cancel at any moment: what follows may be refused, and what is stored is all or none."""
        name = self.new_name()
        assert self.unit is not None
        if self.tell("write_within", (name, seconds)):
            self.top.written.add(name)
        elif self.unit.way == "driver":
            self.unknown.add(name)  # The server was done, and asyncpg goes on in the transaction.
        self.unsure = True

    @precondition(lambda self: self.unit and self.unsure and not self.over)
    @rule()
    def writes_after_that(self) -> None:
        name = self.new_name()
        if self.tell("write", name):
            self.top.written.add(name)

    @precondition(lambda self: self.unit and self.unit.way in SESSIONS and self.is_well)
    @rule()
    def flushes(self) -> None:
        name = self.new_name()
        assert self.tell("flush", name)
        self.top.written.add(name)

    @precondition(
        lambda self: (
            self.unit
            and self.unit.way in SESSIONS
            and not (self.undone or self.unsure or self.top.aborted)
        )
    )
    @rule()
    def adds(self) -> None:
        """Add what is only flushed at the end."""
        name = self.new_name()
        assert self.tell("add", name) == self.is_well
        if self.is_well:
            self.top.written.add(name)

    @precondition(lambda self: self.unit and self.is_well)
    @rule()
    def statement_fails(self) -> None:
        assert not self.tell("write", self.taken[0])
        if self.dialect == "postgresql":
            self.top.aborted = "statement"

    @precondition(
        lambda self: (
            self.unit
            and self.unit.way != "driver"
            and self.is_well
            and self.dialect == "postgresql"
        )
    )
    @rule()
    def statement_fails_at_the_driver(self) -> None:
        assert not self.tell("fail_at_the_driver")
        self.top.aborted = "statement"

    @precondition(lambda self: self.unit and self.unit.way in SESSIONS and self.is_well)
    @rule()
    def flush_fails(self) -> None:
        assert not self.tell("flush", self.taken[1])
        self.top.aborted = "flush"

    @precondition(lambda self: self.unit and self.is_well and self.dialect in SLOW)
    @rule()
    def statement_is_cancelled(self) -> None:
        assert not self.tell("cancel")
        if self.unit and self.unit.way == "driver":
            self.top.aborted = "statement"  # asyncpg asks the server to end it, and goes on.
        else:
            self.undone = True

    @precondition(lambda self: self.unit and self.is_well and self.dialect != "postgresql")
    @rule()
    def another_transaction_is_in_the_way(self) -> None:
        if self.dialect == "mysql":
            assert not self.tell("deadlock", (self.taken[0], self.taken[1]))
        else:
            assert not self.tell("roll_back_on_conflict", self.taken[0])
        self.undone = True

    # One rule for three: each step that changes nothing is one less that may.
    @precondition(lambda self: self.unit)
    @rule(what=st.sampled_from(["block", "set", "another"]))
    def goes_on(self, what: str) -> None:
        assert self.unit is not None
        is_postgresql = self.dialect == "postgresql"
        if what == "another":
            # MariaDB locks what is beside a row that was there already, SQLite all of the file.
            if is_postgresql:
                self.another_task_writes()
        elif what == "block" or (is_postgresql and self.is_well and self.unit.way != "driver"):
            assert self.tell(what)

    @precondition(lambda self: self.unit and self.unit.way in SESSIONS and not self.over)
    @rule(commits=st.booleans())
    def ends_it_itself(self, *, commits: bool) -> None:
        if commits and self.is_well:
            assert self.tell("commit")
            self.stored.update(*(each.written for each in self.savepoints))
        else:
            assert self.tell("roll_back")
            self.undone, self.unsure = False, False
            for each in self.savepoints:
                each.aborted = ""
        self.over = True

    def another_task_writes(self) -> None:
        name = self.new_name()

        async def write() -> None:
            await self.world.database.execute(insert(Item).values(name=name))

        self.run(write())
        self.stored.add(name)

    def teardown(self) -> None:
        while self.unit is not None:
            self.leaves(fails=sys.exception() is not None)
        self.check()
        self.run(self.world.database.execute(delete(Item).where(Item.name.startswith("run "))))
        status = self.world.database.pool.snapshot()
        assert (status.in_use, status.waiting) == (0, 0)
