"""SQLAlchemy's own tests of asyncio and asyncpg, on its pool and on ours."""
