"""The process between a service and its embedded server, so that none outlives the other.

`embedded.py` runs this file as a script, by the standard library alone (35 ms, not 500):

    python -I -S embedded_guard.py postgres|mariadb <binaries> <directory> [name=value ...]

It makes the data directory if there is none, starts the server and answers with one line:
`ready <port>`, `busy` when another guard has the directory, or else the reason it failed. It stops
the server once its standard input ends or says so.

A pipe ends with the process that holds it, by whatever cause, on every platform and whichever
thread began it. Linux's PR_SET_PDEATHSIG alone would not do: it fires when the starting *thread*
ends, and macOS and Windows have nothing like it. Here it only covers the guard's own death.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import pwd

SCRAM_ITERATIONS = 16
"""The first version of PostgreSQL whose SCRAM iterations can be set."""
READY_TIMEOUT = 60.0
"""Seconds to wait for the server; crash recovery is the slow part."""
STOP_TIMEOUT = 10.0
"""Seconds to wait for the end of a server that is told to stop, then that it must."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def leave_root(directory: Path) -> None:
    """Become the directory's owner, or `nobody`: the servers refuse to run as root."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    owner = directory.stat()
    uid, gid = owner.st_uid, owner.st_gid
    if uid == 0:
        user = pwd.getpwnam("nobody")
        uid, gid = user.pw_uid, user.pw_gid
        os.chown(directory, uid, gid)
    if _libc:
        # PR_SET_SECUREBITS, NO_SETUID_FIXUP: setuid() keeps our capabilities, and so does
        # access(), by which initdb looks for its programs (KEEPCAPS would do the first alone).
        _libc.prctl(28, _libc.prctl(27) | 1 << 2)
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        sys.exit(f"the server refuses root, and root may not become user {uid} here: {error}")
    if _libc:
        # The project may be below /root, which only root can enter. Rather than open it to all,
        # keep one right, CAP_DAC_OVERRIDE, for the programs that we start too ("ambient"). Where
        # that is refused (gVisor, --cap-drop) we are an ordinary user, which suffices elsewhere.
        override = 1 << 1
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        _libc.capset(header, (ctypes.c_uint32 * 6)(override, override, override))
        if _libc.prctl(47, *map(ctypes.c_ulong, (2, 1, 0, 0))):  # PR_CAP_AMBIENT, ..._RAISE
            _libc.capset(header, (ctypes.c_uint32 * 6)())


def lock(directory: Path) -> int | None:
    """Return a descriptor that has the directory, or None when another has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return None
    return descriptor


