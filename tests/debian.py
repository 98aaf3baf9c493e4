"""Programs of the machine: installed when they are missing, where that is possible."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dbkit.programs import PACKAGES, Package, how_to_install
from rendering import ROOT

FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
APT = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300"]

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
    if shutil.which(name, path=FOLDERS) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install(PROGRAMS[name].apt)
    if found := shutil.which(name, path=FOLDERS):
        return Path(found)
    reason = f"no program {name}: {how_to_install(name, packages=PROGRAMS)}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def install(package: str) -> None:
    """Install a package, and start no service of it."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install_ = [*APT, "install", "--no-install-recommends", package]
    for step in (install_, [*APT, "update"], install_):  # The lists may be absent, or too old.
        done = subprocess.run(step, env=environment, check=False, capture_output=True)
        if step is install_ and done.returncode == 0:
            return


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
        if not folder.exists():
            unpack("mysql-server-core", folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no MySQL: its server is in no package that could be had")
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
