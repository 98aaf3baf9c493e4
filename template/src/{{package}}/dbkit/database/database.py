"""A database: its settings, its engine with the pool, and the sessions on it."""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Self,
    TypeVar,
    TypeVarTuple,
    Unpack,
    overload,
)

from sqlalchemy import CursorResult, Executable, MetaData, event
from sqlalchemy import Result as Rows
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.selectable import TypedReturnsRows

from ..context import shield
from ..engines.base import import_optional, load
from ..engines.failures import lacks_migration
from ..engines.transactions import CheckedSession, checked, delay_of_retry
from ..errors import NotConfigured, NotOpen, ReadOnly, TransactionAborted, Unreachable
from ..loggers import logger_named
from ..pool import FairPool
from ..pool.usage import SHOWN_HOLDERS
from ..settings.database import DatabaseSettings, Declared, environment, origins, read_settings
from ..settings.threads import aside
from ..settings.urls import Dialect, hosts
from ..telemetry.leaks import Detectors
from ..telemetry.opentelemetry import record_times
from .engine import create_engine
from .engine_options import EngineOptions, OnConnect, check_options
from .probe import Probe
from .readers import AUTOCOMMIT, Parameters, Reader, refuse_text, run

if TYPE_CHECKING:
    from ..pool.thread_pool import ThreadPool
    from .sync import Synchronous

logger = logger_named("database")

_making = threading.Lock()
"""For two threads that ask for a synchronous side at once."""

MISSING = (
    "{0}: the models have it, the database lacks it. `manage.py migrate --database {0}` applies the"
    " migrations there are; if none adds it, `manage.py makemigrations --database {0}` writes one"
)

Result = TypeVar("Result")
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Opened:
    """What an open database holds."""

    settings: DatabaseSettings
    engine: AsyncEngine
    sessions: async_sessionmaker[CheckedSession]
    reader: Reader
    probe: Probe


def replication() -> Any:
    """Import what a service without replicas has no file of."""
    return import_optional("..database.replicas", "replicas")


class SessionBlock(AbstractAsyncContextManager[AsyncSession]):
    """`async with database.session()`.

    Not a generator: Python closes those that are left behind each by itself, with what they use.
    """

    def __init__(
        self, database: "Database", block: AbstractAsyncContextManager[AsyncSession]
    ) -> None:
        self._database = database
        self._block = block

    async def __aenter__(self) -> AsyncSession:
        return await self._block.__aenter__()

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is None:
            try:
                shield()
            except asyncio.CancelledError as left:
                await self._block.__aexit__(type(left), left, left.__traceback__)
                raise
        await self._block.__aexit__(type_, value, traceback)
        if value is None and self._database.replicas:
            await replication().note_commit(self._database)


