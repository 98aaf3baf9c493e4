"""Single statements on asyncpg: SQLAlchemy compiles, asyncpg runs, and no greenlet is between.

SQLAlchemy's way takes its connection, its transaction, its isolation level and a greenlet for each
statement, which cost more than the statement. Here its own parts are called directly: its cache of
compiled statements, its `ExecutionContext` (parameters, defaults, results), its cursor on asyncpg;
and after an error its connection, with all that it does about one. What is not certain to be the
same goes SQLAlchemy's way: `Native.refusal` has the rule. `tests/dbkit/test_native_contract.py` in
the template holds SQLAlchemy and asyncpg to what is used here.
"""

# ruff: noqa: SLF001 -- SQLAlchemy's parts, not its public methods, are what is called here

import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, MissingGreenlet, UnboundExecutionError
from sqlalchemy.orm import Session
from sqlalchemy.pool.base import _ConnectionFairy  # pyright: ignore[reportPrivateUsage] -- as above
from sqlalchemy.sql import Select, compiler, schema
from sqlalchemy.sql.base import CompileState
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.selectable import CompoundSelect, TextualSelect
from sqlalchemy.util import greenlet_spawn, immutabledict

from ..clock import monotonic
from ..engines.base import load
from ..engines.sqlstates import is_stale
from ..engines.transactions import CONTROL
from ..pool import FairPool
from ..pool.slots import Slot
from ..pool.usage import use_of
from ..telemetry.repeats import is_watching, note

