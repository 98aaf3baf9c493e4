"""One pool in whichever event loop runs: each kind of loop, each driver, one loop after another."""

import asyncio
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbkit.pool import FairPool
from pool_fakes import settings_of
from sqlalchemy import URL, exc, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

# The thread of an aiosqlite connection that a loop left open has nobody to answer to, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def new_uvloop() -> asyncio.AbstractEventLoop:
    """Make a uvloop, where there is one."""
    uvloop = pytest.importorskip("uvloop")
    return uvloop.new_event_loop()


@pytest.fixture(params=[asyncio.new_event_loop, new_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run in a loop of its own, which ends with it."""

    def in_a_new_loop(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(work)

    return in_a_new_loop


@pytest.fixture(params=["asyncpg", "aiosqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """Offer a database for each driver."""
    if request.param == "asyncpg":
        return request.getfixturevalue("database_url")
    return URL.create("sqlite+aiosqlite", database=str(tmp_path / "test.db"))


def make_engine(url: URL, **settings: Any) -> AsyncEngine:
    """Make an engine with our pool."""
    return create_async_engine(
        url, poolclass=FairPool, settings=settings_of({"pool_size": 3} | settings)
    )


def pool_of(engine: AsyncEngine) -> FairPool:
    """Return an engine's pool."""
    assert isinstance(engine.pool, FairPool)
    return engine.pool


async def select(engine: AsyncEngine) -> Any:
    """Do what a request does."""
    async with AsyncSession(engine) as session, session.begin():
        return await session.scalar(text("select 1"))


@contextmanager
def connections_left_behind() -> Generator[None]:
    """Let a loop end with connections open; Python warns of each when it collects them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def test_callers_are_served_and_nothing_is_left(url: URL, run: Run) -> None:
    engine = make_engine(url, pool_timeout=60, queue_target=0)

    async def serve() -> None:
        assert await asyncio.gather(*(select(engine) for _ in range(60))) == [1] * 60
        impatient = [asyncio.create_task(select(engine)) for _ in range(60)]
        await asyncio.sleep(0.005)
        for task in impatient[::2]:
            task.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        while pool_of(engine).snapshot().in_use:  # noqa: ASYNC110 -- nothing is set for it
            await asyncio.sleep(0.001)
        assert await pool_of(engine).drain(5) == []
        await engine.dispose()
        assert len(asyncio.all_tasks()) == 1

    run(serve())


def test_engine_serves_one_loop_after_another_when_disposed_of(url: URL, run: Run) -> None:
    engine = make_engine(url)

    async def serve() -> None:
        assert await select(engine) == 1
        await engine.dispose()

    for _ in range(3):
        run(serve())


def test_engine_serves_one_loop_after_another_when_nobody_disposed_of_it(
    url: URL, run: Run
) -> None:
    engine = make_engine(url, keepalive=0.01)
    with connections_left_behind():
        for _ in range(3):
            assert run(select(engine)) == 1
            assert pool_of(engine).snapshot().in_use == 0
        run(engine.dispose())


def test_loop_that_ends_under_load_does_no_harm_to_the_next(url: URL, run: Run) -> None:
    engine = make_engine(url, pool_timeout=60)

    async def hold() -> None:
        await engine.connect()
        for _ in range(10):
            asyncio.get_running_loop().create_task(select(engine))
        await asyncio.sleep(0.01)

    with connections_left_behind():
        warnings.simplefilter("ignore", exc.SAWarning)  # For the connection that is held.
        run(hold())
        gc.collect()

        assert run(select(engine)) == 1

        status = pool_of(engine).snapshot()
        assert (status.in_use, status.waiting, status.connecting) == (0, 0, 0)
        run(engine.dispose())


def test_two_loops_at_once_are_refused(url: URL) -> None:
    engine = make_engine(url)
    told: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(select(engine))
        except exc.InvalidRequestError as error:
            told.append(error)

    async def serve() -> None:
        await select(engine)
        await asyncio.to_thread(elsewhere)
        assert await select(engine) == 1
        await engine.dispose()

    asyncio.run(serve())
    assert "in use in another event loop" in str(told[0])


def test_connection_may_be_dropped_after_its_loop_has_ended(url: URL, run: Run) -> None:
    engine = make_engine(url)
    held: list[Any] = []

    async def hold() -> None:
        held.append(await engine.connect())

    with connections_left_behind():
        warnings.simplefilter("ignore", exc.SAWarning)
        run(hold())
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        gc.collect()

        assert run(select(engine)) == 1
        run(engine.dispose())


def test_engine_may_be_disposed_of_where_no_loop_runs(database_url: URL, run: Run) -> None:
    engine = make_engine(database_url)
    with connections_left_behind():
        run(select(engine))

        engine.sync_engine.dispose()

        assert run(select(engine)) == 1
        run(engine.dispose())


def test_loop_ends_without_a_word(url: URL, tmp_path: Path) -> None:
    """No task is destroyed while it is pending, whatever the pool is about to do."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
from dbkit import DatabaseSettings
from dbkit.pool import FairPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

async def main():
    settings = DatabaseSettings.model_construct(keepalive=0.01, pool_recycle=0.02, ping_after=0)
    engine = create_async_engine({url.render_as_string(hide_password=False)!r},
        poolclass=FairPool, settings=settings)
    async def serve():
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
    for _ in range(5):
        await asyncio.gather(*(serve() for _ in range(5)))
        await asyncio.sleep(0.005)
    tasks = [asyncio.create_task(serve()) for _ in range(30)]
    await asyncio.sleep(0)
    await engine.pool.drain(1)
    await engine.dispose()
    await asyncio.gather(*tasks, return_exceptions=True)

asyncio.run(main())
"""
    )

    async def script_runs() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "dev", str(script), stderr=asyncio.subprocess.PIPE
        )
        _, stderr = await process.communicate()
        return process.returncode, stderr

    code, stderr = asyncio.run(script_runs())

    said = [line for line in stderr.splitlines() if b"took" not in line]  # -X dev: a slow machine.
    assert (code, said) == (0, [])