class Guard(ABC):
    """One server in one directory, from the lock until the server's end."""

    stops = signal.SIGTERM
    """Has the server cut off its clients, roll back their transactions, and end."""
    ends = signal.SIGTERM
    """Has it end at once."""

    def __init__(self, binaries: Path, directory: Path, settings: list[str], lock: int) -> None:
        self.binaries, self.directory, self.settings = binaries, directory, settings
        self.data, self.log = directory / "data", directory / "log"
        self.password, self.port = directory / "password", directory / "port"
        # The server inherits the lock: as long as anything of it runs, nobody else begins.
        self.inherited = () if sys.platform == "win32" else (lock,)
        self.users = os.open(directory / "users", os.O_RDWR | os.O_CREAT, 0o600)
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def install(self, data: Path) -> "subprocess.Popen[bytes]":
        """Start to make a data directory."""

    @abstractmethod
    def serve(self, port: int) -> "subprocess.Popen[bytes]":
        """Start the server, on this port unless its settings name another."""

    @abstractmethod
    def ready_at(self) -> int | None:
        """Return the server's port, once it accepts connections."""

    def check(self) -> None:  # noqa: B027 -- not every server says it better than its own log
        """Refuse data that this server cannot read."""

    def spawn(self, program: str, *arguments: str | Path) -> "subprocess.Popen[bytes]":
        """Start one of the server's programs, with a fresh log."""
        guard, stops = os.getpid(), int(self.stops)

        def end_with_guard() -> None:
            if _libc:
                _libc.prctl(1, stops)  # PR_SET_PDEATHSIG
                if os.getppid() != guard:
                    os._exit(1)

        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 -- our own arguments
                [self.binaries / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                pass_fds=self.inherited,
                preexec_fn=end_with_guard if _libc else None,  # noqa: PLW1509 -- no thread yet
            )
        return self.process

    def failed(self, what: str) -> SystemExit:
        """Return the exit that gives the log's end as the reason."""
        return SystemExit(f"{what}:\n{self.log.read_text(errors='replace')[-2000:]}")

    def initialise(self) -> None:
        """Make the data directory, whole or not at all."""
        self.port.unlink(missing_ok=True)  # What is left here is stale, for we have the lock.
        if self.data.exists():
            self.check()
            return
        unfinished = self.directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self.password.write_text(os.urandom(16).hex())
        if self.install(unfinished).wait():
            raise self.failed("the data directory could not be made")
        unfinished.rename(self.data)

    def start(self) -> int:
        """Start the server and return its port, once it accepts connections."""
        end = time.monotonic() + READY_TIMEOUT
        for _ in range(5):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            server = self.serve(port)
            while server.poll() is None and time.monotonic() < end:
                if ready_at := self.ready_at():
                    self.port.write_text(str(ready_at))
                    return ready_at
                time.sleep(0.005)
            # Between our look and the server's, another process may have taken the port.
            if b"ddress already in use" not in self.log.read_bytes():
                break
        raise self.failed("the server did not start")

    def stop(self) -> None:
        """Stop what runs."""
        if (process := self.process) is None:
            return
        for number in (self.stops, self.ends):
            if sys.platform != "win32":
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
                return
        process.kill()
        process.wait()

    def stop_when_unused(self) -> None:
        """Wait for the owner's end, and for that of each process which attached itself."""
        os.read(0, 1)
        if sys.platform != "win32":
            try:
                fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with contextlib.suppress(OSError):
                    print("kept", flush=True)
                fcntl.flock(self.users, fcntl.LOCK_EX)
        self.stop()


