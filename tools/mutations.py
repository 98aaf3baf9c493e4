"""Break the kit on purpose, one place at a time, and see the tests go red.

By hand: `uv run python tools/mutations.py`, or with words of those to try. It takes minutes, and
fails if a mutation goes unnoticed, or no longer fits the code. The table says how many runs
the state machine needed, of 200 at the most.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
KIT = "template/src/{{package}}/dbkit"
RUNS = "200"
MACHINE = "tests/dbkit/test_transaction_machine.py"
TRANSACTIONS = "tests/dbkit/test_transactions.py"
CONTEXT = "tests/dbkit/test_context.py"
WEBSOCKETS = "tests/dbkit/test_websockets.py"
LOST = "tests/dbkit/test_lost_connections.py"
BLOCKED = "tests/dbkit/test_blocked_loop.py"
SHARED = "tests/dbkit/test_shared.py"


class Mutation(NamedTuple):
    """One place of the kit, broken, and the tests that must notice."""

    what: str
    module: str
    before: str
    after: str
    tests: str = MACHINE
    choice: str = "postgresql"
    """As pytest's `-k` takes it: of the machine, a server."""


MUTATIONS = [
    Mutation(
        "a ROLLBACK is taken for a COMMIT",
        "engines/postgresql.py",
        'if status == "ROLLBACK" and',
        "if False and",
    ),
    Mutation(
        "a transaction that a cancellation undid ends in silence",
        "engines/transactions.py",
        "            if value is None:  # The connection is gone.",
        "            if value is not None:",
    ),
    Mutation(
        "a session ends in silence after a flush that failed",
        "engines/transactions.py",
        "if self.is_active:",
        "if True:",
        choice="sqlite",
    ),
    Mutation(
        "a session commits whatever its code raised",
        "engines/transactions.py",
        "super().__exit__(type_, value, traceback)",
        "super().__exit__(None, None, None)",
        choice="sqlite",
    ),
    Mutation(
        "what comes after a transaction was undone is run",
        "engines/transactions.py",
        "    raise aborted(name_of(context), driver.failure)",
        "    return None",
        choice="sqlite",
    ),
    Mutation(
        "SQLite's own rollback goes unnoticed",
        "engines/sqlite.py",
        "if before and self._is_alive() and not self.in_transaction:",
        "if False:",
        choice="sqlite",
    ),
    Mutation(
        "SQLite begins no transaction",
        "engines/sqlite.py",
        'connection.exec_driver_sql("BEGIN IMMEDIATE")',
        "pass",
        choice="sqlite",
    ),
    Mutation(
        "a deadlock undoes nothing", "engines/mysql.py", "1213,  # deadlock", "", choice="mariadb"
    ),
    Mutation(
        "MariaDB commits what came after a deadlock",
        "engines/mysql.py",
        "if failure and (self.is_undone or",
        "if failure and False and (self.is_undone or",
        choice="mariadb",
    ),
    Mutation(
        "MariaDB commits each statement",
        "engines/mysql.py",
        'autocommit(level == "AUTOCOMMIT")',
        "autocommit(True)",
        choice="mariadb",
    ),
    Mutation(
        "a request goes on without its client",
        "web/disconnects.py",
        'request.task.cancel("the client has left")',
        "pass",
    ),
    Mutation(
        "a client that leaves cancels a commit",
        "context.py",
        "        request.watched = False",
        "        pass",
        "tests/dbkit/test_disconnects.py",
        "not slow",
    ),
    Mutation(
        "a connection is handed on in its transaction",
        "engines/drivers.py",
        "        if is_in_transaction() and not in_sandbox:",
        "        if False:",
        "tests/dbkit/test_clean_connections.py",
        "begun_in_text",
    ),
    Mutation(
        "a cancellation is lost beside an answer",
        "engines/mysql.py",
        "timeout(self.patience):\n                await parent._fill_buffer(need)",
        "timeout(None):\n"
        "                await asyncio.wait_for(parent._fill_buffer(need), self.patience)",
        "tests/dbkit/test_mysql.py",
        "together_with",
    ),
    Mutation(
        "the driver's fetch() may COMMIT",
        "engines/postgresql.py",
        "if (found := ENDS.match(query)) and",
        "if (found := ENDS.match(query)) and False and",
        TRANSACTIONS,
        "answer_the_driver_drops",
    ),
    Mutation(
        "a transaction that the driver ended is committed",
        "engines/postgresql.py",
        'if query == "COMMIT;" and',
        "if False and",
        TRANSACTIONS,
        "driver_rolls_back and postgresql",
    ),
    Mutation(
        "a statement that commits goes unnoticed",
        "engines/mysql.py",
        "self.server_status = self._result.server_status",
        "pass",
        TRANSACTIONS,
        "statement_commits and mysql",
    ),
    Mutation(
        "a second statement of a text is lost",
        "engines/mysql.py",
        "        if not migrates:",
        "        if False:",
        TRANSACTIONS,
        "one_statement and mysql",
    ),
    Mutation(
        "a savepoint in run_sync ends in silence",
        "engines/transactions.py",
        "transaction.__class__ = CheckedTransaction",
        "pass",
        TRANSACTIONS,
        "run_sync and sqlite",
    ),
    Mutation(
        "COMMIT is for SQL text",
        "engines/transactions.py",
        "if not context.is_text or",
        "if True or",
        TRANSACTIONS,
        "not_for_text",
    ),
    Mutation(
        "a task that nobody awaits commits for its request",
        "context.py",
        "if (request := current()) is not None:",
        "if (request := _request.get()) is not None:",
        CONTEXT,
        "nobody_awaits and sqlite",
    ),
    Mutation(
        "tasks of a task group are none of the request's",
        "context.py",
        '("asyncio.", "anyio.")',
        '("asyncio.",)',
        CONTEXT,
        "sqlite",
    ),
    Mutation(
        "a task that is awaited is none of the request's",
        "context.py",
        "yield function.__self__",
        "pass",
        CONTEXT,
        "sqlite",
    ),
    Mutation(
        "what a worker waits for is the request's",
        "context.py",
        "any(map(self.includes, waiters(task)))",
        "any(True for _ in waiters(task))",
        CONTEXT,
        "worker and sqlite",
    ),
    Mutation(
        "what is shielded is part of the request",
        "context.py",
        ' and not name.startswith("shield.")',
        "",
        CONTEXT,
        "shields and sqlite",
    ),
    Mutation(
        "a connection counts for the request that began its task",
        "pool/usage.py",
        "request is not None and request.includes(task)",
        "request is not None",
        CONTEXT,
        "sqlite",
    ),
    Mutation(
        "background tasks end with the client",
        "web/middleware.py",
        "request.watched = False  #",
        "pass  #",
        CONTEXT,
        "answered and sqlite",
    ),
    Mutation(
        "a WebSocket does not end",
        "web/middleware.py",
        "        finally:\n            request.ended = True\n\n",
        "        finally:\n            pass\n\n",
        WEBSOCKETS,
        "sqlite",
    ),
    Mutation(
        "a task that has ended is not let go",
        "telemetry/leaks.py",
        "self._pool().usage.let_go(use)",
        "pass",
        LOST,
        "fails and postgresql",
    ),
    Mutation(
        "nobody sends for the garbage collector",
        "telemetry/leaks.py",
        "            gc.collect()\n",
        "            pass\n",
        LOST,
        "connects and sqlite",
    ),
    Mutation(
        "a holder pays for a time in which the loop stood",
        "telemetry/leaks.py",
        "held -= sum(",
        "held -= 0 * sum(",
        BLOCKED,
        "no_holder",
    ),
    Mutation(
        "a waiter pays for a time in which the loop stood",
        "pool/waiters.py",
        "waiter.since = min(waiter.since + seconds, now)",
        "pass",
        BLOCKED,
        "not real",
    ),
    Mutation(
        "a look-up is made twice at a time",
        "settings/threads.py",
        "_pending.get(key)",
        "None",
        SHARED,
        "one_look_up or cancelled",
    ),
]


