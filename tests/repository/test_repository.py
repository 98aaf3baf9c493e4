"""What this repository says about itself is so."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import yaml
from mutations import KIT, MUTATIONS
from rendering import ROOT

TESTS = "python3 -m venv .tools && .tools/bin/pip install --quiet uv && .tools/bin/uv run pytest"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())


def commands(path: Path, fence: str = "console") -> list[str]:
    """Read the commands of a document, each of which is one line that can be pasted."""
    blocks = re.findall(rf"^```{fence}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_ci_runs_the_command_of_the_readme() -> None:
    assert commands(ROOT / "README.md")[-1] == TESTS
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == TESTS


def test_ci_tries_programs_in_a_bare_debian() -> None:
    script = (ROOT / "tools" / "bare_debian.sh").read_text()
    (proof,) = re.findall(r"^proof='(.*)'$", script, re.MULTILINE)
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]

    assert "tools/bare_debian.sh" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert re.fullmatch(r"tools/readme\.sh first && tools/readme\.sh tests .*-m (\w+)", proof)
    assert proof.split()[-1] in {line.partition(":")[0] for line in markers["markers"]}


def test_workflow_runs_what_ci_runs() -> None:
    jobs = yaml.safe_load(WORKFLOWS[0].read_text())["jobs"]

    assert [step["run"] for step in jobs["run"]["steps"] if "run" in step] == [".ci/run"]
    install, _, pytest = TESTS.rpartition(" && ")
    for name in ("variants", "boot"):
        assert jobs[name]["steps"][2]["run"] == install
    assert jobs["boot"]["steps"][3]["run"].startswith(pytest.replace("run", "run --python python3"))


def test_a_workflow_runs_the_readme_where_nothing_else_is() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "readme.yml").read_text())
    job = workflow["jobs"]["readme"]

    images = {each["image"].partition(":")[0] for each in job["strategy"]["matrix"]["include"]}
    assert images == {"debian", "python", "ubuntu"}
    assert {"schedule", "push"} <= workflow[True].keys()  # YAML takes `on` for true.
    script = (ROOT / "tools" / "readme.sh").read_text()
    for name in re.findall(r"readme\.sh (\w+)", job["steps"][1]["run"]):
        assert f"\n  {name})" in script


def test_workflows_pin_actions_and_may_only_read() -> None:
    for path in WORKFLOWS:
        text = path.read_text()
        uses = re.findall(r"uses: (.*)", text)
        assert uses
        for action in uses:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_services_run_the_actions_that_are_kept_new_here() -> None:
    def actions(paths: Iterable[Path]) -> set[str]:
        return {each for path in paths for each in re.findall(r"uses: (.*)", path.read_text())}

    theirs = actions((ROOT / "template").glob("*github*/workflows/*"))
    assert theirs
    assert theirs <= actions(WORKFLOWS)


def test_contributing_says_what_each_test_promises() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()

    named = set(re.findall(r"`(\w+/test_\w+\.py)`", text))
    tests = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").glob("*/test_*.py")}
    assert named == {str(path) for path in tests if path.parts[0] not in {"dbkit", "faults"}}


def test_each_ignored_rule_in_a_service_has_its_reason() -> None:
    template = ROOT / "template"
    for path in (*template.rglob("*.py"), *template.rglob("*.py.jinja")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "# noqa" in line or "# pyright: ignore" in line:
                assert " -- " in line, f"{path.name}: {line}"


def test_each_mutation_fits_the_code() -> None:
    found = {
        each.what: (ROOT / KIT / each.module).read_text(encoding="utf-8").count(each.before)
        for each in MUTATIONS
    }
    assert {what: count for what, count in found.items() if count != 1} == {}


def test_an_update_leaves_alone_what_is_the_owners() -> None:
    """Copier reads two lists, of which one may have no answers in it: they say the same."""
    settings = yaml.safe_load((ROOT / "copier.yml").read_text(encoding="utf-8"))
    excluded = "\n".join(settings["_exclude"])

    assert len(settings["_skip_if_exists"]) > 10
    for path in settings["_skip_if_exists"]:
        assert re.search(rf"(^|\}}){re.escape(path)}(\{{|$)", excluded, re.MULTILINE), path
