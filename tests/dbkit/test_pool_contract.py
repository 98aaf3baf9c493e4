"""What `FairPool` stands on in SQLAlchemy: when this fails, read its pool again first.

The pool is written for the releases that the service's `pyproject.toml` allows. These tests hold
the names, signatures and habits that it uses, public or not.
"""

# ruff: noqa: SLF001 - private names are the subject
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import inspect
from typing import Any

import pytest
import sqlalchemy
from dbkit import DatabaseSettings
from dbkit.pool import FairPool
from sqlalchemy import URL, create_engine, pool, util
from sqlalchemy.connectors import asyncio as connectors
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection, PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import base
from sqlalchemy.util import concurrency, langhelpers


def signature(function: Any) -> str:
    """Write the names of the parameters, with their defaults."""
    own = inspect.signature(function)
    bare = [each.replace(annotation=each.empty) for each in own.parameters.values()]
    return str(inspect.Signature(bare)).strip("()")


def test_release_is_one_of_those_that_were_read() -> None:
    assert sqlalchemy.__version__.startswith("2.1.")


def test_pool_takes_these_arguments() -> None:
    assert signature(pool.Pool.__init__) == (
        "self, creator, recycle=-1, echo=None, logging_name=None, reset_on_return=True,"
        " events=None, dialect=None, pre_ping=False, _dispatch=None"
    )


def test_subclasses_of_pool_override_these_methods() -> None:
    assert signature(pool.Pool._do_get) == "self"
    assert signature(pool.Pool._do_return_conn) == "self, record"
    assert signature(pool.Pool._create_connection) == "self"
    assert signature(pool.Pool._invalidate) == "self, connection, exception=None, _checkin=True"
    assert signature(pool.Pool._close_connection) == "self, connection, *, terminate=False"
    assert signature(pool.Pool.recreate) == "self"
    assert signature(pool.Pool.dispose) == "self"
    assert signature(pool.Pool.status) == "self"
    for name in ("_do_get", "_do_return_conn", "recreate", "dispose", "status"):
        assert "raise NotImplementedError" in inspect.getsource(getattr(pool.Pool, name))


def test_pool_has_no_method_that_is_new() -> None:
    """One that appears may have to be overridden."""
    names = {name for name, value in vars(pool.Pool).items() if inspect.isfunction(value)}
    assert names == {
        "__init__",
        "_close_connection",
        "_create_connection",
        "_do_get",
        "_do_return_conn",
        "_invalidate",
        "_return_conn",
        "_should_wrap_creator",
        "connect",
        "dispose",
        "recreate",
        "status",
    }


def test_queue_pool_overrides_what_fair_pool_does() -> None:
    own = {"_do_get", "_do_return_conn", "recreate", "dispose", "status"}
    own |= {"size", "checkedin", "checkedout", "overflow", "timeout"}
    assert own <= set(vars(pool.QueuePool))
    assert own <= set(vars(FairPool))
    assert pool.AsyncAdaptedQueuePool._is_asyncio is True


def test_queue_pool_recreates_with_these_arguments() -> None:
    source = inspect.getsource(pool.QueuePool.recreate)
    names = ["echo", "logging_name", "reset_on_return", "pre_ping", "_dispatch", "dialect"]
    for name in names:
        assert f"{name}=self." in source


def test_record_is_made_by_the_pool_and_connects() -> None:
    assert signature(base._ConnectionRecord.__init__) == "self, pool, connect=True"
    assert "return _ConnectionRecord(self)" in inspect.getsource(pool.Pool._create_connection)
    assert "dbapi_connection" in base._ConnectionRecord.__slots__
    assert "__dict__" in base._ConnectionRecord.__slots__


def test_record_is_returned_to_the_pool_by_these() -> None:
    assert "rec = pool._do_get()" in inspect.getsource(base._ConnectionRecord.checkout)
    assert "pool._return_conn(self)" in inspect.getsource(base._ConnectionRecord.checkin)
    assert "self._do_return_conn(record)" in inspect.getsource(pool.Pool._return_conn)
    detach = inspect.getsource(base._ConnectionFairy.detach)
    assert "rec.dbapi_connection = None" in detach
    assert "self._pool._do_return_conn(self._connection_record)" in detach


