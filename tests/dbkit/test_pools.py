"""`manage.py pools`: what a person reads in a terminal."""

import json

import pytest
from dbkit.pools import cli, describe
from typer.testing import CliRunner, Result


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


def test_no_name_of_a_route_reaches_the_terminal_as_a_command() -> None:
    route = {"route": "GET /\x1b[2J", "checkouts": 1, "held": 1.0, "in_sql": 0.5, "longest": 1.0}
    pool = dict.fromkeys(["pool_size", "max_overflow", "in_use", "idle", "waiting"], 1)
    pool |= dict.fromkeys(["shed", "timeouts", "refused"], 0)
    database = {"up": True, "pool": pool, "holders": [], "routes": [route], "advice": []}
    loop = {"blocks": 0, "blocked_seconds": 0.0, "latest": []}
    state = {"service": "s", "process": 1, "processes": 1, "event_loop": loop}
    state["databases"] = {"primary": database}

    text = describe(state)

    assert "GET /?[2J" in text
    assert "\x1b" not in text
