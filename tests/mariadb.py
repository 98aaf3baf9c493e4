"""A MariaDB from Debian's packages, for the tests: with TLS, and back on its port."""

import asyncio
import datetime
import os
import signal
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncmy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dbkit.embedded import MARIADB_TEST_SETTINGS, EmbeddedMariadb
from debian import find_program
from running import free_port
from sqlalchemy import URL

HOST, USER, PASSWORD = "127.0.0.1", "tests", "p@ss/wörd"


class MariaDB(EmbeddedMariadb):
    """A server that comes back on its port, with TLS, and a user of the tests."""

    def __init__(self, directory: Path) -> None:
        find_program("mariadbd", "mariadb-server-core")
        self.certificate, key = make_certificate(directory)
        own = {
            "port": str(free_port()),
            "max-connections": "500",
            "performance-schema": "ON",
            "ssl-cert": str(self.certificate),
            "ssl-key": str(key),
        }
        super().__init__(directory / "mariadb", settings={**MARIADB_TEST_SETTINGS, **own})

    def start(self) -> Self:
        """Start, and let the tests' user in."""
        super().start()
        self.run(
            f"CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}'",
            f"GRANT ALL ON *.* TO {USER}@'%' WITH GRANT OPTION",
            url=super().url("mysql"),
        )
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

    def url(self, database: str) -> URL:
        """Return the URL of a database, as people write it."""
        return URL.create("mysql", USER, PASSWORD, HOST, self.port, database)

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
