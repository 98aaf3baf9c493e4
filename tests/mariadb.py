"""A MariaDB from Debian's packages, for the tests: on loopback, with TLS, gone at their end."""

import asyncio
import datetime
import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncmy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from debian import find_program
from running import PATIENCE, free_port
from sqlalchemy import URL

HOST, USER, PASSWORD = "127.0.0.1", "tests", "p@ss/wörd"

NOBODY_LISTENS = 2003

OPTIONS = [
    "--skip-log-bin",
    "--skip-name-resolve",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=32M",
    "--max-connections=500",
    "--performance-schema=ON",
    "--character-set-server=utf8mb4",
]
"""Fast, and lost in a crash of the machine; everything else is as the server has it."""


class MariaDB:
    """A server that comes back on its port."""

    def __init__(self, port: int, certificate: Path, command: list[str | Path], log: Path) -> None:
        self.port = port
        self.certificate = certificate
        self._command = command
        self._log = log
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            wait_for(self, self._log)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def restart(self) -> None:
        """Stop as an upgrade does, and start again."""
        self.process.terminate()
        self.process.wait()
        self.start()

    def url(self, database: str) -> URL:
        """Return the URL of a database, as people write it."""
        return URL.create("mysql", USER, PASSWORD, HOST, self.port, database)

    def run(self, *statements: str) -> Any:
        """Run statements on a connection of its own; return the last one's rows."""

        async def run() -> Any:
            connect: Any = vars(asyncmy)["connect"]  # A str of a password it would send as Latin-1.
            connection = await connect(
                host=HOST, port=self.port, user=USER, password=PASSWORD.encode(), autocommit=True
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

    def create_database(self) -> URL:
        """Make an empty database, and return its URL."""
        name = f"test_{uuid4().hex}"
        self.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return self.url(name)

    def variables(self, databases: list[dict[str, Any]]) -> dict[str, str]:
        """Make databases for a service that has some here; return its environment."""
        found: dict[str, str] = {}
        for number, each in enumerate(databases):
            if each["engine"] == "mysql":
                prefix = f"{each['name'].upper()}_" if number else ""
                for variable in ("DATABASE_URL", "TEST_DATABASE_URL"):
                    url = self.create_database()
                    found[prefix + variable] = url.render_as_string(hide_password=False)
        return found


@contextmanager
def running_mariadb(directory: Path) -> Generator[MariaDB]:
    """Run a server until exit, with its data in `directory`."""
    server = find_program("mariadbd", "mariadb-server-core")
    install = find_program("mariadb-install-db", "mariadb-server-core")
    as_user: list[str] = []
    if os.geteuid() == 0:  # It refuses root.
        as_user = ["--user=nobody"]
        directory.chmod(0o755)
    data = directory / "data"
    made = subprocess.run(
        [install, "--no-defaults", f"--datadir={data}", *as_user, "--skip-test-db"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert made.returncode == 0, made.stdout
    certificate, key = make_certificate(data)
    grants = (
        f"CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}';\n"
        f"GRANT ALL ON *.* TO {USER}@'%' WITH GRANT OPTION;\n"
    )
    (data / "init.sql").write_text(grants)
    if as_user:
        for path in (certificate, key, data / "init.sql"):
            shutil.chown(path, "nobody")
    port = free_port()
    command = [
        *(server, "--no-defaults", f"--datadir={data}", f"--port={port}", *as_user),
        *(f"--bind-address={HOST}", f"--socket={data / 'socket'}", *OPTIONS),
        f"--init-file={data / 'init.sql'}",
        *(f"--ssl-cert={certificate}", f"--ssl-key={key}"),
    ]
    mariadb = MariaDB(port, certificate, command, directory / "log")
    try:
        yield mariadb
    finally:
        mariadb.process.kill()  # Nobody will miss its data.
        mariadb.process.wait()


def wait_for(mariadb: MariaDB, log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + PATIENCE
    while True:
        assert mariadb.process.poll() is None, log.read_text(errors="replace")
        try:
            mariadb.run("SELECT 1")
        except asyncmy.errors.OperationalError as error:
            if error.args[0] != NOBODY_LISTENS or time.monotonic() > end:
                raise AssertionError(log.read_text(errors="replace")) from error
            time.sleep(0.02)
        else:
            return


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