KINDS = (Select, CompoundSelect, TextClause, TextualSelect, UpdateBase)
"""Statements that SQLAlchemy executes in the same way."""
DIALECT = "sqlalchemy.dialects.postgresql.asyncpg"
Asks = tuple[Any, Any, Any]
OPTIONS: Any = immutabledict({"isolation_level": "AUTOCOMMIT"})
BUFFERED: Any = immutabledict({"prebuffer_rows": True})
EVENTS = ("do_orm_execute", "after_begin", "after_transaction_create")
"""Of a session; what is run natively has none."""


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A statement that was compiled, with its parameters."""

    statement: Any
    parameters: Any
    options: Any
    compiled: Any
    extracted: Any
    values: Any
    cache_hit: Any


class Native:
    """Runs the single statements of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Any = engine
        self._dialect: Any = engine.dialect
        self._execute = self._dialect.do_execute
        self._listeners = tuple(self._dialect.dispatch.do_execute)
        self._kinds: Any = KINDS
        self._session = Session()  # Knows the listeners to all.
        self._refusals: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._closed = closed_connection(engine)
        self.gets: WeakKeyDictionary[type, Asks] = WeakKeyDictionary()
        """What gets objects of a class by a key of one value: statement, parameters, options."""

    def compile(self, statement: Any, params: Any, options: Any = OPTIONS) -> Ready | None:
        """Compile a statement that can be run here; None if SQLAlchemy has to run it."""
        refusal = self._refusal(statement, params)
        ready = None
        if not refusal:
            compiled, *others = statement._compile_w_cache(
                self._dialect,
                compiled_cache=self._engine._compiled_cache,
                column_keys=sorted(params) if params else [],
                for_executemany=False,
                schema_translate_map=None,
                linting=self._dialect.compiler_linting | compiler.WARN_LINTING,
            )
            refusal = self._refusals.get(compiled)
            if refusal is None:
                refusal = self._refusals[compiled] = refusal_of(compiled)
            given = () if params is None else [params]
            ready = Ready(statement, given, options, compiled, *others)
        if not refusal:
            return ready
        if self._engine._should_log_info():
            self._engine.logger.info("in a greenlet, for %s:", refusal)
        return None

    def _refusal(self, statement: Any, params: Any) -> str:
        """Say what keeps a statement from being run here; "" if nothing does."""
        engine, dialect = self._engine, self._dialect
        pool: Any = engine.pool
        refusal = ""
        if engine._has_events or self._closed._has_events:
            refusal = "listeners to the engine"
        elif pool.dispatch.checkout or pool.dispatch.checkin or pool.dispatch.reset:
            refusal = "listeners to the pool"
        elif tuple(dialect.dispatch.do_execute) != self._listeners:
            refusal = "listeners to do_execute"
        elif dialect.do_execute != self._execute:
            refusal = "another do_execute"
        elif self._session.dispatch.do_orm_execute:
            refusal = "listeners to sessions"
        elif pool._should_log_debug():
            refusal = "echo_pool"
        elif not isinstance(statement, self._kinds):
            refusal = "its kind of statement"
        elif statement._execution_options or engine._execution_options:
            refusal = "execution options"
        elif params is not None and not isinstance(params, dict):
            refusal = "parameters of several rows"
        return refusal

    async def run(self, ready: Ready, begin: Callable[[], None]) -> Any:
        """Run a statement in AUTOCOMMIT; `begin` is called once it may begin.

        Returns None, with nothing sent, if something of the service's has to be in a greenlet.
        """
        pool: FairPool = self._engine.pool  # Another after `dispose()`.
        slot = await pool.take()
        is_ours, context = True, None
        try:
            begin()
            try:
                with suppress(MissingGreenlet):  # Of a type or a default that awaits something.
                    context = self._context(ready, slot)
                if context is None:
                    return None
                await self._send(context, slot)
                context.post_exec()
                result = context._setup_result_proxy()
                pool.counters.native += 1
                return result  # noqa: TRY300 -- what comes before may fail
            except GeneratorExit:  # Of the garbage collector: nothing can be awaited any more.
                cut(slot)
                raise
            except BaseException as error:
                is_ours = False
                await greenlet_spawn(self._fail, pool, slot, ready, context, error)
                raise  # In any case.
        finally:
            if is_ours:
                pool.give_back(slot)

    def _context(self, ready: Ready, slot: Slot) -> Any:
        """Make what has the statement, its parameters and its cursor."""
        if self._engine._should_log_info() != self._closed._echo:
            self._closed = closed_connection(self._engine)
        return self._dialect.execution_ctx_cls._init_compiled(
            self._dialect,
            self._closed,
            slot.connection,
            ready.options,
            ready.compiled,
            ready.parameters,
            ready.statement,
            ready.extracted,
            cache_hit=ready.cache_hit,
            param_dict=ready.values,
        )

    async def _send(self, context: Any, slot: Slot) -> None:
        """Have asyncpg run it, and fetch all rows."""
        context.pre_exec()
        statement, (parameters,) = context.statement, context.parameters
        if self._closed._echo:
            self._closed._log_info(statement)
            stats = f"{context._get_cache_stats()} (native)"
            self._closed._log_parameters(parameters, stats, ismulti=False)
        use: Any = use_of(slot.record)
        connection: Any = slot.connection
        use.statements += 1
        use.streams = False
        use.sql_since = began = monotonic()
        connection.autocommit = True
        try:
            await context.cursor._prepare_and_execute(statement, parameters)
        finally:
            connection.autocommit = False
            use.in_sql += monotonic() - began
            use.sql_since = None

    def _fail(
        self, pool: FairPool, slot: Slot, ready: Ready, context: Any, error: BaseException
    ) -> NoReturn:
        """Have SQLAlchemy handle an error as its own, in a greenlet, and raise what it makes."""
        connection = lent_connection(self._engine, pool, slot)
        try:
            raise error  # noqa: TRY301 -- SQLAlchemy asks what is being handled
        except BaseException:
            if context is None:
                statement, parameters, cursor = str(ready.compiled), ready.parameters, None
            else:
                context.root_connection = connection
                statement, parameters = context.statement, context.parameters[0]
                cursor = context.cursor
            connection._handle_dbapi_exception(error, statement, parameters, cursor, context)
            raise  # It has.
        finally:
            connection.close()

    async def objects(
        self, statement: Any, params: Any, options: Any, begin: Callable[[], None]
    ) -> Any:
        """Run a statement that returns objects, and return them, detached.

        None if SQLAlchemy has to do it, as it has to ask for more than this statement.
        """
        listeners = self._session.dispatch
        if not isinstance(statement, Select) or any(getattr(listeners, name) for name in EVENTS):
            return None
        plugin: Any = CompileState.plugins["orm", "select"]
        with Session() as session:  # Bound to nothing, it cannot ask.
            bound: dict[str, Any] = {}
            statement, options, params = plugin.orm_pre_session_exec(
                session, statement, params, options, bound, False
            )
            ready = self.compile(statement, params or {}, OPTIONS.union(options))
            result = ready and await self.run(ready, begin)
            if ready is None or result is None:
                return None
            try:
                return plugin.orm_setup_cursor_result(
                    session, statement, params, options, bound, result
                )
            except UnboundExecutionError:
                self._refusals[ready.compiled] = "what is loaded with it"
                return None


