"""What owners rely on goes only with a major version."""

import pytest
from releases import ROOT, listed
from surface import broken, surface


def lines_of(version: str) -> list[str]:
    """Read the surface of a release."""
    path = ROOT / "tests" / "surface" / f"{version}.txt"
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("version", [each.version for each in listed()])
def test_what_a_release_of_this_major_version_had_is_there(version: str) -> None:
    """For a major version, say so in the changelog: `## Unreleased, 1.0.0`."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = changelog.partition("\n## Unreleased")[2].partition("\n")[0]
    major = (heading.removeprefix(", ") or listed()[-1].version).partition(".")[0]

    if version.partition(".")[0] == major:
        assert broken(lines_of(version), surface()) == []


def test_a_surface_breaks_nothing_of_itself() -> None:
    assert broken(surface(), surface()) == []


@pytest.mark.parametrize(
    ("gone", "added", "fault"),
    [
        ("name session_from", "name session_of", "name session_from: is gone"),
        ("part Database.session", "part Database.begin", "part Database.session: is gone"),
        ("testing client", "", "testing client: is gone"),
        ("option migrate --to", "option migrate --target", "option migrate --to: is gone"),
        ("route /livez", "route /healthz", "route /livez: is gone"),
        ("logger dbkit.logs", "logger dbkit.web.logs", "logger dbkit.logs: is gone"),
        ("variable DATABASE_ECHO", "", "variable DATABASE_ECHO: is gone"),
        (
            "bound DATABASE_POOL_SIZE le 1000",
            "bound DATABASE_POOL_SIZE le 100",
            "DATABASE_POOL_SIZE le 1000: is 100 now",
        ),
        (
            "bound DATABASE_KEEPALIVE ge 0",
            "bound DATABASE_KEEPALIVE ge 1",
            "DATABASE_KEEPALIVE ge 0: is 1 now",
        ),
        ("", "required install(title)", "install(title): must be given now"),
        ("", "required check database", "check database: must be given now"),
    ],
)
def test_what_breaks_owners_is_noticed(gone: str, added: str, fault: str) -> None:
    before = lines_of("0.3.0")
    now = [line for line in (*before, added) if line not in {gone, ""}]

    assert [each for each in broken(before, now) if each.startswith(fault)] != []


def test_what_grows_breaks_nobody() -> None:
    before = lines_of("0.1.0")
    wider = {"bound DATABASE_POOL_SIZE le 1000": "bound DATABASE_POOL_SIZE le 2000"}
    now = [*(wider.get(line, line) for line in before), "name news", "required news(of)"]

    assert broken(before, now) == []
