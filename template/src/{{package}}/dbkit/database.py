"""A database: its settings, its engine with the pool, and the sessions on it."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self, Unpack

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase

from .engine import create_engine
from .errors import NotConfigured, NotOpen
from .health import Probe, notice_sigterm
from .settings import DatabaseSettings, Declared, environment, read_settings
from .urls import Dialect


@dataclass(frozen=True, slots=True)
class Opened:
    """What an open database holds."""

    settings: DatabaseSettings
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    probe: Probe


class Database:
    """A named database: declared at import, opened in the lifespan.

    `base` is the declarative base of the tables that this service migrates; without one,
    the schema belongs to somebody else. `env_prefix` begins the names of its variables;
    it is `ANALYTICS_DATABASE_` for `analytics` unless given. What is declared beside them
    (`pool_size=20`) are defaults that the environment overrides.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        *,
        base: type[DeclarativeBase] | None = None,
        env_prefix: str | None = None,
        **declared: Unpack[Declared],
    ) -> None:
        self.name = name
        self.dialect: Dialect = dialect
        self.base = base
        self.env_prefix = env_prefix or f"{name.upper()}_DATABASE_"
        self.declared: Declared = declared
        self._opened: Opened | None = None

    def __repr__(self) -> str:
        return f"<Database {self.name} ({self.dialect}, {'open' if self._opened else 'not open'})>"

    @property
    def settings(self) -> DatabaseSettings:
        """The settings in force; `NotOpen` while the service does not run."""
        return self._open.settings

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, with the pool; `NotOpen` while the service does not run."""
        return self._open.engine

    @property
    def probe(self) -> Probe:
        """Whether the server answers; `NotOpen` while the service does not run."""
        return self._open.probe

    @property
    def _open(self) -> Opened:
        if self._opened is None:
            raise NotOpen(self.name)
        return self._opened

    def read_settings(self, variables: Mapping[str, str] | None = None) -> DatabaseSettings:
        """Read the settings from the environment; `NotConfigured` holds every fault."""
        return read_settings(
            environment() if variables is None else variables,
            prefix=self.env_prefix,
            dialect=self.dialect,
            declared=self.declared,
        )

    @asynccontextmanager
    async def open(self, settings: DatabaseSettings | None = None) -> AsyncGenerator[Self]:
        """Create the engine, which connects on first use; dispose of it on exit."""
        settings = settings or self.read_settings()
        engine = create_engine(self.name, self.env_prefix, settings)
        apart = create_engine(self.name, self.env_prefix, settings, pooled=False)
        # A session that outlives its dependency raises instead of taking a connection for good.
        sessions = async_sessionmaker(engine, expire_on_commit=False, close_resets_only=False)
        try:
            async with Probe(self.name, apart).running() as probe:
                self._opened = Opened(settings, engine, sessions, probe)
                yield self
        finally:
            self._opened = None
            await engine.dispose()

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession]:
        """Begin a transaction: commit on success, roll back on an error."""
        async with self._open.sessions.begin() as session:
            yield session

    @asynccontextmanager
    async def sandbox(self) -> AsyncGenerator[None]:
        """Keep every session in one transaction, rolled back on exit. For tests."""
        opened = self._open
        async with opened.engine.connect() as connection:
            transaction = await connection.begin()
            sessions = async_sessionmaker(
                connection,
                expire_on_commit=False,
                close_resets_only=False,
                join_transaction_mode="create_savepoint",
            )
            self._opened = replace(opened, sessions=sessions)
            try:
                yield
            finally:
                self._opened = opened
                await transaction.rollback()


class Databases(Mapping[str, Database]):
    """The databases of a service, by name, opened and closed together."""

    def __init__(self, *databases: Database) -> None:
        self._by_name = {database.name: database for database in databases}
        self.stopping = False

    def __getitem__(self, name: str) -> Database:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def read_settings(self) -> dict[str, DatabaseSettings]:
        """Read the settings of all; `NotConfigured` holds the faults of all."""
        variables = environment()
        settings: dict[str, DatabaseSettings] = {}
        faults: list[str] = []
        for database in self.values():
            try:
                settings[database.name] = database.read_settings(variables)
            except NotConfigured as error:
                faults += error.faults
        if faults:
            raise NotConfigured(faults)
        return settings

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self]:
        """Open every database; on exit, close them. To be entered in the lifespan."""
        settings = self.read_settings()
        async with AsyncExitStack() as stack:
            for database in self.values():
                await stack.enter_async_context(database.open(settings[database.name]))
            await asyncio.gather(*(database.probe.ask() for database in self.values()))
            self.stopping = False
            stack.enter_context(notice_sigterm(self._stop))
            yield self

    def _stop(self) -> None:
        self.stopping = True
