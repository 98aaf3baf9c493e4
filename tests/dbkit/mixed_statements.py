"""Mixed statements, each with an answer that only it can have."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, func, insert, literal, literal_column, select, text
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, Range
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import JSON, BigInteger

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of the one table."""

    type_annotation_map = {dict[str, int]: JSON}  # noqa: RUF012 -- as SQLAlchemy declares it


class Row(Base):
    """What clients write and read."""

    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    label: Mapped[str]
    details: Mapped[dict[str, int]]


async def arithmetic(connection: AsyncConnection, number: int) -> bool:
    """Ask for a sum; the text of the statement is one of many."""
    part = number % 50
    statement = text(f"SELECT CAST(:number AS bigint) + {part}")
    return await connection.scalar(statement, {"number": number}) == number + part


async def types(connection: AsyncConnection, number: int) -> bool:
    """Ask for values whose types asyncpg has to look up, or decodes by itself."""
    moment = EPOCH + timedelta(seconds=number % 10_000_000)
    uuid = UUID(int=number)
    numbers = [number, number + 1]
    statement = select(
        literal(uuid),
        literal(moment),
        literal(numbers, ARRAY(BigInteger)),
        literal_column("CAST('[1,5)' AS int4range)", INT4RANGE),
    )
    row = (await connection.execute(statement)).one()
    return tuple(row) == (uuid, moment, numbers, Range(1, 5))


async def rows(connection: AsyncConnection, number: int) -> bool:
    """Ask for many rows."""
    count = number % 100
    found = await connection.execute(select(func.generate_series(number, number + count)))
    return list(found.scalars()) == list(range(number, number + count + 1))


async def failure(connection: AsyncConnection, number: int) -> bool:
    """Ask for what the server refuses."""
    try:
        await connection.scalar(select(literal(number, BigInteger) / literal_column("0")))
    except DBAPIError as error:
        await connection.rollback()
        return getattr(error.orig, "sqlstate", None) == "22012"
    return False


async def written(connection: AsyncConnection, number: int) -> bool:
    """Write two rows at once, and read one back."""
    values = [
        {"id": 2 * number + i, "label": f"row {number}", "details": {"number": number}}
        for i in (0, 1)
    ]
    await connection.execute(insert(Row), values)
    found = await connection.execute(select(Row.label, Row.details).where(Row.id == 2 * number))
    return tuple(found.one()) == (f"row {number}", {"number": number})


async def streamed(connection: AsyncConnection, number: int) -> bool:
    """Read rows through a cursor of the server."""
    async with connection.stream(select(func.generate_series(number, number + 99))) as found:
        return [value async for value in found.scalars()] == list(range(number, number + 100))


async def reflected(connection: AsyncConnection, number: int) -> bool:
    """Run several statements in a greenlet, a savepoint around the first."""

    def work(ours: Connection) -> int | None:
        with ours.begin_nested():
            ours.execute(text("SELECT set_config('lock_timeout', '1s', true)"))
        return ours.scalar(select(literal(number, BigInteger)))

    return await connection.run_sync(work) == number


ANYWHERE = (arithmetic, types, rows, failure)
IN_TRANSACTIONS = (written, streamed, reflected)


async def run(engine: AsyncEngine, *, clients: int, turns: int) -> Counter[str]:
    """Run `turns` pieces of work in each of so many clients; count what was not right.

    Half of them are outside of transactions. A piece is one to three statements.
    """
    wrong: Counter[str] = Counter()
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    async def client(ours: int) -> None:
        order = random.Random(ours)  # noqa: S311 -- no secret
        for turn in range(turns):
            number = ours * turns + turn
            outside = order.random() < 0.5
            piece = order.choice(ANYWHERE if outside else ANYWHERE + IN_TRANSACTIONS)
            try:
                async with (autocommit if outside else engine).connect() as connection:
                    right = await piece(connection, number)
                    await connection.commit()
                wrong["wrong answer"] += not right
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is counted
                wrong[type(getattr(error, "orig", error)).__name__] += 1

    await asyncio.gather(*(client(each) for each in range(clients)))
    return +wrong
