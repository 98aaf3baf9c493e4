"""What a service answers is what its OpenAPI document says, whatever it is sent."""

import sys
from pathlib import Path
from typing import Any

import pytest
from rendering import Renderer
from running import copy_of, run, running
from variants import VARIANTS

EXAMPLES = 40  # for each operation: some 15 s for one database, 30 s for four


@pytest.mark.fuzz
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["default", "four-databases"])
def test_answers_what_it_documents(render: Renderer, tmp_path: Path, name: str) -> None:
    answers: dict[str, Any] = next(each.answers for each in VARIANTS if each.name == name)
    with running(copy_of(render(**answers), tmp_path)) as service:
        done = run(
            tmp_path,
            Path(sys.executable).with_name("schemathesis"),
            *("run", f"{service.client.base_url}/openapi.json"),
            *("--checks", "all"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--continue-on-failure"),
            "--no-color",
        )

        assert done.returncode == 0, done.stdout
        paths = service.client.get("/openapi.json").json()["paths"].values()
        assert f"Tested: {sum(map(len, paths))}\n" in done.stdout
        assert "Traceback" not in service.log
