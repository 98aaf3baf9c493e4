"""The programs of the machine that the kit runs, and the packages that have them."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/usr/libexec")
"""Where packages put servers, besides the folders in PATH."""


class Package(NamedTuple):
    """The package of a program, as each package manager calls it."""

    apt: str
    """On Debian and Ubuntu."""
    brew: str = ""
    """On macOS."""
    winget: str = ""
    """On Windows, where the kit runs the program there; its folder may have to be added to PATH."""


PACKAGES: Mapping[str, Package] = {
    "mariadbd": Package("mariadb-server-core", "mariadb"),
    "mariadb-install-db": Package("mariadb-server-core", "mariadb"),
    "my_print_defaults": Package("mariadb-client-core", "mariadb"),  # mariadb-install-db runs it.
    "mariadb": Package("mariadb-client-core", "mariadb", "MariaDB.Server"),
    "mariadb-dump": Package("mariadb-client", "mariadb", "MariaDB.Server"),
    # brew does not link libpq by itself.
    "psql": Package(
        "postgresql-client", "libpq && brew link --force libpq", "PostgreSQL.PostgreSQL.18"
    ),
    "pg_dump": Package(
        "postgresql-client", "libpq && brew link --force libpq", "PostgreSQL.PostgreSQL.18"
    ),
    "sqlite3": Package("sqlite3", "sqlite", "SQLite.SQLite"),
}


def find_program(name: str, *folders: Path) -> Path | None:
    """Find a program in PATH, where packages put servers, or in other folders."""
    path = [os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS, *map(str, folders)]
    found = shutil.which(name, path=os.pathsep.join(path))
    return Path(found).absolute() if found else None


def how_to_install(*programs: str, packages: Mapping[str, Package] = PACKAGES) -> str:
    """Write the commands that install programs: `apt install sqlite3, brew install sqlite`."""
    wanted = [packages[each] for each in programs]
    commands = {
        "apt install": [each.apt for each in wanted],
        "brew install": [each.brew for each in wanted],
        "winget install": [each.winget for each in wanted],
    }
    return ", ".join(
        f"{command} {' '.join(names)}"
        for command, each in commands.items()
        if (names := dict.fromkeys(filter(None, each)))
    )
