"""Many services at once: which version of the template each has, and updates of all.

    python fleet.py report services.txt
    python fleet.py update services.txt --test "uv run pytest" --request "gh pr create --fill"

`services.txt` has one Git URL or path per line. It needs Git, Copier and uv, and nothing of this
repository: copy it to where you want it. Clones are made in `fleet/`, anew each time.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ANSWERS = ".copier-answers.yml"
ENVIRONMENT = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # Nobody is there to answer.


@dataclass(frozen=True)
class Outcome:
    """What became of a service; `fine` unless somebody has to look."""

    name: str
    text: str
    fine: bool = True


class Stopped(Exception):
    """A step failed; the text says which, and with what."""


def run(folder: Path, *command: str, step: str = "") -> str:
    """Run a command and return what it prints; raise `Stopped` with its last line."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=ENVIRONMENT, check=False, capture_output=True, text=True
        )
    except OSError as error:
        raise Stopped(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise Stopped(f"{step or ' '.join(command[:2])}: {lines[-1]}")
    return done.stdout


def name_of(url: str) -> str:
    """Return what a service is called: the last part of its URL."""
    return re.split(r"[/\\:]", url.rstrip("/").removesuffix(".git"))[-1]


def clone(url: str, work: Path) -> Path:
    """Clone a service anew."""
    folder = work / name_of(url)
    if folder.exists():
        shutil.rmtree(folder)
    origin = str(Path(url).resolve()) if Path(url).exists() else url
    run(work, "git", "clone", "--quiet", origin, folder.name)
    if not (folder / ANSWERS).exists():
        raise Stopped(f"no {ANSWERS}: not made from a template")
    return folder


def version(folder: Path) -> str:
    """Return the version of the template that a service has, e.g. "v0.1.0"."""
    found = re.search(r"^_commit: (\S+)", (folder / ANSWERS).read_text(), re.MULTILINE)
    return found[1] if found else "of no commit"


def report(url: str, work: Path, _: argparse.Namespace) -> Outcome:
    """Say which version a service has, and whether there is a newer one."""
    folder = clone(url, work)
    newest = run(folder, "copier", "check-update", "--output-format", "json")
    found = re.search(r'"latest_version": "([^"]+)"', newest)
    behind = '"update_available": true' in newest
    has = version(folder).removeprefix("v")
    return Outcome(folder.name, f"{has}, behind {found[1]}" if found and behind else has)


def update(url: str, work: Path, options: argparse.Namespace) -> Outcome:
    """Update a service on a branch of its own, test it, commit it and ask for its merge."""
    folder = clone(url, work)
    before = version(folder)
    ref = ["--vcs-ref", options.version] if options.version else []
    run(folder, "copier", "update", "--defaults", *ref, step="copier update")
    if not run(folder, "git", "status", "--porcelain"):
        return Outcome(folder.name, f"{before}, nothing to update")
    step = f"{before} to {version(folder)}"
    if conflicts := run(folder, "git", "diff", "--name-only", "--diff-filter=U").split():
        return Outcome(folder.name, f"{step}, conflicts: {', '.join(conflicts)}", fine=False)
    branch = f"template-{version(folder)}"
    if run(folder, "git", "branch", "--remotes", "--list", f"origin/{branch}"):
        return Outcome(folder.name, f"{step}, and there is a branch {branch} already")
    run(folder, "uv", "lock")
    run(folder, "git", "switch", "--quiet", "--create", branch)
    run(folder, "git", "add", "--all")
    message = f"build: update to {version(folder)} of the template"
    run(folder, "git", "commit", "--quiet", "--message", message)
    for command in options.test:
        run(folder, *shlex.split(command), step=f"{step}, {command}")
    if options.request:
        run(folder, "git", "push", "--quiet", "origin", "HEAD")
        run(folder, *shlex.split(options.request), step=f"{step}, {options.request}")
    files = run(folder, "git", "diff", "--name-only", "HEAD~").split()
    return Outcome(folder.name, f"{step}, {len(files)} files")


def main(arguments: list[str]) -> int:
    """Run a command on all services; return 1 if somebody has to look at one."""
    parser = argparse.ArgumentParser(description="Report on, or update, many services.")
    parser.add_argument("command", choices=["report", "update"])
    parser.add_argument("services", type=Path, help="a file with a Git URL or path on each line")
    parser.add_argument("--work", type=Path, default=Path("fleet"), help="where clones are made")
    parser.add_argument("--jobs", type=int, default=4, help="services at once")
    parser.add_argument("--version", help="a release, e.g. v0.2.0; the newest unless given")
    parser.add_argument("--test", action="append", default=[], help="a command that must pass")
    parser.add_argument("--request", help="push the branch, and run this to ask for its merge")
    options = parser.parse_args(arguments)
    options.work.mkdir(exist_ok=True)
    act = {"report": report, "update": update}[options.command]

    def attempt(url: str) -> Outcome:
        try:
            return act(url, options.work, options)
        except Stopped as stopped:
            return Outcome(url, str(stopped), fine=False)

    urls = [line.strip() for line in options.services.read_text().splitlines() if line.strip()]
    names = [name_of(url) for url in urls]
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"more than one is called {', '.join(sorted(twice))}: list them apart")
    with ThreadPoolExecutor(options.jobs) as threads:
        outcomes = list(threads.map(attempt, urls))
    for outcome in outcomes:
        print(f"{'' if outcome.fine else 'LOOK: '}{outcome.name}: {outcome.text}")
    print(f"{sum(each.fine for each in outcomes)} of {len(outcomes)} are fine.")
    return int(not all(outcome.fine for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