class Database:
    """A named database: declared at import, opened in the lifespan.

    `base` is the declarative base of the tables that this service migrates; without one,
    the schema belongs to somebody else. `replica_of` is the database that this one is a copy
    of, to read from; without a URL of its own it reads from that one. `env_prefix` begins the
    names of its variables; it is `ANALYTICS_DATABASE_` for `analytics` unless given.
    `ignore_tables` are patterns, as `audit_*`, of tables that others make: migrations and checks
    leave them alone. `session_class` is the class of its sessions, as SQLModel's, which has
    `exec()`. What is declared beside them (`pool_size=20`) are defaults that the environment
    overrides.

    `engine_options` are further arguments of SQLAlchemy's `create_async_engine()`. `on_connect` is
    called with each new connection of the driver before anything else uses it, to register codecs
    or functions; not in migrations, which run before what it needs is there. A replica has both
    from its primary, unless it is given its own.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        *,
        base: type[DeclarativeBase] | None = None,
        replica_of: "Database | None" = None,
        env_prefix: str | None = None,
        engine_options: EngineOptions | None = None,
        on_connect: OnConnect | None = None,
        ignore_tables: Collection[str] = (),
        session_class: type[AsyncSession] = AsyncSession,
        **declared: Unpack[Declared],
    ) -> None:
        self.name = name
        self.dialect: Dialect = dialect
        self.base = base
        self.replica_of = replica_of
        self.replicas: list[Database] = []
        self.ignore_tables = tuple(ignore_tables)
        self.session_class = session_class
        if replica_of is not None:
            if (dialect, replica_of.dialect) != ("postgresql", "postgresql"):
                raise ValueError(
                    f"{name}: only a PostgreSQL is a replica here, and only of another"
                )
            replica_of.replicas.append(self)
            replica_of.history = replica_of.history or replication().History()
            declared = {"required": False, **declared}
            if "server_settings" in replica_of.declared:
                theirs = replica_of.declared["server_settings"]
                declared = {"server_settings": theirs, **declared}
            engine_options = engine_options or replica_of.engine_options
            on_connect = on_connect or replica_of.on_connect
        self.env_prefix = env_prefix or f"{name.upper()}_DATABASE_"
        self.engine_options = engine_options or {}
        self.on_connect = on_connect
        check_options(self.engine_options, self.env_prefix)
        self.history: Any = None
        """Where the log of a primary was, if it has replicas."""
        self.declared: Declared = declared
        self.origins: dict[str, str] = {}
        """Where each setting comes from: `environment`, `.env`, `declared` or `default`."""
        self.uses_sync = False
        """Whether a route depends on a synchronous session."""
        self._sync: Synchronous | None = None
        self._opened: Opened | None = None
        self._watching: asyncio.Task[None] | None = None
        self._here: ContextVar[Opened | None] = ContextVar(f"{name} here", default=None)

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
    def pool(self) -> FairPool:
        """The engine's pool; `NotOpen` while the service does not run."""
        pool = self._open.engine.pool
        assert isinstance(pool, FairPool)  # noqa: S101 -- create_engine() made it
        return pool

    @property
    def sync(self) -> "Synchronous":
        """What synchronous code uses: an engine and sessions, made at their first use."""
        if self._sync is None:
            from .sync import Synchronous  # noqa: PLC0415 -- most services have no use for it

            with _making:
                self._sync = self._sync or Synchronous(self)
        return self._sync

    @property
    def probe(self) -> Probe:
        """Whether the server answers; `NotOpen` while the service does not run."""
        return self._open.probe

    @property
    def reader(self) -> Reader:
        """Reads that hold no connection; `NotOpen` while the service does not run."""
        return self._open.reader

    @property
    def status(self) -> Literal["up", "down", "lagging"]:
        """Whether the server answers and, of a replica, is near enough to its primary."""
        if not self.probe.is_up:
            return "down"
        return "lagging" if self.probe.is_behind else "up"

    @property
    def is_open(self) -> bool:
        """Whether there is an engine: from the start of the service to its end."""
        return self._opened is not None

    @property
    def _open(self) -> Opened:
        opened = self._here.get() or self._opened
        if opened is None:
            raise NotOpen(self.name)
        return opened

    def read_settings(self, variables: Mapping[str, str] | None = None) -> DatabaseSettings:
        """Read the settings from the environment; `NotConfigured` holds every fault."""
        try:
            load(self.dialect)
        except LookupError as error:
            raise NotConfigured([f"{self.name}: {error}"]) from None
        variables = environment() if variables is None else variables
        declared: Declared = {**self.declared}
        own = {f"{self.env_prefix}URL", f"{self.env_prefix}URL_FILE"} & variables.keys()
        if self.replica_of and "url" not in declared and not own:
            theirs = self.replica_of.read_settings(variables)
            # With the way in; as it was read, which is more than one may declare.
            way_in: Any = theirs.model_dump(
                include={"password", "password_file", "pgbouncer", "server_settings"}
            )
            url = theirs.url.render_as_string(hide_password=False)
            declared = way_in | declared | {"url": url}
        return read_settings(
            variables,
            prefix=self.env_prefix,
            dialect=self.dialect,
            declared=declared,
            name=self.name,
        )

    def has_url(self, variables: Mapping[str, str]) -> bool:
        """Whether it has a URL of its own: neither embedded, nor a SQLite file as declared."""
        declared = self.dialect != "sqlite" and "url" in self.declared
        return declared or any(
            f"{self.env_prefix}{name}" in variables for name in ("URL", "URL_FILE")
        )

    @asynccontextmanager
    async def open(self, settings: DatabaseSettings | None = None) -> AsyncGenerator[Self]:
        """Start, and stop on exit."""
        settings = settings or self.read_settings()
        try:
            await self.start(settings)
            yield self
        finally:
            await self.stop()

    def make(self, settings: DatabaseSettings, *, poolclass: type[FairPool] = FairPool) -> Opened:
        """Make the engine, its sessions and the probe; none of them connects yet."""
        read_only = self.replica_of is not None
        engine = create_engine(
            self.name,
            self.env_prefix,
            settings,
            read_only=read_only,
            poolclass=poolclass,
            options=self.engine_options,
            on_connect=self.on_connect,
        )
        if self.base is not None:
            self._note_migrations(engine, self.base.metadata)
        # A session that outlives its dependency raises instead of taking a connection for good.
        sessions = async_sessionmaker(
            engine,
            class_=checked(self.session_class),
            expire_on_commit=False,
            close_resets_only=False,
            info={"database": self.name},
        )
        reader = Reader(self.name, engine)
        if self.replica_of:
            reader = replication().ReplicaReader(self, self.replica_of, engine)
        return Opened(settings, engine, sessions, reader, self._make_probe(settings))

    def _note_migrations(self, engine: AsyncEngine, tables: MetaData) -> None:
        """Have an error of a table or column that is not there say that a migration is missing."""

        @event.listens_for(engine.sync_engine, "handle_error")
        def note(context: ExceptionContext) -> None:  # pyright: ignore[reportUnusedFunction] -- the event calls it
            error = context.sqlalchemy_exception
            if error is not None and lacks_migration(context, tables):
                error.add_note(MISSING.format(self.name))

    def connecting(
        self, settings: DatabaseSettings, *, on_connect: OnConnect | None = None
    ) -> AsyncEngine:
        """Make an engine without a pool, each of whose connections is a new one."""
        return create_engine(
            self.name,
            self.env_prefix,
            settings,
            pooled=False,
            options=self.engine_options,
            on_connect=on_connect,
        )

    def _make_probe(self, settings: DatabaseSettings) -> Probe:
        """Make the probe: of one server or, of a replica, of each host."""
        urls = hosts(settings.url) if self.replica_of else [settings.url]
        engines = [
            self.connecting(settings.model_copy(update={"url": url}), on_connect=self.on_connect)
            for url in urls
        ]
        if self.replica_of:
            return replication().ReplicaProbe(
                self.name, engines, self.replica_of.history, settings.max_lag
            )
        if self.replicas:
            return replication().PrimaryProbe(self.name, engines[0], self.history)
        return Probe(self.name, engines[0])

    async def start(self, settings: DatabaseSettings) -> None:
        """Make the engine, and open `min_ready` connections.

        A server that is down is an `Unreachable` with `required_at_start`. Otherwise the probe
        logs it, and the pool goes on trying in the background.
        """
        self._opened = self.make(settings)
        self.origins = origins(self.env_prefix, self.declared, settings.url)
        record_times(self.name, self.pool.usage)
        await self.probe.start(lambda: self.pool.retry())  # noqa: PLW0108 -- another after dispose()
        detectors = Detectors(lambda: self.pool, self.env_prefix)
        self._watching = asyncio.create_task(detectors.run(), name=f"detectors of {self.name}")
        wait = self.probe.is_up or settings.required_at_start
        try:
            await self.pool.warm(settings.min_ready, settings.connect_timeout if wait else 0)
        except Unreachable:
            if settings.required_at_start:
                raise

    async def stop(self) -> None:
        """Give connections in use `drain_timeout` seconds, and close all."""
        if (opened := self._opened) is None:
            return
        await opened.probe.stop()
        closing = self._close_sync(opened.settings.drain_timeout)
        closed = asyncio.create_task(closing, name=f"close {self.name}.sync")
        if self._watching is not None:
            self._watching.cancel()
        taken = await self.pool.drain(opened.settings.drain_timeout)
        if taken:
            held = "".join(f"\n  held by {each}" for each in taken[:SHOWN_HOLDERS])
            logger.warning("%s: still in use, now closed: %d%s", self.name, len(taken), held)
        await closed
        self._opened = None  # And no `dispose()`, after which the engine would connect again.

    def change(self, *, echo: bool | None = None, leak_after: float | None = None) -> None:
        """Change settings of the open database, until it is closed."""
        given = {"echo": echo, "leak_after": leak_after}
        update = {name: value for name, value in given.items() if value is not None}
        self._opened = replace(self._open, settings=self.settings.model_copy(update=update))
        self.origins |= dict.fromkeys(update, "at run time")
        for pool in self.pools:
            pool.settings = pool.settings.model_copy(update=update)
        engines = [self.engine.sync_engine, *(self._sync.engines if self._sync else [])]
        for engine in engines if echo is not None else []:
            engine.echo, engine.hide_parameters = bool(echo), not echo

    async def _close_sync(self, drain_timeout: float) -> None:
        """Close the synchronous side in its own thread: those of the loop may all be taken."""
        if self._sync is not None and self._sync.pools:
            await aside(lambda _: self.close_sync(drain_timeout), self.name)

    @property
    def pools(self) -> "list[FairPool | ThreadPool]":
        """Its pools: that of the engine, and those of synchronous code that has used it."""
        sync = self._sync.pools if self._sync is not None else []
        return [self.pool, *sync]

    def close_sync(self, drain_timeout: float = 0) -> None:
        """Close what synchronous code has opened, if it has; wait so long for its connections."""
        if self._sync is not None:
            self._sync.close(drain_timeout)

    def session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Begin a transaction: commit on success, roll back on an error."""
        if self.replica_of is not None:
            raise ReadOnly(self.name, "begin a session", self.replica_of.name)
        return SessionBlock(self, self.sessions.begin())

    async def request_session(self) -> AsyncGenerator[AsyncSession]:
        """Yield the session of a request: what routes depend on, and tests override."""
        async with self.session() as session:
            yield session

    @property
    def sessions(self) -> async_sessionmaker[CheckedSession]:
        """The factory of sessions whose transactions you end yourself; `NotOpen` as the others."""
        return self._open.sessions

    @overload
    async def execute(
        self, statement: TypedReturnsRows[*Ts], params: Parameters | None = None
    ) -> Rows[*Ts]: ...
    @overload
    async def execute(
        self, statement: Executable, params: Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]: ...
    async def execute(self, statement: Executable, params: Parameters | None = None) -> Any:
        """Run one statement as a transaction of its own: one round trip, where a session has three.

        It is committed when this returns, whatever happens next. Many rows at once belong in a
        session: SQLAlchemy may make several statements of them.
        """
        if self.replica_of is not None:
            raise ReadOnly(self.name, "execute what may write", self.replica_of.name)
        refuse_text(statement)
        result = await run(self.engine.sync_engine, statement, params, shield)
        if self.replicas:
            await replication().note_commit(self)
        return result

    @asynccontextmanager
    async def driver_connection(self) -> AsyncGenerator[Any]:
        """Take the driver's own connection from the pool, as asyncpg's, until exit.

        Each of its statements is a transaction, unless it is told otherwise; its errors are the
        driver's, and replicas know nothing of its writes. What it sets on the connection is gone
        for the next caller; one that is given back in a transaction, busy, or after something was
        cancelled on it is closed.
        """
        async with self.engine.connect() as connection:
            await connection.execution_options(**AUTOCOMMIT)
            await connection.begin()  # Sends nothing, but to the sandbox of a test.
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.handed_out = True
            yield driver

    async def run_transaction(
        self, work: Callable[[AsyncSession], Awaitable[Result]], *, attempts: int = 3
    ) -> Result:
        """Run `work` in a transaction; again, from its beginning, if another one was in its way.

        That is a serialization failure, a deadlock, or a migration of the tables that it uses;
        `attempts` times in all. `work` may have
        no effects but those in the session. Once COMMIT was sent there is no second attempt:
        whether it arrived is not known.
        """
        for attempt in range(1, attempts + 1):
            commit_sent = False
            try:
                async with self.session() as session:
                    result = await work(session)
                    await session.flush()
                    commit_sent = True
                return result  # noqa: TRY300 -- the commit above belongs in the try
            except (DBAPIError, TransactionAborted) as error:
                delay = delay_of_retry(error, attempt, attempts, commit_sent=commit_sent)
                if delay is None:
                    raise
            await asyncio.sleep(delay)
        raise ValueError(f"attempts is {attempts}; it must be 1 or more")

    @contextmanager
    def replaced(self, opened: Opened) -> Generator[None]:
        """Work on another engine until exit. For tests."""
        before, self._opened = self._opened, opened
        try:
            yield
        finally:
            self._opened = before

    @contextmanager
    def replaced_here(self, opened: Opened) -> Generator[None]:
        """Work on another engine in this task and those that it begins. For tests."""
        token = self._here.set(opened)
        try:
            yield
        finally:
            self._here.reset(token)
