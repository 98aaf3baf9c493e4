"""Updates of services as their owners have edited them, and what must hold after each."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from copier import run_copy, run_update
from owner import ANCHOR, OURS_EVERYWHERE, edit
from releases import ROOT, Release, git, listed
from rendering import commit_all
from variants import Variant

HEAD = "v99.0.0"
"""What the template as it stands is called."""

PARTS = ("copier.yml", "CHANGELOG.md", "includes", "template")
"""What Copier reads of the template's repository."""

CONFLICT = re.compile(rb"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)

Tree = dict[str, bytes]
"""Contents by path."""


@cache
def owners() -> dict[str, str]:
    """Read from docs/updating.md whose the files are, by path."""
    text = (ROOT / "docs" / "updating.md").read_text(encoding="utf-8")
    return dict(
        re.findall(r"^\| `([^`]+)` \| (the template's|shared|yours) \|$", text, re.MULTILINE)
    )


def pattern(path: str) -> re.Pattern[str]:
    """Return what a path of docs/updating.md stands for: a file, or all below a folder."""
    escaped = re.escape(path).replace("<package>", "[^/]+").replace("<name>", "(?!__init__)[^/]+")
    return re.compile(escaped + (".*" if path.endswith("/") else ""))


def owner_of(path: str) -> str:
    """Return whose a file of a service is; raise `LookupError` if nobody has said so."""
    found = {owner for each, owner in owners().items() if pattern(each).fullmatch(path)}
    if len(found) != 1:
        raise LookupError(f"docs/updating.md says of {path}: {sorted(found) or 'nothing'}")
    return found.pop()


def write_history(folder: Path, template: Path) -> Path:
    """Make a repository of the releases, tagged, and of the template as it stands, as `HEAD`."""
    folder.mkdir()
    for release in listed():
        replace(folder, lambda release=release: extract(release, folder))
        commit_all(folder, tag=release.tag)
    replace(folder, lambda: shutil.copytree(template, folder, dirs_exist_ok=True))
    commit_all(folder, tag=HEAD)
    return folder


def replace(folder: Path, write: Callable[[], object]) -> None:
    """Write the template anew: what it no longer has is gone."""
    for name in PARTS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    write()


def extract(release: Release, folder: Path) -> None:
    """Extract the template of a release."""
    archive = folder.with_suffix(".zip")  # Of a tar file 3.11.2 can filter no member.
    git(ROOT, "archive", f"--output={archive}", release.commit, *PARTS)
    shutil.unpack_archive(archive, folder)
    archive.unlink()


def tree(folder: Path) -> Tree:
    """Read all files of a service but for what its processes leave."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".git", "__pycache__"} & set(path.parts)
    }


def answers_of(folder: Path) -> dict[str, Any]:
    """Read the answers of a service."""
    answers = yaml.safe_load((folder / ".copier-answers.yml").read_text(encoding="utf-8"))
    return {name: answer for name, answer in answers.items() if not name.startswith("_")}


@cache
def words_of(release: Release) -> set[str]:
    """Read which engines, and which keys of a database, a release knows."""
    text = git(ROOT, "show", f"{release.commit}:includes/databases.jinja")
    engines, keys = re.findall(r"^{% set (?:engines|keys) = (.*) %}$", text, re.MULTILINE)
    return set(re.findall(r'"(\w+)"', engines + keys))


def cases(variants: Sequence[Variant]) -> list[tuple[Release, Variant]]:
    """List which variants can be rendered from which releases."""
    return [
        (release, variant)
        for variant in variants
        for release in listed()
        if {word for each in variant.databases for word in (*each, each["engine"])}
        <= words_of(release)
    ]


def copy(template: Path, folder: Path, answers: dict[str, Any], ref: str | None = None) -> Path:
    """Render a service."""
    data = {"project_name": "My Service"} | answers
    run_copy(str(template), folder, data, defaults=True, quiet=True, vcs_ref=ref)
    return folder


def update(folder: Path, **answers: Any) -> None:
    """Update a service to the newest version, with new answers to some questions."""
    run_update(folder, answers, defaults=True, overwrite=True, quiet=True)


@dataclass(frozen=True)
class Owned:
    """A service in its owner's repository, committed, before an update."""

    folder: Path
    before: Tree
    answers: dict[str, Any]

    def duplicate(self, folder: Path, template: Path) -> "Owned":
        """Copy it to where it will be updated from another template."""
        shutil.copytree(self.folder, folder)
        path = folder / ".copier-answers.yml"
        path.write_text(re.sub("(?<=_src_path: ).*", str(template), path.read_text()))
        commit_all(folder)
        return Owned(folder, tree(folder), self.answers)


def own(folder: Path, new_files: set[str]) -> Owned:
    """Make the owner's edits in a rendered service, and files of theirs at `new_files`."""
    commit_all(folder)
    edit(folder)
    for name in new_files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(OURS_EVERYWHERE)
    commit_all(folder)
    return Owned(folder, tree(folder), answers_of(folder))


def faults(service: Owned, fresh: Path) -> list[str]:
    """Say what is wrong after an update, given a fresh render of the new version."""
    after = tree(service.folder)
    found = [f"{name}: conflict" for name, text in after.items() if CONFLICT.search(text)]
    found += [f"{name}: rejected" for name in after if name.endswith((".rej", ".orig"))]
    found += git(service.folder, "diff", "--name-only", "--diff-filter=U").splitlines()
    answers = answers_of(service.folder)
    found += [
        f"answer {name}: {answers.get(name)!r} was {answer!r}"
        for name, answer in service.answers.items()
        if answers.get(name) != answer
    ]
    try:
        expected = expect(service, fresh, after[".copier-answers.yml"])
    except FileNotFoundError as error:
        return [*found, f"{Path(error.filename).name}: an owner of 0.1.0 had it"]
    for name in sorted(after.keys() | expected.keys()):
        if name not in expected:
            found.append(f"{name}: nobody asked for it")
        elif name not in after:
            found.append(f"{name}: lost")
        elif after[name] != expected[name]:
            found.append(f"{name}: not as expected")
    return found + heads(after)


def expect(service: Owned, fresh: Path, answers_file: bytes) -> Tree:
    """Return what the files must be: the owner's as they were, the others as a fresh render's.

    A fresh render has the owner's edits, so what they added below the anchors is in it. It has no
    answers of its own.
    """
    edited = shutil.copytree(fresh, service.folder.with_name(f"{service.folder.name}-fresh"))
    edit(edited)
    theirs = {name: text for name, text in tree(edited).items() if not is_yours(name)}
    ours = {name: text for name, text in service.before.items() if is_yours(name)}
    return theirs | ours | {".copier-answers.yml": answers_file}


def is_yours(path: str) -> bool:
    """Whether a file is its owner's: named so, or no file of the template at all."""
    try:
        return owner_of(path) == "yours"
    except LookupError:
        return True


def heads(files: Tree) -> list[str]:
    """Say which migration histories do not have exactly one head."""
    found: list[str] = []
    for database in sorted(
        {name.split("/")[1] for name in files if name.startswith("migrations/")}
    ):
        texts = [
            text.decode()
            for name, text in files.items()
            if name.startswith(f"migrations/{database}/")
        ]
        revisions = set(re.findall(r'^revision = "(\w+)"', "".join(texts), re.MULTILINE))
        downs = set(re.findall(r'^down_revision = "(\w+)"', "".join(texts), re.MULTILINE))
        if len(revisions - downs) != 1:
            found.append(f"migrations/{database}: heads {sorted(revisions - downs)}")
    return found


def below_anchors(text: str) -> str:
    """Return what stands below the last anchor of a shared file."""
    return text.rpartition(ANCHOR)[2]
