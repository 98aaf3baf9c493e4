"""What databases share and nobody can cancel: a dead resolver, or file server, of one of them."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KIT
from dbkit import Database, DatabaseSettings
from dbkit.settings import threads as aside
from sqlalchemy import URL, make_url, text
from waiting import until

pytestmark = pytest.mark.anyio


class DeadResolver:
    """Answers for one name only when it is told to, as libc's does for a server that is silent."""

    name = "dead.example"

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered = threading.Event()
        self._resolve = socket.getaddrinfo

    def getaddrinfo(self, host: str, *args: object, **kwargs: object) -> object:
        """Take the place of `socket.getaddrinfo`."""
        self.asked[host] += 1
        if host == self.name:
            self.answered.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._resolve(host, *args, **kwargs)  # pyright: ignore[reportArgumentType] -- passed on


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeadResolver]:
    resolver = DeadResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    yield resolver
    resolver.answered.set()


async def test_one_look_up_is_pending_for_a_database_however_often_it_is_tried(
    resolver: DeadResolver,
) -> None:
    url = make_url(f"postgresql+asyncpg://me@{resolver.name}/orders")
    database = Database("primary", "postgresql")
    settings = DatabaseSettings(url=url, pool_size=5, connect_timeout=0.2, required=False)
    async with database.open(settings):
        await until(lambda: database.pool.counters.connect_errors >= 6)
        assert resolver.asked[resolver.name] == 1

        resolver.answered.set()
        await until(lambda: resolver.asked[resolver.name] > 1)  # And then it is asked anew.


async def test_the_message_names_the_resolver(
    resolver: DeadResolver, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(f"postgresql+asyncpg://me@{resolver.name}/orders")
    database = Database("primary", "postgresql")
    async with database.open(DatabaseSettings(url=url, connect_timeout=0.1, required=False)):
        await until(lambda: "the resolver does not answer for dead.example" in caplog.text)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+asyncmy"])
async def test_no_thread_of_the_loop_waits_for_a_resolver(
    resolver: DeadResolver, driver: str
) -> None:
    dialect = "mysql" if driver.startswith("mysql") else "postgresql"
    database = Database("primary", dialect)
    url = make_url(f"{driver}://me@{resolver.name}/orders")
    async with database.open(DatabaseSettings(url=url, connect_timeout=0.1, required=False)):
        await until(lambda: database.pool.counters.connect_errors >= 3)
        waiting = [each.name for each in threading.enumerate() if each.name.startswith("asyncio_")]
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(8)))  # Each has its turn.
        assert resolver.asked[resolver.name] == 1
        assert len(waiting) <= 1  # Idle, of something before.


@pytest.mark.parametrize("declared", ["postgresql", "mariadb"], indirect=True)
async def test_a_database_is_reached_while_all_threads_of_the_loop_are_taken(
    declared: Database,
) -> None:
    """As in https://github.com/python/cpython/issues/112169."""
    loop = asyncio.get_running_loop()
    free = threading.Event()
    taken = [loop.run_in_executor(None, free.wait, 30) for _ in range(64)]
    settings = declared.read_settings()
    by_name = {"url": settings.url.set(host="localhost"), "connect_timeout": 5}
    try:
        async with declared.open(settings.model_copy(update=by_name)):
            assert await declared.reader.scalar(text("select 1")) == 1
    finally:
        free.set()
        await asyncio.gather(*taken)


async def test_a_service_stops_while_all_threads_of_the_loop_are_taken(database_url: URL) -> None:
    url = database_url.render_as_string(hide_password=False)
    database = Database("shop", "postgresql", url=url)
    loop = asyncio.get_running_loop()
    free = threading.Event()

    def use() -> None:
        with database.sync.session() as session:
            session.execute(text("select 1"))

    async with database.open():
        await asyncio.to_thread(use)
        taken = [loop.run_in_executor(None, free.wait, 30) for _ in range(64)]
        (pool,) = database.sync.pools

    assert not free.is_set()
    assert pool.checkedin() == 0
    free.set()
    await asyncio.gather(*taken)