def noticed(mutation: Mutation) -> str:
    """Break a copy of the project; return how it was noticed, or "" if it was not."""
    with TemporaryDirectory() as directory:
        copy = Path(directory) / "project"
        for part in ("template/src", "tests", "tools"):
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy(ROOT / "pyproject.toml", copy)
        module = copy / KIT / mutation.module
        text = module.read_text()
        assert text.count(mutation.before) == 1, f"{mutation.what}: does not fit the code"
        module.write_text(text.replace(mutation.before, mutation.after))
        command = [
            *(sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "--timeout=0"),
            *("-p", "no:cacheprovider", mutation.tests, "-k", mutation.choice),
        ]
        ended = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"TRANSACTION_RUNS": RUNS},
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode not in {0, 1}:
        raise SystemExit(f"{mutation.what}: no test was run\n{ended.stdout}{ended.stderr}")
    if ended.returncode == 0:
        return ""
    run = re.search(r"in run (\d+)", ended.stdout)
    failed = re.search(r"^FAILED \S+::(\S+)", ended.stdout, re.MULTILINE)
    return f"run {run[1]}" if run else failed[1] if failed else "an error"


def main() -> None:
    """Try them all, or those that have one of the words."""
    words = sys.argv[1:]
    unnoticed = 0
    for each in MUTATIONS:
        if words and not any(word in f"{each}" for word in words):
            continue
        how = noticed(each)
        unnoticed += not how
        print(f"| {each.what} | {each.module} | {each.choice} | {how or 'UNNOTICED'} |", flush=True)
    raise SystemExit(unnoticed)


if __name__ == "__main__":
    main()
