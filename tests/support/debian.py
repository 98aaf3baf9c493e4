"""Programs of the machine: installed when they are missing, where that is possible."""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import pytest
from dbkit.commands.programs import PACKAGES, Package, how_to_install
from rendering import ROOT

FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
APT = [
    *("apt-get", "--quiet", "--yes", "--option=DPkg::Lock::Timeout=300"),
    "--option=DPkg::Options::=--force-unsafe-io",  # Nobody minds if a crash loses the package.
]

PROGRAMS = {
    **PACKAGES,
    "chromium": Package("chromium", "chromium"),
    "pg_ctlcluster": Package("postgresql"),  # To PostgreSQL's own name on Debian.
    "pgbouncer": Package("pgbouncer", "pgbouncer"),
    "systemd-analyze": Package("systemd"),
}
"""Each program that a test runs and no wheel brings, and its package."""


@cache
def find_program(name: str) -> Path:
    """Return the path of a program; install its package as root on Debian, else skip the test.

    In CI nothing is skipped: there a program that cannot be had fails the test.
    """
    said = ""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with alone():  # What another worker installs is there before it works.
            if shutil.which(name, path=FOLDERS) is None:
                said = install(PROGRAMS[name].apt)
    if found := shutil.which(name, path=FOLDERS):
        return Path(found)
    reason = f"no program {name}: {how_to_install(name, packages=PROGRAMS)}{said}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def install(package: str) -> str:
    """Install a package, and start no service of it; return what apt said if it cannot."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install_ = [*APT, "install", "--no-install-recommends", package]
    said = ""
    for step in (install_, [*APT, "update"], install_):  # The lists may be absent, or too old.
        done = subprocess.run(step, env=environment, check=False, capture_output=True)
        if step is install_ and done.returncode == 0:
            return ""
        said = done.stderr.decode(errors="replace").strip()
    return f"; apt-get: {said.splitlines()[-1]}" if said else ""


@contextmanager
def alone() -> Generator[None]:
    """Do what takes as long as it takes, in one worker at a time: the test's timeout waits.

    An apt-get that is killed leaves packages half installed, and all later ones are refused.
    """
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # By this pytest-timeout counts.
    try:
        with (Path(gettempdir()) / "fastapi-pools-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


@cache
def find_postgresql() -> Path:
    """Return the folder of the programs of Debian's PostgreSQL, which has its extensions."""
    folders = Path("/usr/lib/postgresql")
    if not any(folders.glob("*/bin/postgres")) and os.geteuid() == 0 and shutil.which("apt-get"):
        install("postgresql")
    if found := sorted(folders.glob("*/bin/postgres")):
        return found[-1].parent
    reason = "no PostgreSQL with its extensions: install Debian's package postgresql"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@cache
def find_mysqld() -> list[str]:
    """Return the command of MySQL's server: one that is there, else that of Debian's unstable.

    No other Debian has one. It is unpacked, with the libraries of its own, and not installed.
    """
    found = shutil.which("mysqld", path=FOLDERS)
    if found and "mariadb" not in Path(found).resolve().name:
        return [found, "--no-defaults"]
    folder = ROOT / ".cache" / "mysql"
    try:
        with alone():
            if not folder.exists():
                unpack("mysql-server-core", folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no MySQL: Debian's package mysql-server-core cannot be had")
    loader = next(folder.glob("usr/lib/*/ld-linux-*"))
    command = [loader, "--library-path", loader.parent, folder / "usr/sbin/mysqld"]
    return [*map(str, command), "--no-defaults", f"--basedir={folder / 'usr'}"]


def unpack(package: str, folder: Path) -> None:
    """Unpack a package of Debian's unstable release, and all that it needs, in a folder."""
    targets = ["Created-By: Packages", "Origin: Debian", "Component: main"]
    mirror = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *targets]
    uri = subprocess.run(mirror, check=True, capture_output=True, text=True).stdout.split()[:1]
    folder.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (scratch / "sources").write_text(f"deb [signed-by={key}] {' '.join(uri)} sid main\n")
        options = {
            "Dir::Etc::SourceList": scratch / "sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": scratch,
            "Dir::State::Status": "/dev/null",  # As if nothing was installed.
            "Dir::Cache": scratch,
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
        }
        apt = [*APT, *(f"--option={option}={value}" for option, value in options.items())]
        for step in (["update"], ["install", "--download-only", package]):
            subprocess.run([*apt, *step], check=True, capture_output=True)
        for each in scratch.glob("archives/*.deb"):
            subprocess.run(["dpkg", "--extract", each, scratch / "root"], check=True)
        (scratch / "root").rename(folder)
