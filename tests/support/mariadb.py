"""MariaDB and MySQL from Debian's packages, for tests: with TLS, and back on their port."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncmy
import trustme
from dbkit.commands.embedded import MARIADB_PROGRAMS, MARIADB_TEST_SETTINGS, EmbeddedMariadb
from debian import find_mysqld, find_program
from running import PATIENCE, free_port
from sqlalchemy import URL

HOST, USER, PASSWORD = "127.0.0.1", "tests", "p@ss/wörd"


NOBODY_LISTENS = 2003
GRANTS = (
    f"CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}'",
    f"GRANT ALL ON *.* TO {USER}@'%' WITH GRANT OPTION",
)


class Server:
    """A server of either kind, with a user of the tests."""

    authority: trustme.CA
    """Who has signed its certificate, which is for `localhost`, and believes clients."""
    fixed_port: int

    def url(self, database: str) -> URL:
        """Return the URL of a database, as people write it."""
        return URL.create("mysql", USER, PASSWORD, HOST, self.fixed_port, database)

    def run(self, *statements: str, url: URL | None = None) -> Any:
        """Run statements on a connection of its own; return the last one's rows."""
        user = url or self.url("mysql")

        async def run() -> Any:
            connect: Any = vars(asyncmy)["connect"]  # A str of a password it would send as Latin-1.
            connection = await connect(
                host=user.host,
                port=user.port,
                user=user.username,
                password=str(user.password).encode(),
                autocommit=True,
            )
            try:
                cursor = connection.cursor()
                for statement in statements:
                    await cursor.execute(statement)
                return await cursor.fetchall()
            finally:
                connection.close()

        with asyncio.Runner() as runner:
            return runner.run(run())

    def new_database(self) -> URL:
        """Make an empty database, and return its URL."""
        name = f"test_{uuid4().hex}"
        self.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return self.url(name)

    def variables(self, databases: list[dict[str, Any]]) -> dict[str, str]:
        """Make databases for a service that has some here; return its environment."""
        found: dict[str, str] = {}
        for each in databases:
            if each["engine"] == "mysql":
                for variable in ("DATABASE_URL", "TEST_DATABASE_URL"):
                    url = self.new_database().render_as_string(hide_password=False)
                    found[f"{each['name'].upper()}_{variable}"] = url
        return found


class MariaDB(Server, EmbeddedMariadb):
    """A server that comes back on its port, with TLS, and a user of the tests."""

    def __init__(self, directory: Path) -> None:
        for program in MARIADB_PROGRAMS:
            find_program(program)
        self.authority = trustme.CA()
        self.fixed_port = free_port()
        own = {
            "port": str(self.fixed_port),
            "max-connections": "500",
            "performance-schema": "ON",
            **certificates(self.authority, directory),
        }
        super().__init__(directory / "mariadb", settings={**MARIADB_TEST_SETTINGS, **own})

    def start(self) -> Self:
        """Start, and let the tests' user in."""
        super().start()
        self.run(*GRANTS, url=EmbeddedMariadb.url(self, "mysql"))
        return self

    @property
    def process(self) -> int:
        """The id of the server's process."""
        return int((self.directory / "data" / "server.pid").read_text())

    def restart(self) -> None:
        """Stop as an upgrade does, and start again."""
        os.kill(self.process, signal.SIGTERM)
        self.stop()
        self.start()


class MySQL(Server):
    """A MySQL, which no part of the kit starts."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.fixed_port = free_port()
        if os.geteuid() == 0:
            directory.chmod(0o755)
        self._folder = directory / "mysql"
        self._folder.mkdir()
        options = {
            "bind-address": HOST,
            "port": str(self.fixed_port),
            "max-connections": "500",
            "mysqlx": "OFF",
            "secure-file-priv": "NULL",
            "skip-log-bin": "ON",
            "socket": str(self._folder / "socket"),
            "init-file": str(self._folder / "grants.sql"),
            **MARIADB_TEST_SETTINGS,
            **certificates(self.authority, self._folder),
        }
        (self._folder / "grants.sql").write_text(";\n".join((*GRANTS, "")))
        self._command = [*find_mysqld(), f"--datadir={self._folder / 'data'}"]
        if os.geteuid() == 0:  # It refuses root.
            self._command.append("--user=nobody")
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, "nobody")
        self._options = [f"--{name}={value}" for name, value in options.items()]

    @contextmanager
    def running(self) -> Generator[Self]:
        """Make its data, and run it until exit."""
        with (self._folder / "log").open("wb") as log:
            install = [*self._command, "--initialize-insecure"]
            subprocess.run(install, check=True, stdout=log, stderr=log)
            process = subprocess.Popen(
                [*self._command, *self._options], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            end = time.monotonic() + PATIENCE
            while not self.answers():
                said = (self._folder / "log").read_text(errors="replace")
                assert process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.02)
            yield self
        finally:
            process.kill()  # Nobody will miss its data.
            process.wait()

    def answers(self) -> bool:
        """Whether it runs statements."""
        try:
            self.run("SELECT 1")
        except asyncmy.errors.OperationalError as error:
            if error.args[0] != NOBODY_LISTENS:
                raise
            return False
        return True


def certificates(authority: trustme.CA, directory: Path) -> dict[str, str]:
    """Write the certificates of a server, and return its options for them."""
    pair = authority.issue_cert("localhost").private_key_and_cert_chain_pem
    pair.write_to_path(str(directory / "tls.pem"))
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    names = {"ssl-ca": "authority.pem", "ssl-cert": "tls.pem", "ssl-key": "tls.pem"}
    return {option: str(directory / name) for option, name in names.items()}
