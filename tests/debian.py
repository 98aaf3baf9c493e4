"""Programs from Debian's packages: installed when they are missing, where that is possible."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
APT = ["apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300"]


@cache
def find_program(name: str, package: str) -> Path:
    """Return the path of a program; install its package as root on Debian, else skip the test.

    In CI nothing is skipped: there a program that cannot be had fails the test.
    """
    if shutil.which(name, path=FOLDERS) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install(package)
    if found := shutil.which(name, path=FOLDERS):
        return Path(found)
    reason = f"no program {name}: install Debian's package {package}, or its like"
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
