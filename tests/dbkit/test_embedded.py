"""The embedded PostgreSQL serves, is closed to others, and never outlives its service."""

import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dbkit.commands.embedded
import pytest
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres, find_binaries
from dbkit.errors import EmbeddedFailed
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests use pidfd_open")

KIT = Path(dbkit.commands.embedded.__file__).parents[1]
PREAMBLE = f"""
import os, sys, types
sys.path.insert(0, {str(KIT.parent)!r})
# Without the package's __init__, which imports the whole command line.
sys.modules["dbkit.commands"] = types.ModuleType("dbkit.commands")
sys.modules["dbkit.commands"].__path__ = [{str(KIT / "commands")!r}]
from pathlib import Path
from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres
from dbkit.commands.embedded_guard import leave_root
server = EmbeddedPostgres(Path(sys.argv[1]), settings=TEST_SETTINGS)
def say(what):
    print(what, flush=True)
"""
SERVICE = """
server.start()
say(server.port)
sys.stdin.readline()
"""


class Service:
    """A process that uses the server of a directory, until its input ends."""

    def __init__(self, directory: Path, script: str = SERVICE) -> None:
        command = [sys.executable, "-c", PREAMBLE + script, directory]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout

    def says(self) -> str:
        """Wait for the next line that it prints."""
        return self.output.readline().strip()

    def end(self) -> None:
        """End its input, and wait for its exit."""
        self.input.close()
        self.process.wait(30)
        self.output.close()


Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start processes that use a server, and end them after the test."""
    with ExitStack() as services:

        def serve(directory: Path, script: str = SERVICE) -> Service:
            service = Service(directory, script)
            services.callback(service.end)
            return service

        yield serve


@pytest.fixture
def new_directory(fast_directory: Path) -> Iterator[Path]:
    """Name a directory in which nothing was started yet."""
    with TemporaryDirectory(dir=fast_directory) as directory:
        yield Path(directory) / "postgres"


@pytest.fixture(scope="session")
def used_directory(fast_directory: Path) -> Path:
    """Make a directory in which a server ran before."""
    with EmbeddedPostgres(fast_directory / "used", settings=TEST_SETTINGS) as server:
        server.create_database("kept")
    return server.directory


@pytest.fixture
def directory(new_directory: Path, used_directory: Path) -> Path:
    """Copy a directory in which a server ran before: half a second less than a new one."""
    subprocess.run(["cp", "-a", used_directory, new_directory], check=True)
    return new_directory


def server_of(directory: Path) -> int:
    """Return the process id of the directory's server."""
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


def guard_of(directory: Path) -> int:
    """Return the process id of the directory's guard."""
    status = Path(f"/proc/{server_of(directory)}/status").read_text()
    return int(status.partition("PPid:")[2].split()[0])


def wait_for_end(process: int) -> None:
    """Wait until a process that is not ours has ended."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0], f"process {process} still runs"
    finally:
        os.close(descriptor)


async def fetch(url: URL, query: str) -> Any:
    """Return the first value that a query yields."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            result = await connection.execute(text(query))
            return result.scalar() if result.returns_rows else None
    finally:
        await engine.dispose()


# It serves


async def test_serves_a_query(database_url: URL) -> None:
    assert await fetch(database_url, "SELECT current_database()") == database_url.database


async def test_runs_with_the_settings_given(postgres: EmbeddedPostgres) -> None:
    assert await fetch(postgres.url("postgres"), "SHOW fsync") == "off"


async def test_speaks_utf8_and_utc(new_directory: Path) -> None:
    with EmbeddedPostgres(new_directory, settings=TEST_SETTINGS) as server:
        url = server.url("postgres")
        assert await fetch(url, "SHOW server_encoding") == "UTF8"
        assert await fetch(url, "SHOW timezone") == "UTC"


async def test_creating_a_database_twice_keeps_it(postgres: EmbeddedPostgres) -> None:
    url = postgres.url('twice "quoted" -é')
    assert url.database
    postgres.create_database(url.database)
    await fetch(url, "CREATE TABLE kept ()")
    postgres.create_database(url.database)
    assert await fetch(url, "SELECT count(*) FROM kept") == 0


