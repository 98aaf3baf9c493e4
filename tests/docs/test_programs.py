"""Each program that we ask for is in the package that we name."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbkit.commands.embedded import MARIADB_PROGRAMS
from dbkit.commands.programs import how_to_install
from debian import PROGRAMS, find_program
from rendering import ROOT

pytestmark = pytest.mark.programs

KIT = ROOT / "template" / "src" / "{{package}}" / "dbkit"
BROUGHT = {"postgres", "mysql", "mysqld"}
"""Programs with another origin: a wheel, instead of `mariadb`, `find_mysqld()`."""


def owner(program: Path) -> str:
    """Return the installed Debian package that has a program."""
    real = program.resolve()
    paths = [real, Path("/", real.relative_to("/usr"))] if real.is_relative_to("/usr") else [real]
    for path in paths:  # Packages may still call /usr/bin /bin.
        query = ["dpkg-query", "--search", path]
        found = subprocess.run(query, check=False, capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.partition(":")[0]
    pytest.skip(f"{real} is from no package")


def installed() -> dict[str, str]:
    """Map each installed package to what it depends on, as packages say it."""
    query = ["dpkg-query", "--show", "--showformat=${Package}\t${Depends}, ${Pre-Depends}\n"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


def depends(package: str) -> set[str]:
    """Return a package, and all that it depends on of what is installed."""
    known = installed()
    wanted, seen = [package], {package}
    while wanted:
        name = wanted.pop()
        # What is not installed itself may be one that only asks for others.
        names = known.get(name) or (shown(name) if name == package else "")
        found = set(re.findall(r"(?:^|[,|]) *([a-z0-9][a-z0-9.+-]+)", names))
        wanted += found - seen
        seen |= found
    return seen


def shown(package: str) -> str:
    """Return what apt knows of the dependencies of a package."""
    command = ["apt-cache", "show", "--no-all-versions", package]
    text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return ", ".join(re.findall(r"^(?:Pre-)?Depends: (.*)", text, re.MULTILINE))


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="not Debian, so nothing to ask")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_in_the_package_that_is_named(name: str) -> None:
    program = find_program(name)

    package, has_it = PROGRAMS[name].apt, owner(program)

    # psql is a link to a wrapper, in a package that postgresql-client depends on.
    assert has_it in depends(package), f"{package} has no {name}, {has_it} has"


def test_a_package_is_not_taken_for_what_is_installed_beside_it() -> None:
    if not shutil.which("dpkg-query"):
        pytest.skip("not Debian, so nothing to ask")
    for name in MARIADB_PROGRAMS:
        find_program(name)

    assert owner(find_program("my_print_defaults")) not in depends("mariadb-server-core")


def texts() -> Iterator[Path]:
    """List all that people read, and the code that speaks to them."""
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    yield from (path for path in (ROOT / "template").rglob("*") if path.suffix in {".jinja", ".py"})


def test_documents_name_the_same_packages() -> None:
    mariadb = how_to_install(*MARIADB_PROGRAMS).replace(", ", "`, `")
    apt = {each.apt for each in PROGRAMS.values()}
    asked = 0
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for packages in re.findall(r"`apt(?:-get)? install ([a-z0-9 -]+)`", text):
            asked += 1
            assert set(packages.split()) <= apt, f"{path.name}: {packages}"
        if "mariadb-server-core" in text and KIT not in path.parents:
            assert mariadb in " ".join(text.split()), f"{path.name} does not say `{mariadb}`"
    assert asked


def test_each_program_that_is_looked_for_has_its_package() -> None:
    files = [*KIT.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    looked_for = {
        name
        for path in files
        for name in re.findall(r'(?:which|find_program)\("([a-z_-]+)"', path.read_text("utf-8"))
    }

    assert looked_for - BROUGHT - {"apt-get", "dpkg-query"} <= PROGRAMS.keys()
