"""`manage.py shell`: Python, in which the databases are open and `await` works."""

import ast
import asyncio
import code
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from inspect import iscoroutine
from types import CodeType, FunctionType
from typing import Any

from sqlalchemy import func, select

from ..database.databases import Databases
from .outside import opened

Wait = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine in the event loop of the databases, and returns what that returns."""


def run(databases: Databases) -> None:
    """Run IPython, or Python's own console where that is not installed."""
    names = names_for(databases)
    told = ", ".join(sorted(names))
    with running(databases) as wait:
        if find_spec("IPython"):
            run_ipython(names, f"There are {told}; `await` works.\n", wait)
        else:
            Console(names, wait).interact(
                f"Python {sys.version.split()[0]}; there are {told}; `await` works.", ""
            )


def names_for(databases: Databases) -> dict[str, Any]:
    """Return what the shell has: the models, the databases, and what statements begin with."""
    models = {
        mapper.class_.__name__: mapper.class_
        for database in databases.values()
        if database.base
        for mapper in database.base.registry.mappers
    }
    return {**models, "func": func, "select": select, **databases, "databases": databases}


@contextmanager
def running(databases: Databases) -> Generator[Wait]:
    """Have the databases open in an event loop that runs also while the prompt waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="databases", daemon=True)
    thread.start()

    def wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    ready, end = threading.Event(), asyncio.Event()

    async def hold() -> None:
        async with opened(databases):
            ready.set()
            await end.wait()

    held = asyncio.run_coroutine_threadsafe(hold(), loop)
    held.add_done_callback(lambda _: ready.set())
    ready.wait()
    try:
        if not held.done():
            yield wait
    finally:
        loop.call_soon_threadsafe(end.set)
        held.result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


class Console(code.InteractiveConsole):
    """Python's own console, with `await`."""

    def __init__(self, names: dict[str, Any], wait: Wait) -> None:
        super().__init__(names)
        self._names = names
        self._wait = wait
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        with suppress(ImportError):  # Windows has none.
            import readline  # noqa: PLC0415 -- see above
            import rlcompleter  # noqa: PLC0415 -- it wants the other

            readline.set_completer(rlcompleter.Completer(names).complete)
            readline.parse_and_bind("tab: complete")

    def runcode(self, code: CodeType) -> None:
        """Run a statement, in the event loop if it awaits."""
        try:
            result = FunctionType(code, self._names)()
            if iscoroutine(result):
                self._wait(result)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001 -- shown, as Python does
            self.showtraceback()


def run_ipython(names: dict[str, Any], banner: str, wait: Wait) -> None:
    """Run IPython, whose cells that await go to the event loop."""
    terminal = import_module("IPython.terminal.interactiveshell")
    shell: Any = terminal.TerminalInteractiveShell.instance(user_ns=names, banner1=banner)
    shell.loop_runner = wait
    shell.mainloop()
