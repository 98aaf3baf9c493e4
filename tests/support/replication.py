"""A PostgreSQL primary and the replicas that follow it, from the wheel's binaries."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dbkit.commands.embedded import TEST_SETTINGS, EmbeddedPostgres, find_binaries
from running import free_port
from sqlalchemy import URL


class Server(EmbeddedPostgres):
    """A server that comes back on its port."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        # A commit is sent to replicas once it is written, and not when there is time.
        own = {"port": str(free_port()), "synchronous_commit": "on"}
        super().__init__(directory, settings={**TEST_SETTINGS, **own, **(settings or {})})

    @property
    def process(self) -> int:
        """The id of the server's first process."""
        return int((self.directory / "data" / "postmaster.pid").read_text().split()[0])

    def freeze(self) -> None:
        """Stop every process of the server where it is; its sockets stay open."""
        for process in self.processes():
            os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        for process in self.processes():
            os.kill(process, signal.SIGCONT)

    def processes(self) -> list[int]:
        """List the server's processes, its first one first."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text()
        return [self.process, *map(int, children.split())]

    def restart(self, mode: signal.Signals) -> None:
        """Stop as `mode` says (SIGINT is fast, SIGQUIT is immediate), and start again."""
        os.kill(self.process, mode)
        self.stop()
        self.start()

    def follow(self, primary: "Server") -> None:
        """Become a replica of another, at the next start."""
        data = self.directory / "data"
        data.joinpath("standby.signal").touch()
        with data.joinpath("postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{conninfo(primary)}'\n")
        give(data)

    def make_replica(self, directory: Path) -> "Server":
        """Make a replica by a base backup of this server; it is not started."""
        replica = Server(directory)
        directory.mkdir(mode=0o700)
        backup = [
            find_binaries() / "pg_basebackup",
            *("--pgdata", directory / "data", "--checkpoint", "fast", "--no-sync"),
            *("--dbname", conninfo(self)),
        ]
        subprocess.run(backup, check=True, capture_output=True)
        shutil.copy(self.directory / "password", directory)
        replica.follow(self)
        give(directory)
        return replica


def conninfo(server: Server) -> str:
    """Write where a server is, as libpq takes it."""
    url: URL = server.url("postgres")
    return f"host=127.0.0.1 port={server.port} user={url.username} password={url.password}"


def give(folder: Path) -> None:
    """Give what root has made to the user that PostgreSQL runs as."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
