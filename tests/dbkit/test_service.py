"""Settings of the service itself, and what a person reads when they are wrong."""

from pathlib import Path

import pytest
from dbkit import Databases, NotConfigured
from dbkit.settings.database import environment
from dbkit.settings.service import ServiceSettings, read_service_settings
from rendering import ROOT


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no variable of the service set."""
    for field in ServiceSettings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "delay"), [("", 0), ("0", 0), (" 2.5 ", 2.5), ("3600", 3600)])
def test_a_setting_is_read_from_env_file_too(clean: Path, text: str, delay: float) -> None:
    (clean / ".env").write_text(f"SHUTDOWN_DELAY={text}\n")

    assert read_service_settings(environment()).shutdown_delay == delay


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "3601", "5s"])
async def test_a_wrong_setting_stops_the_start(
    clean: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SHUTDOWN_DELAY", text)

    with pytest.raises(NotConfigured) as caught:
        async with Databases().open():
            pass

    assert caught.value.faults == (
        (
            f"SHUTDOWN_DELAY: '{text}' is not a number from 0 to 3600. Seconds to keep serving"
            " after SIGTERM, while /readyz returns 503. Default: 0."
        ),
    )


def test_every_fault_is_named_at_once_and_no_token_is_shown() -> None:
    with pytest.raises(NotConfigured) as caught:
        read_service_settings({"INSTANCES": "0", "POOLS_TOKEN": "s3cret"})

    assert caught.value.faults == (
        (
            "INSTANCES: '0' is not an integer from 1 to 10000."
            " Instances of the service in production: its pods, containers or machines. Default: 1."
        ),
        (
            "POOLS_TOKEN: the value is not 16 characters or more."
            " Token for /pools; 16 characters or more."
        ),
    )
    token = "s3cret" * 4
    assert "s3cret" not in repr(read_service_settings({"POOLS_TOKEN": token}))


def test_a_deployment_runs_its_surge_beside_its_instances() -> None:
    settings = read_service_settings(
        {"WEB_CONCURRENCY": "4", "INSTANCES": "10", "DEPLOY_SURGE": "3"}
    )

    assert settings.processes == 4 * 13


def test_the_documentation_lists_every_setting() -> None:
    page = (ROOT / "docs" / "databases.md").read_text()

    for name, field in ServiceSettings.model_fields.items():
        bounds = [each for m in field.metadata for each in vars_of(m)]
        row = f"| `{name.upper()}` | {field.default if field.default != '' else ''}"
        assert row.rstrip() in page
        assert f"{' to '.join(bounds)} | {field.description} |" in page


def vars_of(constraint: object) -> list[str]:
    """Return a bound as it is written."""
    return [str(getattr(constraint, name)) for name in ("ge", "le") if hasattr(constraint, name)]