async def test_of_several_hosts_the_one_that_is_known_is_used(
    resolver: DeadResolver, database_url: URL
) -> None:
    host, port = database_url.host or "localhost", database_url.port
    url = database_url.set(host=None, port=None).update_query_dict(
        {"host": [f"{resolver.name}:{port}", f"{host}:{port}"]}
    )
    database = Database("primary", "postgresql")
    async with database.open(DatabaseSettings(url=url, connect_timeout=4)):
        assert await database.reader.scalar(text("select 1")) == 1


async def test_a_password_file_that_is_not_answered_blocks_nobody(
    database_url: URL, tmp_path: Path
) -> None:
    """As one on a file server that is away: here a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "password")
    ours = Database("primary", "postgresql")
    theirs = Database("other", "postgresql")
    with_file = DatabaseSettings(
        url=database_url,
        password_file=str(tmp_path / "password"),
        connect_timeout=0.1,
        required=False,
    )
    async with ours.open(DatabaseSettings(url=database_url)), theirs.open(with_file):
        await until(lambda: theirs.pool.counters.connect_errors >= 3)
        assert await ours.reader.scalar(text("select 1")) == 1
        reading = [each for each in threading.enumerate() if each.name == "aside"]
        assert len(reading) == 1
        (tmp_path / "password").write_text("secret\n")  # It is read, and the thread ends.
        await until(lambda: not reading[0].is_alive())


async def test_who_is_cancelled_leaves_the_call_to_the_next() -> None:
    go_on = threading.Event()
    calls: list[str] = []

    def work(argument: str) -> str:
        calls.append(argument)
        go_on.wait(30)
        return argument.upper()

    first = asyncio.create_task(aside.aside(work, "a"))
    await until(lambda: calls == ["a"])
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(aside.aside(work, "a"))
    await asyncio.sleep(0)
    go_on.set()

    assert await second == "A"
    assert calls == ["a"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("db.example", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("/run/postgresql", False),
        ("", False),
    ],
)
def test_only_names_are_looked_up(host: str, *, expected: bool) -> None:
    assert aside.is_name(host) is expected


SCRIPT = """
import asyncio, logging, os, sys
from dbkit import Database, DatabaseSettings
from sqlalchemy import make_url, text
logging.basicConfig(stream=sys.stdout)
async def main():
    dead, live = Database("dead", "postgresql"), Database("live", "postgresql")
    away = make_url("postgresql+asyncpg://me@dead.example/orders")
    async with dead.open(DatabaseSettings(url=away, required=False, connect_timeout=0.5)):
        await asyncio.sleep(4)
        loop = asyncio.get_running_loop()  # What else the service asks is not answered either.
        others = [loop.getaddrinfo(f"dead{number}.example", 80) for number in range(64)]
        others = [asyncio.ensure_future(each) for each in others]
        await asyncio.sleep(0.1)
        async with live.open(DatabaseSettings(url=make_url(sys.argv[1]), connect_timeout=3)):
            for _ in range(3):
                await live.reader.scalar(text("select 1"))
                live.pool.retire()
                await asyncio.sleep(0.1)
            print("answered", await live.reader.scalar(text("select 1")), dead.status)
            print("errors", live.pool.counters.connect_errors, flush=True)
    os._exit(0)  # Else it would wait for all that is not answered.
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_resolver_that_never_answers_takes_no_other_database_down(
    database_url: URL, tmp_path: Path, loop: str
) -> None:
    """With libc's resolver, whose one name server is a port that answers nothing."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("only root may have an /etc/resolv.conf of its own")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:1\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    url = database_url.set(host="localhost").render_as_string(hide_password=False)
    inside = (
        f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec {sys.executable}"
        f" {tmp_path}/script.py '{url}' {loop}"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.53", 53))
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", inside],
            env={**os.environ, "PYTHONPATH": str(KIT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert "answered 1 down" in done.stdout, done.stdout + done.stderr
    assert "errors 0" in done.stdout
    assert "never retrieved" not in done.stdout + done.stderr