def test_a_database_that_cannot_be_created_says_why(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedFailed, match="zero-length"):
        postgres.create_database("")


async def test_data_survives_a_restart(directory: Path) -> None:
    server = EmbeddedPostgres(directory, settings=TEST_SETTINGS)
    with server:
        await fetch(server.url("kept"), "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not server.is_running
    with server:
        assert await fetch(server.url("kept"), "SELECT answer FROM kept") == 42


def test_log_begins_anew_at_each_start(directory: Path) -> None:
    (directory / "log").write_text("of an earlier run")
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS):
        log = (directory / "log").read_text()
    assert "of an earlier run" not in log
    assert "ready to accept connections" in log


def test_starting_twice_is_starting_once(directory: Path) -> None:
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as server:
        process = server_of(directory)
        server.start()
        assert server_of(directory) == process
    assert not server.is_running


def test_two_services_side_by_side_do_not_clash(
    directory: Path, postgres: EmbeddedPostgres
) -> None:
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as other:
        assert other.port != postgres.port
        assert other.password != postgres.password
        assert other.is_running
    assert postgres.is_running


# It ends with its service, whatever ends that


def test_the_interpreter_waits_for_its_end(directory: Path, serve: Serve) -> None:
    service = serve(directory)
    assert service.says()
    server, guard = server_of(directory), guard_of(directory)
    os.kill(guard, signal.SIGSTOP)
    try:
        service.input.close()
        # A container's first process takes all others with it, without a clean shutdown.
        with pytest.raises(subprocess.TimeoutExpired):
            service.process.wait(1)
    finally:
        os.kill(guard, signal.SIGCONT)
    service.process.wait(30)
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_ends_when_its_service_is_killed(
    directory: Path, serve: Serve, number: signal.Signals
) -> None:
    service = serve(directory)
    assert service.says()
    server, guard = server_of(directory), guard_of(directory)
    service.process.send_signal(number)
    wait_for_end(server)
    wait_for_end(guard)


def test_ends_when_its_guard_is_killed(directory: Path) -> None:
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as server:
        process = server_of(directory)
        os.kill(guard_of(directory), signal.SIGKILL)
        wait_for_end(process)
        assert not server.is_running


def test_ends_before_a_guard_that_is_told_to_stop(directory: Path) -> None:
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS):
        process, guard = server_of(directory), guard_of(directory)
        os.kill(guard, signal.SIGTERM)
        wait_for_end(guard)
        assert not Path(f"/proc/{process}").exists()


