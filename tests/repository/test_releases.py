"""The list of releases, the changelog and the history agree."""

import re
from pathlib import Path

import pytest
from releases import ROOT, git, listed, make, named, notes


def test_versions_rise() -> None:
    numbers = [each.number for each in listed()]

    assert numbers == sorted(set(numbers))


def test_each_release_is_in_the_history_and_names_itself() -> None:
    for number, release in enumerate(listed()):
        git(ROOT, "merge-base", "--is-ancestor", release.commit, "HEAD")
        changelog = git(ROOT, "show", f"{release.commit}:CHANGELOG.md")
        # The first one stood before there were names.
        assert named(changelog)[:1] == ([release.version] if number else [])


def test_changelog_and_list_agree() -> None:
    """A release that is not listed yet is the last commit: nothing has come after it."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = named(changelog)
    if not notes(changelog, "Unreleased") and versions[0] != listed()[-1].version:
        versions = versions[1:]

    assert versions == [each.version for each in reversed(listed())]
    assert all(notes(changelog, version) for version in versions)


def test_what_was_said_of_a_release_stays() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for release in listed():
        then = git(ROOT, "show", f"{release.commit}:CHANGELOG.md")
        said = notes(then, release.version) or notes(then, "Unreleased")
        assert notes(changelog, release.version) == said


def test_changelog_is_shown_after_an_update() -> None:
    """Copier renders it for that, so no line of it may look like Jinja."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.findall(r"\{[{%#].*", changelog) == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository whose last release is 0.1.0."""
    (tmp_path / "releases.toml").write_text('[[release]]\nversion = "0.1.0"\ncommit = "1"\n')
    (tmp_path / "CHANGELOG.md").write_text("## Unreleased\n\n* News.\n\n## 0.1.0\n\nFirst.\n")
    (tmp_path / "tests" / "surface").mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "feat: news")
    return tmp_path


def test_release_is_named_and_then_listed(repository: Path) -> None:
    make("0.2.0", repository)

    changelog = (repository / "CHANGELOG.md").read_text()
    assert named(changelog) == ["0.2.0", "0.1.0"]
    assert notes(changelog, "Unreleased") == ""
    assert notes(changelog, "0.2.0") == "* News."
    release = listed(repository)[-1]
    assert release.version == "0.2.0"
    assert "name Database\n" in (repository / "tests" / "surface" / "0.2.0.txt").read_text()
    assert git(repository, "show", f"{release.commit}:CHANGELOG.md") == changelog
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.1.0", "0.1.0 does not come after 0.1.0"),
        ("0.0.9", "0.0.9 does not come after 0.1.0"),
        ("0.2", "0.2 does not come after 0.1.0"),
    ],
)
def test_release_that_does_not_come_next_is_refused(
    repository: Path, version: str, fault: str
) -> None:
    with pytest.raises(SystemExit, match=fault):
        make(version, repository)


def test_release_without_news_is_refused(repository: Path) -> None:
    make("0.2.0", repository)

    with pytest.raises(SystemExit, match="says nothing under Unreleased"):
        make("0.3.0", repository)
