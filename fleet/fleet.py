"""Many services at once: which version of the template each has, and updates of all.

    python fleet.py report services.txt
    python fleet.py update services.txt --test "uv run pytest" --request "gh pr create --fill"

`services.txt` has one Git URL or path per line; lines that begin with `#` are comments. The script
needs Git, Copier and uv, and nothing of this repository: copy it to where you want it. Clones are
made in `fleet/`, anew each time.
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
ANCHOR = "# The template writes above this line, you below."
ENVIRONMENT = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # Nobody is there to answer.

# Settings of Git with which Copier 9.19 merges wrongly, or not at all, and what they must be. Each
# is needed: without status.showUntrackedFiles, for example, a conflict stays in a .rej file.
SETTINGS = {
    "apply.whitespace": "nowarn",
    "core.attributesFile": os.devnull,
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.excludesFile": os.devnull,
    "core.hooksPath": os.devnull,
    "core.quotePath": "true",
    "core.safecrlf": "false",
    "init.templateDir": "",
    "status.showUntrackedFiles": "normal",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a service; `fine` unless somebody has to look."""

    name: str
    text: str
    fine: bool = True


class Stopped(Exception):
    """A step failed; the text says which, and with what."""


def plain_git() -> dict[str, str]:
    """Return the environment in which Git follows `SETTINGS`, whatever its user has set."""
    count = int(ENVIRONMENT.get("GIT_CONFIG_COUNT", 0))
    settings = {"GIT_CONFIG_COUNT": str(count + len(SETTINGS))}
    for number, (key, value) in enumerate(SETTINGS.items(), count):
        settings |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return ENVIRONMENT | settings


def run(folder: Path, *command: str, step: str = "", own_git: bool = False) -> str:
    """Run a command and return what it prints; raise `Stopped` with what it said last.

    Git follows `SETTINGS`, but with `own_git` only its user's settings, hooks and signatures.
    """
    environment = ENVIRONMENT if own_git else plain_git()
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
    except OSError as error:
        raise Stopped(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Stopped(f"{step or ' '.join(command[:2])}: {reason_in(done.stdout, done.stderr)}")
    return done.stdout


def reason_in(stdout: str, stderr: str) -> str:
    """Return why a command failed: what a remote says, else the last line."""
    lines = (stdout + "\n" + stderr).strip().splitlines() or ["it says nothing"]
    remote = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    return "; ".join(line for line in remote if line) or lines[-1]


def name_of(url: str) -> str:
    """Return what a service is called: the last part of its URL."""
    return re.split(r"[/\\:]", url.rstrip("/").removesuffix(".git"))[-1]


def clone(url: str, work: Path) -> Path:
    """Clone a service anew."""
    folder = work / name_of(url)
    if folder.exists():
        shutil.rmtree(folder)
    origin = str(Path(url).resolve()) if Path(url).exists() else url
    run(work, "git", "clone", "--quiet", "--", origin, folder.name, step=f"git clone {url}")
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
    if found := conflicts(folder):
        return Outcome(folder.name, f"{step}, conflicts: {', '.join(found)}", fine=False)
    if found := [*lost(folder), *dropped(folder, before)]:
        return Outcome(folder.name, f"{step}, lost: {', '.join(found)}", fine=False)
    branch = f"template-{version(folder)}"
    if run(folder, "git", "branch", "--remotes", "--list", f"origin/{branch}"):
        return Outcome(folder.name, f"{step}, and there is a branch {branch} already")
    run(folder, "uv", "lock")
    run(folder, "git", "switch", "--quiet", "--create", branch)
    run(folder, "git", "add", "--all")
    message = f"build: update to {version(folder)} of the template"
    run(folder, "git", "commit", "--quiet", "--message", message, own_git=True)
    for command in options.test:
        run(folder, *shlex.split(command), step=f"{step}, {command}", own_git=True)
    if options.request:
        ask(folder, branch, step, options.request)
    files = run(folder, "git", "diff", "--name-only", "HEAD~").splitlines()
    return Outcome(folder.name, f"{step}, {len(files)} files")


def conflicts(folder: Path) -> list[str]:
    """List the files that Copier could not merge."""
    unmerged = run(folder, "git", "diff", "--name-only", "--diff-filter=U").splitlines()
    return unmerged + run(folder, "git", "ls-files", "--others", "--", "*.rej").splitlines()


def lost(folder: Path) -> list[str]:
    """List the owner's lines below the anchors of shared files that an update has lost."""
    found: list[str] = []
    for name in (".env.example", ".gitignore", "pyproject.toml"):
        before = run(folder, "git", "ls-tree", "--name-only", "HEAD", name)
        if before and (folder / name).exists():
            text = run(folder, "git", "show", f"HEAD:./{name}")
            has = (folder / name).read_text(encoding="utf-8").splitlines()
            found += [f"{name}: {line.strip()}" for line in below(text) if line not in has]
    return found


def dropped(folder: Path, before: str) -> list[str]:
    """List the template's files that the owner had changed and an update took, with no conflict.

    They were deleted or moved, or Git calls them binary.
    """
    changes = run(folder, "git", "diff", "--no-renames", "--numstat", "HEAD").splitlines()
    taken = [
        name
        for added, _, name in (line.split("\t") for line in changes)
        if added == "-" or not (folder / name).exists()
    ]
    if not taken:
        return []
    plain = folder.with_name(f"{folder.name}.plain").resolve()
    run(folder, "git", "worktree", "add", "--quiet", "--detach", "--force", str(plain))
    try:
        options = ["--defaults", "--overwrite", "--quiet", "--vcs-ref", before]
        run(plain, "copier", "recopy", *options, step="copier recopy")
        changed = run(plain, "git", "diff", "--name-only").splitlines()
    finally:
        run(folder, "git", "worktree", "remove", "--force", str(plain))
    return [
        f"{name}, changed and {'overwritten' if (folder / name).exists() else 'deleted'}"
        for name in taken
        if name in changed
    ]


def below(text: str) -> list[str]:
    """Return the lines below the anchors of a file, up to the end of a list."""
    found: list[str] = []
    for part in text.split(ANCHOR)[1:]:
        for line in part.splitlines():
            if line.startswith("]"):
                break
            found.append(line)
    return found


def ask(folder: Path, branch: str, step: str, command: str) -> None:
    """Push a branch and ask for its merge; without its request, the branch does not stay."""
    run(folder, "git", "push", "--quiet", "origin", "HEAD", own_git=True)
    try:
        run(folder, *shlex.split(command), step=f"{step}, {command}", own_git=True)
    except BaseException:
        # It would keep the next run from asking.
        run(folder, "git", "push", "--quiet", "origin", "--delete", branch, own_git=True)
        raise


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
            return Outcome(name_of(url), str(stopped), fine=False)

    lines = [line.strip() for line in options.services.read_text().splitlines()]
    urls = [line for line in lines if line and not line.startswith("#")]
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