def test_record_reconnects_at_checkout_only_for_these_reasons() -> None:
    """Each would connect on the path of a request: `FairPool` lets none of them come true."""
    source = inspect.getsource(base._ConnectionRecord.get_connection)
    assert source.count("self.__connect()") == 2
    assert source.count("recycle = True") == 3
    assert "if self.dbapi_connection is None:" in source
    assert "self.__pool._recycle > -1" in source
    assert "elif self.__pool._invalidate_time > self.starttime:" in source
    assert "elif self._soft_invalidate_time > self.starttime:" in source
    assert base._ConnectionRecord._soft_invalidate_time == 0
    assert "_invalidate_time = time.time()" in inspect.getsource(pool.Pool._invalidate)


def test_garbage_collector_detaches_before_it_returns() -> None:
    """So a record from there never has a connection, and is told apart by that."""
    source = inspect.getsource(base._finalize_fairy)
    assert "detach = connection_record is None or is_gc_cleanup" in source
    assert "dont_restore_gced = pool._dialect.is_async" in source
    assert source.index("fairy.detach()") < source.index("connection_record.checkin()")


def test_terminate_asks_in_a_greenlet_and_cuts_outside() -> None:
    source = inspect.getsource(connectors.AsyncAdapt_terminate.terminate)
    assert "if in_greenlet():" in source
    assert "await_(asyncio.shield(self._terminate_graceful_close()))" in source
    assert "self._terminate_force_close()" in source
    assert issubclass(AsyncAdapt_asyncpg_connection, connectors.AsyncAdapt_terminate)
    for dialect in (PGDialect_asyncpg, SQLiteDialect_aiosqlite):
        assert dialect.has_terminate
        assert dialect.is_async


def test_close_fires_its_event_and_survives_a_cancelled_terminate() -> None:
    close = inspect.getsource(base._ConnectionRecord._ConnectionRecord__close)
    assert "self.__pool.dispatch.close(self.dbapi_connection, self)" in close
    assert "self.dbapi_connection = None" in close
    source = inspect.getsource(pool.Pool._close_connection)
    assert "self._dialect.do_terminate(connection)" in source
    assert "util.is_cancellation_exception(e)" in source


def test_greenlets_are_entered_and_left_by_these() -> None:
    assert signature(util.greenlet_spawn) == "fn, *args, _require_await=False, **kwargs"
    assert signature(util.await_only) == "awaitable"
    assert signature(concurrency.in_greenlet) == ""


def test_engine_finds_every_argument_of_the_pool() -> None:
    found = langhelpers.get_cls_kwargs(FairPool)
    assert found == set(inspect.signature(FairPool.__init__).parameters) - {"self", "base"} | (
        set(inspect.signature(pool.Pool.__init__).parameters) - {"self"}
    )


SETTINGS = DatabaseSettings(url=URL.create("sqlite"))


def test_engine_hands_these_arguments_to_the_pool() -> None:
    engine = create_async_engine(
        "sqlite+aiosqlite:///nowhere",
        poolclass=FairPool,
        settings=SETTINGS,
        env_prefix="X_",
        pool_logging_name="primary",
    )
    assert isinstance(engine.pool, FairPool)
    assert engine.pool.settings is SETTINGS
    assert engine.pool.name == "primary"


def test_synchronous_engine_refuses_the_pool() -> None:
    with pytest.raises(sqlalchemy.exc.ArgumentError, match="FairPool cannot be used with non-"):
        create_engine("sqlite:///nowhere", poolclass=FairPool, settings=SETTINGS)


def test_engine_disposes_before_it_recreates() -> None:
    source = inspect.getsource(sqlalchemy.Engine.dispose)
    assert source.index("self.pool.dispose()") < source.index("self.pool = self.pool.recreate()")


def test_engine_tells_the_pool_of_a_disconnect() -> None:
    source = inspect.getsource(sqlalchemy.Connection._handle_dbapi_exception)
    assert "self.engine.pool._invalidate(dbapi_conn_wrapper, e)" in source
    assert "invalidate_pool_on_disconnect = not is_exit_exception" in source
