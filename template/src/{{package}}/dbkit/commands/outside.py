"""The databases outside of the service: in scripts, commands, workers and notebooks."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, ExitStack, chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import typer

from ..context import job, job_name
from ..database.databases import Databases
from ..database.engine import SERVICE
from ..settings.database import environment
from .development import development_servers


class opened:  # noqa: N801 -- a context manager, as those of contextlib
    """Have the databases as the service has them, until exit.

    `async with opened(databases):` opens them. `with opened(databases):` is for code that is
    synchronous, or that opens them itself.

    In development, databases without a URL are on servers of the service's own, and migrated. In
    production, a URL that is not set is `NotConfigured`. Relative paths are those of the service's
    folder. All is closed on exit, also by Ctrl-C and SIGTERM. What it runs is named, in errors and
    logs, as the command or script that was called, or by `name`.
    """

    def __init__(self, databases: Databases, name: str = "") -> None:
        self._databases = databases
        self._name = name or job_name() or Path(sys.argv[0]).name or "a script"
        self._prepared = ExitStack()
        self._opened = AsyncExitStack()

    def __enter__(self) -> Databases:
        with ExitStack() as stack:
            stack.enter_context(ending_by_sigterm())
            stack.enter_context(prepared(self._databases))
            stack.enter_context(job(self._name))
            self._prepared = stack.pop_all()
        return self._databases

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._prepared.__exit__(type_, value, traceback)

    async def __aenter__(self) -> Databases:
        async with AsyncExitStack() as stack:
            stack.enter_context(ending_by_sigterm())
            # In a thread: to start servers blocks, and migrations have an event loop of their own.
            ready = prepared(self._databases)
            await asyncio.to_thread(ready.__enter__)
            stack.push_async_callback(asyncio.to_thread, ready.__exit__, None, None, None)
            stack.enter_context(job(self._name))
            await stack.enter_async_context(self._databases.open())
            self._opened = stack.pop_all()
        return self._databases

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._opened.__aexit__(type_, value, traceback)


@contextmanager
def prepared(databases: Databases) -> Generator[None]:
    """Work in the service's folder until exit, with its development servers running."""
    root = Path(sys.modules[SERVICE].__file__ or "").parents[2]
    with ExitStack() as stack:
        if (root / "manage.py").exists():  # Else it is installed elsewhere, as in an image.
            stack.enter_context(chdir(root))
        variables = environment()
        local = [
            each
            for each in databases.values()
            if each.base and not each.replica_of and not each.has_url(variables)
        ]
        stack.enter_context(development_servers(databases.values()))
        # With a URL, and in production, the database is for its owner to migrate: the error of a
        # table that is not there names the command.
        if local and find_spec("pytest"):
            from . import migrations  # noqa: PLC0415 -- slow, and not of production

            for each in local:
                asyncio.run(migrations.migrate(each, on_step=saying(each.name)))
        try:
            yield
        finally:
            for each in databases.values():
                each.close_sync()


def saying(name: str) -> Callable[[str], None]:
    """Return what says a step of a database's migration; not to where a script writes."""
    return lambda step: typer.echo(f"{name}: {step}", err=True)


@contextmanager
def ending_by_sigterm() -> Generator[None]:
    """Have SIGTERM end the process by its context managers, unless somebody handles it."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end(number: int, _frame: FrameType | None) -> NoReturn:
    """End the process, with the status that it has when a signal ends it."""
    raise SystemExit(128 + number)