def test_has_its_directory_until_its_own_end(directory: Path, serve: Serve) -> None:
    assert serve(directory).says()
    server, guard = server_of(directory), guard_of(directory)
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(guard, signal.SIGKILL)
        wait_for_end(guard)
        with (directory / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(server, signal.SIGCONT)
    wait_for_end(server)


async def test_recovers_from_a_crash(directory: Path, serve: Serve) -> None:
    # Not with the settings for tests, by which the last commits may be lost.
    service = serve(directory, "server.settings.clear()" + SERVICE)
    assert service.says()
    server = EmbeddedPostgres(directory)
    with server:
        await fetch(server.url("kept"), "CREATE TABLE kept AS SELECT 42 AS answer")
    processes = [service.process.pid, guard_of(directory), server_of(directory)]
    for process in processes:
        os.kill(process, signal.SIGKILL)
    for process in processes:
        wait_for_end(process)
    with server:
        assert await fetch(server.url("kept"), "SELECT answer FROM kept") == 42


async def test_outlives_the_thread_that_started_it(directory: Path) -> None:
    server = EmbeddedPostgres(directory, settings=TEST_SETTINGS)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with server:
        server.create_database("another")
        assert await fetch(server.url("another"), "SELECT 42") == 42


def test_ctrl_c_reaches_the_service_alone(directory: Path, serve: Serve) -> None:
    service = serve(
        directory,
        """
server.start()
try:
    say("started")
    sys.stdin.readline()
except KeyboardInterrupt:
    server.create_database("in_the_end")
    say(server.is_running)
""",
    )
    assert service.says() == "started"
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.says() == "True"


def test_a_fork_of_its_service_neither_stops_nor_keeps_it(directory: Path, serve: Serve) -> None:
    service = serve(
        directory,
        """
server.start()
reader, writer = os.pipe()
if os.fork() == 0:
    sys.exit()
os.wait()
say(server.is_running)
if os.fork() == 0:
    os.close(writer)
    os.read(reader, 1)
    os._exit(0)
server.stop()
say(server.is_running)
""",
    )
    assert [service.says(), service.says()] == ["True", "False"]


# It is shared by the processes of one service


def test_a_second_process_attaches_and_leaves_it_alone(directory: Path, serve: Serve) -> None:
    with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as server:
        second = serve(directory, SERVICE)
        assert second.says() == str(server.port)
        second.end()
        assert server.is_running


def test_stays_until_the_last_process_that_attached_ends(directory: Path, serve: Serve) -> None:
    first = serve(directory)
    port = first.says()
    second, third = serve(directory), serve(directory)
    assert second.says() == third.says() == port
    server = server_of(directory)
    first.end()
    second.process.kill()
    second.end()
    with EmbeddedPostgres(directory) as fourth:
        assert str(fourth.port) == port
    third.process.kill()
    wait_for_end(server)


def test_two_at_the_same_moment_share_one_server(new_directory: Path, serve: Serve) -> None:
    services = [serve(new_directory) for _ in range(4)]
    assert len({service.says() for service in services}) == 1


def test_starts_again_while_it_stops(directory: Path, serve: Serve) -> None:
    for _ in range(5):
        service = serve(directory)
        assert service.says()
        service.process.kill()
        service.end()


# It is closed to others


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_refuses_whoever_has_no_password(postgres: EmbeddedPostgres, password: str) -> None:
    url = postgres.url("postgres").set(password=password)
    with pytest.raises(DBAPIError, match="password authentication failed"):
        await fetch(url, "SELECT 42")


async def test_listens_on_the_loopback_address_alone(postgres: EmbeddedPostgres) -> None:
    url = postgres.url("postgres")
    assert await fetch(url, "SHOW listen_addresses") == "127.0.0.1"
    assert await fetch(url, "SHOW unix_socket_directories") == ""


def test_files_are_closed_to_other_users(postgres: EmbeddedPostgres) -> None:
    assert postgres.directory.stat().st_mode & 0o777 == 0o700
    names = sorted(path.name for path in postgres.directory.iterdir())
    assert names == ["data", "lock", "log", "password", "port", "users"]
    for path in postgres.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_directory_open_to_others_is_refused(new_directory: Path) -> None:
    new_directory.mkdir(mode=0o755)
    before = new_directory.stat()
    with pytest.raises(EmbeddedFailed, match="open to other users: chmod it to 700, or delete it"):
        EmbeddedPostgres(new_directory).start()
    after = new_directory.stat()
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


def test_neither_error_nor_repr_shows_the_password(directory: Path) -> None:
    server = EmbeddedPostgres(directory, settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedFailed, match="no_such_setting") as failure:
        server.start()
    assert server.password not in str(failure.value)
    assert server.password not in repr(server)


# It runs for root and for others, wherever the project is

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_runs_below_a_closed_directory_and_leaves_it_closed(
    fast_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(dir=fast_directory) as name:
        closed = Path(name)
        (closed / "bin").symlink_to(find_binaries())
        monkeypatch.setenv("EMBEDDED_POSTGRES_BIN", str(closed / "bin"))
        before = closed.stat()
        with EmbeddedPostgres(closed / "project" / ".postgres", settings=TEST_SETTINGS) as server:
            assert server.is_running
        after = closed.stat()
    assert before.st_mode & 0o777 == 0o700
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)


@as_root
def test_runs_for_an_ordinary_user(new_directory: Path, serve: Serve) -> None:
    new_directory.mkdir(mode=0o700)
    service = serve(new_directory, "leave_root(Path(sys.argv[1]))\nsay(os.getuid())" + SERVICE)
    user = service.says()
    assert user != "0"
    assert service.says()
    assert Path(f"/proc/{server_of(new_directory)}").stat().st_uid == int(user)


@as_root
def test_runs_as_the_owner_of_its_directory(new_directory: Path) -> None:
    new_directory.mkdir(mode=0o700)
    shutil.chown(new_directory, "daemon", "daemon")
    owner = new_directory.stat().st_uid
    with EmbeddedPostgres(new_directory, settings=TEST_SETTINGS):
        assert Path(f"/proc/{server_of(new_directory)}").stat().st_uid == owner


NO_AMBIENT_CAPABILITIES = """
import ctypes
assert ctypes.CDLL(None).prctl(28, 1 << 6) == 0  # PR_SET_SECUREBITS, NO_CAP_AMBIENT_RAISE
try:
    server.start()
except Exception as error:
    say(error)
"""


@as_root
def test_says_which_directory_it_cannot_enter(directory: Path, serve: Serve) -> None:
    service = serve(directory, NO_AMBIENT_CAPABILITIES)
    said = service.output.read()
    assert f"{directory} cannot be entered by user" in said
    assert "move it, or allow CAP_DAC_OVERRIDE" in said


# When it cannot start, it says what to do


def test_without_binaries_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, new_directory: Path
) -> None:
    monkeypatch.setenv("PATH", str(find_binaries()), prepend=os.pathsep)
    monkeypatch.setattr(dbkit.commands.embedded, "find_spec", lambda _: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(EmbeddedFailed) as failure:
        EmbeddedPostgres(new_directory).start()
    assert "there is no embedded PostgreSQL on this machine" in str(failure.value)
    assert "uv sync" in str(failure.value)
    assert not new_directory.exists()


def test_binaries_named_but_absent_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDED_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(EmbeddedFailed, match=f"EMBEDDED_POSTGRES_BIN={tmp_path}"):
        find_binaries()


def test_data_of_another_major_version_is_named_and_kept(directory: Path) -> None:
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedFailed) as failure:
        EmbeddedPostgres(directory).start()
    assert f"{directory / 'data'} was made by PostgreSQL 9, and this is" in str(failure.value)
    assert f"delete {directory}." in str(failure.value)
    assert "pg_dumpall" in str(failure.value)
    assert (directory / "data" / "base").is_dir()


