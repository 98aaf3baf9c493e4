"""The embedded PostgreSQL: it serves, it is closed to others, and it never outlives its service."""

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine


async def test_serves_a_query(database_url: URL) -> None:
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        served = await connection.scalar(text("SELECT current_database()"))
    await engine.dispose()
    assert served == database_url.database
