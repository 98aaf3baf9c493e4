"""Tasks and timers in the running event loop; a pool outlives its loops."""

import asyncio
import os
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

from sqlalchemy import exc

OTHER_LOOP = (
    "this pool is in use in another event loop; run all that uses a database in one loop (in tests:"
    " see dbkit/testing)"
)
FORKED = (
    "this pool and its connections belong to the process from which this one was forked: open the"
    " databases after the fork, or begin with `await engine.dispose(close=False)`"
)


class Background:
    """Background tasks and timers of a pool, run outside any caller's context.

    Bound to a loop at first use. When another loop asks, the first one must have ended: what
    belonged to it is dropped, and `leave` is called.
    """

    def __init__(self, name: str, leave: Callable[[], None]) -> None:
        self.name = name
        self.loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self.tasks: set[asyncio.Task[None]] = set()
        self._leave = leave
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()

    def attach(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, and leave the one before it."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            if self.loop is not None:
                if self.loop.is_running():
                    said = FORKED if self._process != os.getpid() else OTHER_LOOP
                    raise exc.InvalidRequestError(f"{self.name}: {said}")
                self.cancel(*self._timers)
                self.tasks.clear()
                self._changed = asyncio.Event()
                self._leave()
            self.loop, self._process = loop, os.getpid()
        return loop

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task."""
        task = self.attach().create_task(work, context=Context())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def soon(self, callback: Callable[..., object], *args: object) -> None:
        """Call in the loop's next turn; from any thread, and from the garbage collector."""
        if self.loop is not None:
            with suppress(RuntimeError):  # The loop is closed: nothing of it is left to do.
                self.loop.call_soon_threadsafe(callback, *args, context=Context())

    def later(self, name: str, delay: float, method: Callable[[], None]) -> None:
        """Call a method once, unless a timer of that name runs; it keeps no pool alive."""
        if name in self._timers or self.loop is None:
            return
        timers, weak = self._timers, weakref.WeakMethod(method)

        def fire() -> None:
            timers.pop(name, None)
            if call := weak():
                call()

        timers[name] = self.loop.call_later(delay, fire, context=Context())

    def is_due(self, name: str) -> bool:
        """Whether a timer of that name runs."""
        return name in self._timers

    def cancel(self, *names: str) -> None:
        """Stop the timers of these names, or all."""
        for name in names or tuple(self._timers):
            if timer := self._timers.pop(name, None):
                timer.cancel()

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until a condition holds, for `timeout` seconds at the most; see `look`."""
        self.attach()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def look(self) -> None:
        """Wake those whose condition may hold by now."""
        self._changed.set()
