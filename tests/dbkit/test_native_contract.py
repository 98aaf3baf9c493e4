"""What `native.py` stands on in SQLAlchemy: when this fails, read it beside what has changed.

It calls SQLAlchemy's parts in the order in which SQLAlchemy calls them, and leaves out the others.
So a change of what these are called with, or of who calls them, may have to be made there too.
"""

# ruff: noqa: SLF001 -- private names are the subject
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

import inspect
from collections.abc import Callable
from hashlib import sha256

import pytest
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import (
    AsyncAdapt_asyncpg_connection,
    AsyncAdapt_asyncpg_cursor,
    PGExecutionContext_asyncpg,
)
from sqlalchemy.engine.cursor import CursorResult
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Session, loading
from sqlalchemy.orm.context import _ORMSelectCompileState as ORMState
from sqlalchemy.pool import base
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.schema import CallableColumnDefault

READ: dict[Callable[..., object], str] = {
    # What a statement goes through on SQLAlchemy's way
    Session._execute_internal: "8b71f9fc",
    Connection.__init__: "0e304f26",
    Connection.execute: "d36a634e",
    ClauseElement._execute_on_connection: "901ff914",
    Connection._execute_clauseelement: "e38b9406",
    Connection._execute_context: "58757de2",
    Connection._exec_single_context: "cb15c43a",
    Connection.close: "b1d0fbce",
    base._ConnectionRecord.checkout: "1942df93",
    base._ConnectionRecord.get_connection: "bac369fe",
    base._ConnectionRecord.checkin: "91384c36",
    base._ConnectionFairy._checkout: "705fd676",
    base._finalize_fairy: "0b2b1e12",
    # What is called here
    ClauseElement._compile_w_cache: "2e578274",
    DefaultExecutionContext._init_compiled: "7abc70d1",
    PGExecutionContext_asyncpg: "edab1af5",
    AsyncAdapt_asyncpg_connection: "0fb1c1dc",
    AsyncAdapt_asyncpg_cursor._prepare_and_execute: "838f8fcd",
    DefaultExecutionContext.post_exec: "4b0ec9a5",
    DefaultExecutionContext._setup_result_proxy: "045df4ce",
    CursorResult.__init__: "3ad871cd",
    Connection._handle_dbapi_exception: "dc273f24",
    CallableColumnDefault._maybe_wrap_callable: "e6565f2f",
    # The same, for objects
    Session._get_impl: "bee19663",
    loading._load_on_pk_identity: "2b18d49b",
    ORMState.orm_execute_statement: "8b119e5f",
    ORMState.orm_pre_session_exec: "58f17116",
    ORMState.orm_setup_cursor_result: "93d5710c",
}
"""Functions, and fingerprints of their text."""


def fingerprint(function: Callable[..., object]) -> str:
    """Return what differs when a function does, but for its layout."""
    return sha256(" ".join(inspect.getsource(function).split()).encode()).hexdigest()[:8]


@pytest.mark.parametrize("function", READ, ids=lambda function: function.__qualname__)
def test_it_is_as_it_was_read(function: Callable[..., object]) -> None:
    assert fingerprint(function) == READ[function], (
        f"{function.__module__}: {function.__qualname__} has changed: compare it with what"
        " native.py does in its place, run test_native.py, and write its new fingerprint here"
    )
