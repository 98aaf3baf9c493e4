"""Whether the template that made the service has a newer release."""

import os
import re
import subprocess
from pathlib import Path

ANSWERS = ".copier-answers.yml"

LONGEST_WAIT = 5.0
"""Seconds to wait for the template's repository."""

SHORT = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
"""Copier's short forms of addresses."""


def recorded(answer: str, root: Path) -> str:
    """Return an answer that Copier recorded; an empty text without one, as in an image."""
    answers = root / ANSWERS
    text = answers.read_text(encoding="utf-8") if answers.is_file() else ""
    found = re.search(rf"^{answer}: *(\S.*)$", text, re.MULTILINE)
    return found[1].strip("'\" ") if found else ""


def describe(root: Path) -> str | None:
    """Say which release of the template a service has, and which is the newest.

    Nothing where that is unknown or of no use: without Copier's answers, as in an image, and in CI.
    """
    release = re.match(r"v?(\d+(?:\.\d+)+)", recorded("_commit", root))
    source = recorded("_src_path", root)
    if "CI" in os.environ or not release or not source:
        return None
    has = release[1]
    newest = max(releases(source, root), key=number, default=None)
    if newest is None:
        return f"template {has}; its newest release is unknown: the template cannot be reached"
    if number(newest) <= number(has):
        return f"template {has}, the newest release"
    return f"template {has}; {newest} is out: copier update --defaults"


def releases(address: str, root: Path) -> list[str]:
    """List the releases that a repository has tags for; none if it cannot be reached."""
    for short, full in SHORT.items():
        if address.startswith(short):
            address = full + address.removeprefix(short).lstrip("/")
    command = ["git", "ls-remote", "--tags", "--refs", "--", address.removeprefix("git+")]
    silent = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}
    try:
        done = subprocess.run(  # noqa: S603 -- where the answers say that the template is
            command, cwd=root, env=silent, timeout=LONGEST_WAIT, capture_output=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"refs/tags/v?(\d+(?:\.\d+)+)$", done.stdout.decode(), re.MULTILINE)


def number(version: str) -> tuple[int, ...]:
    """Return a version as numbers, to sort by."""
    return tuple(int(part) for part in version.split("."))
