"""`manage.py pools`: what a person reads in a terminal."""

import json
import time
from collections.abc import Iterator
from threading import Thread

import pytest
import uvicorn
from dbkit import Databases, install
from dbkit.commands.pools import cli, describe
from fastapi import FastAPI
from typer.testing import CliRunner, Result

TOKEN = "a token of some length"  # noqa: S105 -- of these tests


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_advice_for_a_load_is_a_table_with_what_it_takes_for_granted() -> None:
    lines = run("advise", "--rate", "200", "--hold", "0.02").output.splitlines()

    assert lines[0].startswith("pool: 200.0 checkouts/s, held for 20.0 ms on average")
    assert "     6  so that 99 % wait for 0.05 s at the most" in lines
    assert "     4    for ever    for ever" in lines
    assert "     6      2.8 ms     33.5 ms  <-" in lines
    assert "callers arrive at random" in lines[-3]


def test_advice_is_json_too() -> None:
    advice = json.loads(run("advise", "--rate", "200", "--hold", "0.02", "--json").output)["pool"]

    assert (advice["floor"], advice["size"], advice["busy"]) == (5, 6, 4.0)
    assert advice["waits"]["4"] == {"mean": None, "share": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["advise", "--rate", "3"], "--rate and --hold belong together"),
        (["show", "--url", "http://127.0.0.1:1"], "does not answer: "),
        (["show", "--url", "file:///etc/passwd"], "file:///etc/passwd is no URL"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(arguments: list[str], message: str) -> None:
    done = run(*arguments)

    assert done.exit_code == 1
    assert message in done.output


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the page to who has the token."""
    databases = Databases()
    databases.service = databases.service.model_copy(update={"pools_token": TOKEN})
    app = FastAPI()
    install(app, databases)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_the_token_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOLS_TOKEN", TOKEN)

    done = run("show", "--url", url, "--json")

    assert json.loads(done.output)["databases"] == {}
    assert TOKEN not in done.output


@pytest.mark.parametrize("command", ["show", "watch"])
@pytest.mark.parametrize("token", [None, "another of some length"])
def test_without_the_token_a_sentence_says_what_to_set(
    url: str, command: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POOLS_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("POOLS_TOKEN", token)

    done = run(command, "--url", url)

    assert done.exit_code == 1
    assert done.output == "POOLS_TOKEN is not that of the service: set the same here\n"


def test_no_name_of_a_route_reaches_the_terminal_as_a_command() -> None:
    route = {"route": "GET /\x1b[2J", "checkouts": 1, "held": 1.0, "in_sql": 0.5, "longest": 1.0}
    pool = dict.fromkeys(["pool_size", "max_overflow", "in_use", "idle", "waiting"], 1)
    pool |= dict.fromkeys(["shed", "timeouts", "refused"], 0)
    holder = {
        "route": "GET /",
        "held": 1.0,
        "in_sql": 0.5,
        "ended": False,
        "where": ["a.py:1 in b"],
    }
    database = {"up": True, "pool": pool, "holders": [holder], "routes": [route], "advice": []}
    state = {"service": "s", "process": 1, "processes": 1}  # As of 0.2.0.

    text = describe(state | {"databases": {"primary": database}})

    assert "GET /  a.py:1 in b" in text
    assert "GET /?[2J" in text
    assert "\x1b" not in text
