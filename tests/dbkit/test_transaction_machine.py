"""Whatever code does in a transaction: what it is answered is what is stored."""

import asyncio
import os

import pytest
from dbkit import Database
from dbkit.web import disconnects
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from shop import fill
from transaction_machine import TransactionMachine, World

RUNS = int(os.environ.get("TRANSACTION_RUNS", "12"))
"""Of each server; by hand, more: `TRANSACTION_RUNS=2000 uv run pytest -n 0 ...`."""


BY_HAND = pytest.mark.skipif("TRANSACTION_RUNS" not in os.environ, reason="takes minutes")


@pytest.mark.parametrize(
    "engine",
    [
        *("postgresql", "mariadb", "sqlite"),
        *(pytest.param(each, marks=BY_HAND) for each in ("pgbouncer", "mysql")),
    ],
)
def test_what_is_answered_is_what_is_stored(
    engine: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disconnects, "NOTICE_AFTER", 0.001)
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('machine') / 'machine.sqlite3'}"
    else:
        behind = engine == "pgbouncer"
        found = (
            request.getfixturevalue("database_url")
            if behind or engine == "postgresql"
            else request.getfixturevalue(engine).new_database()
        )
        if behind:
            found = request.getfixturevalue("pooler").set(database=found.database)
        url = found.render_as_string(hide_password=False)
    dialect = {"mariadb": "mysql", "pgbouncer": "postgresql"}.get(engine, engine)
    database = Database(
        "shop",
        dialect,  # pyright: ignore[reportArgumentType]
        url=url,
        pool_size=4,
        pgbouncer=engine == "pgbouncer",
    )
    bound = settings(
        max_examples=RUNS,
        stateful_step_count=20,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    with asyncio.Runner() as runner:
        opened = database.open()
        runner.run(opened.__aenter__())
        try:
            runner.run(fill(database))

            class Machine(TransactionMachine):
                world = World(runner, database)

            try:
                run_state_machine_as_test(Machine, settings=bound)
            except BaseException as error:
                error.add_note(f"in run {Machine.world.runs}")
                raise
        finally:
            runner.run(opened.__aexit__(None, None, None))
