"""Timers that share one of the event loop's."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from unittest.mock import patch

from dbkit.pool.timeouts import Timers

SHORT = 0.01
LONG = 60.0
whose: ContextVar[str] = ContextVar("whose", default="nobody's")


@contextmanager
def counting() -> Generator[list[float]]:
    """Count the timers of the loop itself."""
    loop, due = asyncio.get_running_loop(), list[float]()
    call_at = loop.call_at

    def counted(when: float, *args: object, **options: object) -> object:
        due.append(when)
        return call_at(when, *args, **options)  # pyright: ignore[reportArgumentType, reportCallIssue] -- passed on

    with patch.object(loop, "call_at", counted):
        yield due


async def test_timers_that_are_cancelled_cost_the_loop_one_of_its_own() -> None:
    timers, called = Timers(), list[int]()

    with counting() as due:
        for number in range(100):
            timers.call_later(LONG, called.append, number).cancel()

    assert len(due) == 1


async def test_each_is_called_in_time_and_the_cancelled_are_not() -> None:
    timers, called, last = Timers(), list[str](), asyncio.Event()
    timers.call_later(3 * SHORT, last.set)
    timers.call_later(2 * SHORT, called.append, "later")
    timers.call_later(SHORT, called.append, "sooner")
    timers.call_later(SHORT, called.append, "never").cancel()

    await last.wait()

    assert called == ["sooner", "later"]


async def test_looks_do_not_grow_with_the_timers() -> None:
    """Each goes through all: one look for each timer would cost a thousand requests a million."""
    timers, last = Timers(), asyncio.Event()

    with counting() as due:
        for number in range(1000):
            timers.call_later(SHORT * (1 + number / 1000), int)
        timers.call_later(2 * SHORT, last.set)
        await last.wait()

    assert len(due) <= 4


async def test_one_that_fails_or_cancels_another_leaves_the_others() -> None:
    loop, timers, called, last = asyncio.get_running_loop(), Timers(), list[str](), asyncio.Event()
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    timers.call_later(SHORT, [].pop)
    timers.call_later(SHORT, lambda: second.cancel())  # noqa: PLW0108 -- it comes after
    second = timers.call_later(SHORT, called.append, "cancelled by the one before")
    timers.call_later(SHORT, last.set)

    await last.wait()

    loop.set_exception_handler(None)
    assert [type(each) for each in failures] == [IndexError]
    assert called == []


async def test_none_is_called_in_the_context_of_whoever_came_first() -> None:
    timers, found, last = Timers(), list[str](), asyncio.Event()
    whose.set("a request's")
    timers.call_later(SHORT, lambda: found.append(whose.get()))
    timers.call_later(2 * SHORT, last.set)

    await last.wait()

    assert found == ["nobody's"]
