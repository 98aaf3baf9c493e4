"""A service of one module, for tests that run one in a process of its own."""

SERVICE = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from dbkit import Database, Databases, install
databases = Databases(Database("orders", "sqlite", url="sqlite:///orders"))
@asynccontextmanager
async def lifespan(_):
    async with databases.open():
        yield
app = FastAPI(lifespan=lifespan)
install(app, databases)
"""