class Asking(Session):
    """A session that does not ask, but notes what it would ask."""

    asked: Asks | None = None

    def execute(self, statement: Any, params: Any = None, **options: Any) -> Any:
        """Note a statement."""
        self.asked = statement, params, options["execution_options"].union(BUFFERED)
        raise Asked


class Asked(Exception):
    """A statement would be asked now."""


class Watched(Native):
    """Notes what it runs, for development."""

    async def _send(self, context: Any, slot: Slot) -> None:
        note(self._engine.pool.name, context)
        await super()._send(context, slot)


def make_native(engine: Engine) -> None:
    """Have an engine on asyncpg run its single statements natively."""
    if type(engine.dialect).__module__ == DIALECT:
        vars(engine.dialect)["native"] = (Watched if is_watching() else Native)(engine)


async def run_natively(
    engine: Engine,
    statement: Any,
    params: Any,
    begin: Callable[[], None] = nothing,
    for_objects: Any = None,
) -> Any:
    """Run a statement in AUTOCOMMIT, or return None: then SQLAlchemy has to run it.

    `for_objects` are the options of a session's execution, if it returns objects.
    """
    native: Native | None = vars(engine.dialect).get("native")
    if native is None:
        return None
    try:
        if for_objects is not None:
            return await native.objects(statement, params, for_objects, begin)
        ready = native.compile(statement, params)
        return ready and await native.run(ready, begin)
    except DBAPIError as error:
        if not is_stale(error):  # Else nothing was done.
            raise
    return None


async def get_natively(engine: Engine, entity: Any, ident: Any, given: Any) -> Any:
    """Get an object, in a result; or return None: then SQLAlchemy has to get it."""
    native: Native | None = vars(engine.dialect).get("native")
    if native is None:
        return None
    is_simple = not given and type(ident) in {int, str, UUID} and isinstance(entity, type)
    asked = native.gets.get(entity) if is_simple else None
    if asked is None:
        with Asking() as session, suppress(Asked):
            session.get(entity, ident, options=given)
        asked = session.asked
        if asked is None:
            return None
        if is_simple:
            native.gets[entity] = asked
    statement, params, options = asked
    if is_simple:
        params = dict.fromkeys(params, ident)
    result = await run_natively(engine, statement, params, for_objects=options)
    return None if result is None else result.unique().scalars()


def refusal_of(compiled: Any) -> str:
    """Say what keeps a compiled statement from being run natively; "" if nothing does."""
    if compiled.isplaintext and CONTROL.match(compiled.string):
        return "the end of a transaction"
    if load("postgresql").verdicts[compiled.string]:
        return "what it leaves on its connection"
    defaults = [(each, each.default) for each in compiled.insert_prefetch]
    defaults += [(each, each.onupdate) for each in compiled.update_prefetch]
    for column, default in defaults:
        if not is_simple(default):
            return f"the default of {column}"
    return ""


def is_simple(default: Any) -> bool:
    """Whether a default is a value, or a function that is told nothing of the statement."""
    if default is None or default.is_sentinel or default.is_scalar:
        return True
    # SQLAlchemy wraps those that take no argument.
    code = getattr(default.arg, "__code__", None) if default.is_callable else None
    return code is not None and code.co_filename == schema.__file__


def closed_connection(engine: Engine) -> Any:
    """Make what results refer to: as after SQLAlchemy's way, a connection that is closed."""
    nothing: Any = object()
    connection: Any = Connection(engine, nothing, _allow_revalidate=False)
    connection._dbapi_connection = None
    return connection


def lent_connection(engine: Engine, pool: Any, slot: Slot) -> Any:
    """Make SQLAlchemy's connection of what was taken without it; closed, it is given back."""
    record: Any = slot.record
    fairy: Any = _ConnectionFairy(pool, slot.connection, record, pool._should_log_debug())
    fairy._counter = 1
    record.fairy_ref = weakref.ref(fairy)
    connection: Any = Connection(engine, fairy)
    connection._execution_options = OPTIONS
    connection.begin()  # It does so before each statement.
    return connection


def cut(slot: Slot) -> None:
    """Cut a connection's socket, asking nobody; it may not be handed on."""
    record: Any = slot.record
    slot.driver.terminate()
    record.dbapi_connection = None
