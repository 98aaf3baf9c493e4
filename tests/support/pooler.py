"""A PgBouncer in transaction mode, before a server."""

import os
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from debian import find_program
from running import free_port
from sqlalchemy import URL


def find_pgbouncer() -> Path:
    """Find PgBouncer: the one that `PGBOUNCER` names, else Debian's."""
    named = os.environ.get("PGBOUNCER")
    return Path(named) if named else find_program("pgbouncer")


@contextmanager
def pgbouncer(
    server: URL,
    *,
    pool_size: int = 2,
    port: int | None = None,
    files: dict[str, bytes] | None = None,
    **settings: str,
) -> Generator[URL]:
    """Run a PgBouncer of `pool_size` connections to each database; yield the server's URL by it.

    On a free port unless one is given. Its settings may name the `files`, whose contents are given.
    """
    port = port or free_port()
    ini = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": pool_size,
        "max_client_conn": 500,
        **settings,
    }
    text = (
        f"[databases]\n* = host={server.host} port={server.port}"
        f" user={server.username} password={server.password}\n[pgbouncer]\n"
        + "".join(f"{key} = {value}\n" for key, value in ini.items())
    )
    with running_pgbouncer(text, port, files or {}):
        yield server.set(host="127.0.0.1", port=port)


@contextmanager
def running_pgbouncer(
    ini: str, port: int, files: dict[str, bytes]
) -> Generator[subprocess.Popen[bytes]]:
    """Run a PgBouncer with these settings, which have it listen on `port`."""
    with TemporaryDirectory() as name:
        folder, log = Path(name), Path(name, "log")
        for each, content in (files | {"ini": ini.encode()}).items():
            (folder / each).write_bytes(content)
        folder.chmod(0o755)  # For a user who may read it; it holds no more than a test's password.
        command = [str(find_pgbouncer()), "-q", str(folder / "ini")]
        if os.geteuid() == 0:  # It refuses to run as root.
            command[1:1] = ["-u", "nobody"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while not listens(port):
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Whether something accepts connections on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
