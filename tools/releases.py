"""The releases of the template, as `releases.toml` lists them.

`python tools/releases.py make 0.2.0` makes one: a commit that names it in CHANGELOG.md and holds
its public surface, and one that lists the first. `list` prints all, `notes 0.2.0` what CHANGELOG.md
says of one.
"""

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Release:
    """A version, e.g. "0.1.0", and its commit."""

    version: str
    commit: str

    @property
    def tag(self) -> str:
        """What Copier and Git call it."""
        return f"v{self.version}"

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers, to sort by."""
        return tuple(int(part) for part in self.version.split("."))


def listed(root: Path = ROOT) -> list[Release]:
    """Read the list, oldest first."""
    text = (root / "releases.toml").read_text(encoding="utf-8")
    return [Release(**each) for each in tomllib.loads(text)["release"]]


def named(changelog: str) -> list[str]:
    """Return the versions that a changelog has headings for, newest first."""
    return re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)


def notes(changelog: str, version: str) -> str:
    """Return what a changelog says of a version, or of "Unreleased"."""
    found = re.search(
        rf"^## {re.escape(version)}\b.*\n((?:(?!## ).*\n?)*)", changelog, re.MULTILINE
    )
    return found[1].strip() if found else ""


def make(version: str, root: Path = ROOT) -> None:
    """Commit a release, and list it in a second commit, which knows the first one's hash."""
    if git(root, "status", "--porcelain"):
        sys.exit("there are changes that are not committed")
    release = Release(version, "")
    path = root / "CHANGELOG.md"
    changelog = path.read_text(encoding="utf-8")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or release.number <= listed(root)[-1].number:
        sys.exit(f"{version} does not come after {listed(root)[-1].version}")
    if not notes(changelog, "Unreleased"):
        sys.exit("CHANGELOG.md says nothing under Unreleased")
    today = datetime.now(UTC).date()
    headings = f"## Unreleased\n\n## {version}, {today}\n"
    path.write_text(re.sub(r"^## Unreleased.*\n", headings, changelog, count=1, flags=re.MULTILINE))
    command = [sys.executable, ROOT / "tools" / "surface.py"]
    surface = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    (root / "tests" / "surface" / f"{version}.txt").write_text(surface, encoding="utf-8")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", f"chore(release): {version}")
    commit = git(root, "rev-parse", "HEAD").strip()
    with (root / "releases.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[[release]]\nversion = "{version}"\ncommit = "{commit}"\n')
    git(root, "commit", "--quiet", "--all", "--message", f"chore(release): list {version}")


def git(folder: Path, *arguments: str) -> str:
    """Run a git command in a folder and return what it prints."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> None:
    """Run a command."""
    match arguments:
        case ["make", version]:
            make(version)
        case ["list"]:
            sys.stdout.writelines(f"{each.version} {each.commit}\n" for each in listed())
        case ["notes", version]:
            sys.stdout.write(notes((ROOT / "CHANGELOG.md").read_text(), version) + "\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
