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
from operator import is_
from typing import Any, NoReturn
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, TableClause
from sqlalchemy.exc import DBAPIError, MissingGreenlet, UnboundExecutionError
from sqlalchemy.orm import Session
from sqlalchemy.pool.base import _ConnectionFairy  # pyright: ignore[reportPrivateUsage] -- as above
from sqlalchemy.sql import Select, compiler, schema
from sqlalchemy.sql.base import CompileState
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import ColumnElement, TextClause
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
AS_COMPILED: Any = immutabledict({"_result_disable_adapt_to_context": True})
PLAN = "_plan"
"""The attribute of a statement that has its plan."""
EVENTS = ("do_orm_execute", "after_begin", "after_transaction_create")
"""Of a session; what is run natively has none."""


def nothing() -> None:
    """Do nothing."""


@dataclass(slots=True)
class Plan:
    """A statement that was compiled, and can be run here."""

    native: Any
    keys: Any
    """Of the parameters that it was compiled for."""
    statement: Any
    options: Any
    compiled: Any
    extracted: Any
    values: Any
    cache_hit: Any

    def __reduce__(self) -> Any:
        """Leave it out of a copy of its statement."""
        return type(None), ()


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
        self._linting = self._dialect.compiler_linting | compiler.WARN_LINTING
        self.gets: WeakKeyDictionary[type, Asks] = WeakKeyDictionary()
        """What gets objects of a class by a key of one value: statement, parameters, options."""

    def known(self, statement: Any, params: Any) -> Plan | None:
        """Return the plan of a statement that was built once and has run before; else None."""
        plan = getattr(statement, PLAN, None)
        if plan is None or plan.native is not self or self._state_refuses():
            return None
        given: Any = params
        keys = given.keys() if isinstance(params, dict) else given
        return plan if keys == plan.keys else None

    def compile(self, statement: Any, params: Any, for_objects: Any = None) -> Plan | None:
        """Compile a statement that can be run here; None if SQLAlchemy has to run it."""
        refusal = self._state_refuses() or self._refusal(statement, params)
        options = OPTIONS.union(for_objects or ())
        plan = None
        if not refusal:
            has_run = "_generate_cache_key" in vars(statement)
            compiled, extracted, values, hit = statement._compile_w_cache(
                self._dialect,
                compiled_cache=self._engine._compiled_cache,
                column_keys=sorted(params) if params else [],
                for_executemany=False,
                schema_translate_map=None,
                linting=self._linting,
            )
            refusal = self._refusals.get(compiled)
            if refusal is None:
                refusal = self._refusals[compiled] = refusal_of(compiled)
            is_known = hit is self._dialect.CACHE_HIT
            if is_known and returns_same(statement, compiled.statement):
                options = options.union(AS_COMPILED)
            keys = None if params is None else frozenset(params)
            plan = Plan(self, keys, statement, options, compiled, extracted, values, hit)
            if has_run and is_known and not refusal and not for_objects:
                statement._set_memoized_attribute(PLAN, plan)
        if not refusal:
            return plan
        if self._engine._should_log_info():
            self._engine.logger.info("in a greenlet, for %s:", refusal)
        return None

    def _state_refuses(self) -> str:
        """Say what keeps every statement from being run here now; "" if nothing does."""
        engine, dispatch = self._engine, self._dialect.dispatch
        pool: Any = engine.pool
        refusal = ""
        if engine._has_events or self._closed._has_events:
            refusal = "listeners to the engine"
        elif engine._execution_options:
            refusal = "execution options"
        elif pool.dispatch.checkout or pool.dispatch.checkin or pool.dispatch.reset:
            refusal = "listeners to the pool"
        elif tuple(dispatch.do_execute) != self._listeners:
            refusal = "listeners to do_execute"
        elif self._dialect.do_execute != self._execute:
            refusal = "another do_execute"
        elif self._session.dispatch.do_orm_execute:
            refusal = "listeners to sessions"
        elif pool._should_log_debug():
            refusal = "echo_pool"
        return refusal

    def _refusal(self, statement: Any, params: Any) -> str:
        """Say what keeps this statement from being run here; "" if nothing does."""
        if not isinstance(statement, self._kinds):
            return "its kind of statement"
        if statement._execution_options:
            return "execution options"
        if params is not None and not isinstance(params, dict):
            return "parameters of several rows"
        return ""

    async def run(self, plan: Plan, params: Any, begin: Callable[[], None]) -> Any:
        """Run a statement in AUTOCOMMIT; `begin` is called once it may begin.

        Returns None, with nothing sent, if something of the service's has to be in a greenlet.
        """
        pool: FairPool = self._engine.pool  # Another after `dispose()`.
        slot = await pool.take()
        is_ours, context = True, None
        try:
            begin()
            try:
                try:
                    context = self._context(plan, params, slot)
                except MissingGreenlet:  # Of a type or a default that awaits something.
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
                await greenlet_spawn(self._fail, (pool, slot), plan, params, context, error)
                raise  # In any case.
        finally:
            if is_ours:
                pool.give_back(slot)

    def _context(self, plan: Plan, params: Any, slot: Slot) -> Any:
        """Make what has the statement, its parameters and its cursor."""
        if self._engine._should_log_info() != self._closed._echo:
            self._closed = closed_connection(self._engine)
        return self._dialect.execution_ctx_cls._init_compiled(
            self._dialect,
            self._closed,
            slot.connection,
            plan.options,
            plan.compiled,
            () if params is None else [params],
            plan.statement,
            plan.extracted,
            cache_hit=plan.cache_hit,
            param_dict=plan.values,
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
        use.sql_since = began = monotonic()
        connection.autocommit = True
        try:
            await context.cursor._prepare_and_execute(statement, parameters)
        finally:
            connection.autocommit = False
            use.in_sql += monotonic() - began
            use.sql_since = None

    def _fail(
        self,
        taken: tuple[FairPool, Slot],
        plan: Plan,
        params: Any,
        context: Any,
        error: BaseException,
    ) -> NoReturn:
        """Have SQLAlchemy handle an error as its own, in a greenlet, and raise what it makes."""
        connection = lent_connection(self._engine, *taken)
        try:
            raise error  # noqa: TRY301 -- SQLAlchemy asks what is being handled
        except BaseException:
            if context is None:
                parameters: Any = () if params is None else [params]
                statement, cursor = str(plan.compiled), None
            else:
                context.root_connection = connection
                statement, parameters = context.statement, context.parameters[0]
                cursor = context.cursor
            connection._handle_dbapi_exception(error, statement, parameters, cursor, context)
            raise  # It has.
        finally:
            connection.close()

    async def objects(self, statement: Any, params: Any, options: Any) -> Any:
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
            params = params or {}
            plan = self.compile(statement, params, options)
            result = plan and await self.run(plan, params, nothing)
            if plan is None or result is None:
                return None
            try:
                return plugin.orm_setup_cursor_result(
                    session, statement, params, options, bound, result
                )
            except UnboundExecutionError:
                self._refusals[plan.compiled] = "what is loaded with it"
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
        plan = None if for_objects else native.known(statement, params)
        if plan is None:
            if for_objects is None and not is_core(statement) and not is_plain(statement):
                for_objects = BUFFERED
            if for_objects is not None:
                # Not a writer's: SQLAlchemy may have to run it once more.
                is_read = begin is nothing
                return await native.objects(statement, params, for_objects) if is_read else None
            plan = native.compile(statement, params)
        return plan and await native.run(plan, params, begin)
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


def returns_same(statement: Any, other: Any) -> bool:
    """Whether a result of the one can be asked for its columns by those of the other."""
    columns = getattr(statement, "_raw_columns", ())
    others = getattr(other, "_raw_columns", ())
    return len(columns) == len(others) > 0 and all(map(is_, columns, others))


def is_core(statement: Any) -> bool:
    """Whether an ORM session would hand a statement on as it is."""
    return getattr(statement, "_propagate_attrs", {}).get("compile_state_plugin") != "orm"


def is_plain(statement: Any) -> bool:
    """Whether a statement gives the same rows with and without an ORM session.

    That is one which returns tables, and columns each of which is named in its table as in its
    class.
    """
    if statement.is_dml:
        returned = statement._returning
    elif statement.__visit_name__ == "select":
        returned = statement._raw_columns
    else:
        return False
    return not statement._with_options and all(has_its_name(each) for each in returned)


def has_its_name(returned: Any) -> bool:
    """Whether a table is no class's, and a column has the name that it has in its class."""
    annotations = returned._annotations
    if isinstance(returned, ColumnElement):
        return annotations.get("proxy_key", returned.key) == returned.key
    return isinstance(returned, TableClause) and "parententity" not in annotations