class PostgresGuard(Guard):
    """A PostgreSQL."""

    stops = signal.SIGINT
    ends = getattr(signal, "SIGQUIT", signal.SIGTERM)

    def version(self) -> str:
        """Ask for the version, as in `18.4`."""
        said = subprocess.check_output([self.binaries / "postgres", "--version"], text=True)  # noqa: S603 -- ours
        return said.split()[2]

    def check(self) -> None:
        """Refuse data of another major version."""
        major, ours = (self.data / "PG_VERSION").read_text().strip(), self.version()
        if not ours.startswith(major):
            sys.exit(
                f"{self.data} was made by PostgreSQL {major}, and this is {ours}.\n"
                f"To begin with empty databases, delete {self.directory}. To keep them, set "
                f"EMBEDDED_POSTGRES_BIN to a bin directory of PostgreSQL {major}, dump them "
                f"with its pg_dumpall, and load the dump into the new server."
            )

    def install(self, data: Path) -> "subprocess.Popen[bytes]":
        """Run initdb."""
        locale = "C" if sys.platform == "win32" else "C.UTF-8"
        # A password of 128 random bits needs no slow hash: a third off the time of each connect.
        major = int(re.split(r"\D", self.version())[0])
        quick = ["-c", "scram_iterations=1"] if major >= SCRAM_ITERATIONS else []
        return self.spawn(
            "initdb", "--no-sync", "--no-instructions", f"--locale={locale}", "--encoding=UTF8",
            "--username=postgres", "--auth=scram-sha-256", f"--pwfile={self.password}", *quick,
            "-D", data,
        )  # fmt: skip

    def serve(self, port: int) -> "subprocess.Popen[bytes]":
        """Run postgres."""
        # Stale, as the port is; its process id may be reused.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        return self.spawn(
            "postgres", "-D", self.data, "-h", "127.0.0.1", "-p", str(port), "-k", "",
            *(part for setting in self.settings for part in ("-c", setting)),
        )  # fmt: skip

    def ready_at(self) -> int | None:
        """Read it from the file of the server's process id."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            if lines[7].strip() == "ready":
                return int(lines[3])
        return None

    def stop(self) -> None:
        """Stop what runs, also where there are no signals."""
        if self.process and sys.platform == "win32":
            stop = [self.binaries / "pg_ctl", "stop", "--mode=fast", "-D", self.data]
            subprocess.run(stop, check=False, capture_output=True)  # noqa: S603 -- our own arguments
        super().stop()


class MariadbGuard(Guard):
    """A MariaDB."""

    def install(self, data: Path) -> "subprocess.Popen[bytes]":
        """Run mariadb-install-db, which packages put beside the server or into bin."""
        places = (self.binaries, self.binaries.parent / "bin", os.environ.get("PATH", os.defpath))
        folders = os.pathsep.join(map(str, places))
        program = shutil.which("mariadb-install-db", path=folders)
        if program is None:
            sys.exit(f"no program mariadb-install-db in {folders}")
        return self.spawn(
            program, "--no-defaults", f"--datadir={data}", "--skip-test-db",
            "--skip-name-resolve", *self.options(),
        )  # fmt: skip

    def serve(self, port: int) -> "subprocess.Popen[bytes]":
        """Run mariadbd, without a Unix socket; root may come by TCP, with the password."""
        user = "root@'127.0.0.1'"
        grants = self.directory / "grants.sql"
        grants.write_text(
            f"CREATE OR REPLACE USER {user} IDENTIFIED BY '{self.password.read_text()}';\n"
            f"GRANT ALL ON *.* TO {user} WITH GRANT OPTION;\n"
        )
        return self.spawn(
            "mariadbd", "--no-defaults", f"--datadir={self.data}", f"--init-file={grants}",
            "--bind-address=127.0.0.1", f"--port={port}", "--socket=", "--pid-file=server.pid",
            "--skip-name-resolve", *self.options(),
        )  # fmt: skip

    def options(self) -> list[str]:
        """Write the settings as arguments."""
        ours = ("innodb-log-file-size=8M", "character-set-server=utf8mb4")
        return [f"--{setting}" for setting in (*ours, *self.settings)]

    def ready_at(self) -> int | None:
        """Read it from the log."""
        log = self.log.read_text(errors="replace")
        ready = re.search(r"ready for connections\.\s.* port: (\d+)", log)
        return int(ready[1]) if ready else None


GUARDS: dict[str, type[Guard]] = {"postgres": PostgresGuard, "mariadb": MariadbGuard}


def main() -> None:
    """Guard one server from its start to its end."""
    binaries, directory = map(Path, sys.argv[2:4])
    os.umask(0o077)
    if sys.platform != "win32" and directory.stat().st_mode & 0o077:
        sys.exit(f"{directory} is open to other users: chmod it to 700, or delete it")
    leave_root(directory)
    for path in (directory, binaries):
        if not os.access(path, os.X_OK):
            sys.exit(
                f"{path} cannot be entered by user {os.geteuid()}, as whom the server would run, "
                "for it refuses root: give it to that user, move it, or allow CAP_DAC_OVERRIDE"
            )
    if (descriptor := lock(directory)) is None:
        print("busy")
        return
    guard = GUARDS[sys.argv[1]](binaries, directory, sys.argv[4:], descriptor)
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            guard.initialise()
            port = guard.start()
            threading.Thread(target=guard.stop_when_unused, daemon=True).start()
            print(f"ready {port}", flush=True)
            if guard.process:
                guard.process.wait()
        finally:
            guard.stop()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))