def test_a_half_made_data_directory_is_made_anew(new_directory: Path) -> None:
    (new_directory / "data.new" / "base").mkdir(parents=True)
    (new_directory / "data.new" / "PG_VERSION").write_text("18\n")
    new_directory.chmod(0o700)
    with EmbeddedPostgres(new_directory, settings=TEST_SETTINGS) as server:
        assert server.is_running
    assert not (new_directory / "data.new").exists()


Wrap = Callable[[str], None]


@pytest.fixture
def wrap(new_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Wrap:
    """Run lines of shell before each start of a server."""
    real, wrapper = find_binaries() / "postgres", new_directory.parent / "bin" / "postgres"

    def wrap(lines: str) -> None:
        wrapper.parent.mkdir()
        wrapper.write_text(
            f'#!/bin/sh\nif [ "$1" != --version ]; then {lines}\nfi\nexec {real} "$@"'
        )
        wrapper.chmod(0o755)
        monkeypatch.setenv("EMBEDDED_POSTGRES_BIN", str(wrapper.parent))

    return wrap


def test_a_stale_pid_file_is_not_believed(directory: Path, wrap: Wrap) -> None:
    pid_file = directory / "data" / "postmaster.pid"
    # The worst case: its process id and its port now belong to somebody else.
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        pid_file.write_text(
            f"{os.getpid()}\n{directory}/data\n0\n{port}\n\n127.0.0.1\n\nready   \n"
        )
        wrap(f"[ -e {pid_file} ] && exit 1")
        with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as server:
            assert server.port != port


def test_a_port_taken_in_between_is_given_up(directory: Path, wrap: Wrap) -> None:
    tried = directory / "tried"
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        wrap(f'[ -e {tried} ] || {{ > {tried}; set -- "$@" -p {taken}; }}')
        with EmbeddedPostgres(directory, settings=TEST_SETTINGS) as server:
            assert tried.exists()
            assert server.port != taken


def test_a_port_that_stays_taken_is_named(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(EmbeddedFailed, match="Address already in use") as failure:
            EmbeddedPostgres(directory, settings={"port": str(taken)}).start()
    assert str(taken) in str(failure.value)
