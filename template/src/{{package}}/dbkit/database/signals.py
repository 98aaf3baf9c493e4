"""What a service does at SIGTERM: it tells that it stops before it does."""

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..loggers import logger_named

logger = logger_named("health")

_stopping: dict[Callable[[], None], float] = {}
"""What is called at SIGTERM, and the delay that each asks for: one for each running service."""
_previous: dict[int, Any] = {}
"""The server's own handlers."""


@contextmanager
def notice_sigterm(stop: Callable[[], None], delay: float) -> Generator[None]:
    """Call `stop` at SIGTERM, and let the server stop `delay` seconds later.

    In between, requests are served and `/readyz` answers 503, so that a load balancer
    looks away before the port closes. At Ctrl-C there is no delay. Services that share a process
    stop together, after the longest of their delays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set signal handlers.
        return
    loop = asyncio.get_running_loop()

    def handle(number: int, _frame: FrameType | None) -> None:
        for each in tuple(_stopping):
            each()
        signal.signal(number, _previous[number])  # A second one does not wait.
        if number == signal.SIGINT:
            signal.raise_signal(number)
        else:
            longest = max(_stopping.values(), default=0)
            loop.call_soon_threadsafe(loop.call_later, longest, signal.raise_signal, number)

    keeps = getattr(signal.getsignal(signal.SIGTERM), "__module__", "") or ""
    if delay and not _stopping and not keeps.startswith("uvicorn"):
        logger.warning(
            "SHUTDOWN_DELAY=%g is kept by uvicorn alone: this server stops as soon as it is told"
            " to; have the platform wait before that, as by preStop.sleep of Kubernetes",
            delay,
        )
    if not _stopping:
        _previous.update({int(n): signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)})
        for number in _previous:
            signal.signal(number, handle)
    _stopping[stop] = delay
    try:
        yield
    finally:
        del _stopping[stop]
        if not _stopping:
            for number, handler in _previous.items():
                signal.signal(number, handler)
