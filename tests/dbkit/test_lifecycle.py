"""A database from its start to its stop, and the units of work in between."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dbkit import Database, Databases, PoolClosed, Unreachable
from dbkit.database import engine
from dbkit.engines.sqlstates import sqlstate
from running import free_port
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from waiting import until


def declare(url: URL, name: str = "primary", **declared: Any) -> Database:
    declared = {"url": url.render_as_string(hide_password=False), "drain_timeout": 0} | declared
    return Database(name, "postgresql", **declared)


async def backends(url: URL, application: str) -> list[int]:
    """List the server's processes that serve us."""
    async with (
        declare(url, "observer", min_ready=0).open() as observer,
        observer.session() as session,
    ):
        query = "select pid from pg_stat_activity where application_name = :name"
        return list(await session.scalars(text(query), {"name": application}))


@asynccontextmanager
async def frozen(process: int) -> AsyncGenerator[None]:
    """Stop a process in its tracks, as a server that hangs."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


async def test_min_ready_connections_are_open_when_the_service_starts(database_url: URL) -> None:
    async with declare(database_url, min_ready=4).open() as primary:
        status = primary.pool.snapshot()

    assert (status.connects, status.idle) == (4, 4)


@pytest.fixture
def collector() -> Generator[None]:
    """Set the garbage collector as Python does, and back."""
    before = gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)
    gc.freeze()


@pytest.mark.usefixtures("collector")
async def test_the_collector_passes_by_what_the_start_has_made(database_url: URL) -> None:
    made = len(gc.get_objects())
    async with Databases(declare(database_url)).open():
        assert len(gc.get_objects()) < made / 10
        assert gc.get_threshold()[0] == 5_000


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("young", [0, 50_000])
async def test_a_collector_that_was_set_is_left_alone(database_url: URL, young: int) -> None:
    gc.set_threshold(young, 5, 5)
    made = len(gc.get_objects())
    async with Databases(declare(database_url)).open():
        assert len(gc.get_objects()) > made / 2
        assert gc.get_threshold() == (young, 5, 5)


async def test_a_service_starts_degraded_when_a_database_is_down(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    gone = declare(database_url.set(port=port), "gone", connect_timeout=0.2)
    async with Databases(declare(database_url), gone).open() as databases:
        async with databases["primary"].session() as session:
            assert await session.scalar(text("select 1")) == 1
        with pytest.raises(Unreachable):
            async with databases["gone"].session() as session:
                await session.execute(text("select 1"))

    address = f"postgresql://postgres:***@127.0.0.1:{port}/"
    assert f"gone: down: cannot connect to {address}" in caplog.text
    assert "check GONE_DATABASE_URL" in caplog.text


async def test_a_database_that_is_required_at_start_stops_it(database_url: URL) -> None:
    url = database_url.set(port=free_port())
    gone = declare(url, "gone", connect_timeout=0.2, required_at_start=True)

    with pytest.raises(Unreachable, match=r"gone: cannot connect to .*nothing listens there"):
        async with Databases(declare(database_url), gone).open():
            pytest.fail("started")

    assert await backends(database_url, "dbkit:primary") == []


async def test_nothing_is_left_on_the_server(database_url: URL) -> None:
    async with declare(database_url, min_ready=3).open():
        assert len(await backends(database_url, "dbkit:primary")) == 4  # Three, and the probe's.

    async def all_gone() -> bool:
        return await backends(database_url, "dbkit:primary") == []

    await until(all_gone)


async def test_a_stop_waits_for_a_transaction_and_refuses_the_next(database_url: URL) -> None:
    primary = declare(database_url, drain_timeout=30)
    await primary.start(primary.read_settings())
    async with primary.session() as session:
        await session.execute(text("create table kept (id int)"))
        stop = asyncio.create_task(primary.stop())
        await until(lambda: primary.pool.snapshot().closed)

        with pytest.raises(PoolClosed, match="primary: the pool is closed"):
            async with primary.session() as late:
                await late.execute(text("select 1"))
    await stop

    async with declare(database_url).open() as again, again.session() as session:
        assert await session.scalar(text("select count(*) from kept")) == 0


async def test_a_frozen_server_does_not_hold_up_the_stop(
    database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    primary, other = declare(database_url, drain_timeout=0.05), declare(database_url, "other")
    databases = Databases(primary, other)
    async with asyncio.timeout(30), databases.open(), primary.engine.connect() as connection:
        process = await connection.scalar(text("select pg_backend_pid()"))
        async with frozen(process):
            await primary.stop()

    assert "primary: still in use, now closed: 1\n  held by task " in caplog.text


async def test_a_database_that_fails_to_stop_leaves_no_other_open(
    database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, other = declare(database_url), declare(database_url, "other")

    async def fail() -> None:
        raise OSError("out of sockets")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="out of sockets"):
        async with Databases(primary, other).open():
            patch.setattr(primary, "stop", fail)

    assert not other.is_open
    await primary.stop()


async def test_behind_the_servers_timeout_the_driver_gives_a_frozen_server_up(
    database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FENCE", 0.1)
    async with declare(database_url, statement_timeout=0.1).open() as primary:
        async with primary.engine.connect() as connection:
            process = await connection.scalar(text("select pg_backend_pid()"))
            async with frozen(process), asyncio.timeout(30):
                with pytest.raises(Unreachable, match="the connection was lost: no answer in time"):
                    await connection.execute(text("select 1"))

        async with primary.session() as session:
            assert await session.scalar(text("select 1")) == 1


async def test_the_kernel_watches_the_peer(database_url: URL) -> None:
    async with declare(database_url).open() as primary, primary.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        peer = raw._transport.get_extra_info("socket")  # noqa: SLF001 -- nothing public tells

        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for option, value in engine.TCP_OPTIONS.items():
            assert peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) == value


async def test_the_server_ends_the_statement_of_a_service_that_is_gone(database_url: URL) -> None:
    async with declare(database_url, client_check_interval=0.1).open() as primary:
        raw: Any = None
        async with primary.engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            running = asyncio.ensure_future(raw.execute("select pg_sleep(600)"))
            await asyncio.sleep(0)
            raw._transport.abort()  # noqa: SLF001 -- as the kernel does when a process is killed
            with pytest.raises(Exception):  # noqa: B017, PT011 -- asyncpg's own, of many kinds
                await running
            await connection.invalidate()

    async def ended() -> bool:
        observer = declare(database_url, "observer", min_ready=0)
        async with observer.open(), observer.session() as session:
            query = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%'"
            return await session.scalar(text(f"{query} and pid <> pg_backend_pid()")) == 0

    await until(ended)


async def count_up(session: AsyncSession) -> int:
    """Read, then write what was read: two at once cannot both be right."""
    await session.execute(text("set transaction isolation level serializable"))
    count = int(await session.scalar(text("select n from counter")) or 0)
    await session.execute(text("update counter set n = :n"), {"n": count + 1})
    return count


@pytest.fixture
async def counter(database_url: URL) -> AsyncIterator[Database]:
    async with declare(database_url).open() as primary:
        async with primary.session() as session:
            await session.execute(text("create table counter as select 0 as n"))
        yield primary


async def read(counter: Database) -> int:
    async with counter.session() as session:
        return int(await session.scalar(text("select n from counter")) or 0)


async def test_a_transaction_is_begun_again_when_another_was_in_its_way(counter: Database) -> None:
    attempts = 0

    async def work(session: AsyncSession) -> int:
        nonlocal attempts
        attempts += 1
        count = await session.scalar(text("select n from counter for update"))
        if attempts == 1:
            await session.execute(text("do $$ begin raise sqlstate '40001'; end $$"))
        await session.execute(text("update counter set n = n + 1"))
        return int(count or 0)

    assert await counter.run_transaction(work) == 0
    assert (attempts, await read(counter)) == (2, 1)


async def test_serializable_counts_are_all_kept(counter: Database) -> None:
    runs = [counter.run_transaction(count_up, attempts=30) for _ in range(8)]

    assert sorted(await asyncio.gather(*runs)) == list(range(8))
    assert await read(counter) == 8


async def attempts_at(counter: Database, statement: str, code: str, **limit: int) -> int:
    """Count how often a transaction is begun that fails with a SQLSTATE."""
    attempts = 0

    async def work(session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        await session.execute(text(statement))

    with pytest.raises(DBAPIError) as failed:
        await counter.run_transaction(work, **limit)
    assert sqlstate(failed.value) == code
    return attempts


async def test_the_last_attempt_raises_what_was_in_its_way(counter: Database) -> None:
    deadlock = "do $$ begin raise sqlstate '40P01'; end $$"

    assert await attempts_at(counter, deadlock, "40P01", attempts=3) == 3


async def test_other_errors_are_not_tried_again(counter: Database) -> None:
    assert await attempts_at(counter, "select 1 / 0", "22012") == 1


async def test_there_is_no_second_attempt_once_commit_was_sent(counter: Database) -> None:
    async with counter.session() as session:
        await session.execute(
            text("""
            create function refuse() returns trigger language plpgsql as
            $$ begin raise sqlstate '40001'; end $$
        """)
        )
        await session.execute(
            text("""
            create constraint trigger refuses after update on counter
            deferrable initially deferred for each row execute function refuse()
        """)
        )

    assert await attempts_at(counter, "update counter set n = n + 1", "40001") == 1


async def test_no_attempt_at_all_is_refused(counter: Database) -> None:
    with pytest.raises(ValueError, match="attempts is 0; it must be 1 or more"):
        await counter.run_transaction(count_up, attempts=0)
