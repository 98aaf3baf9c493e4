"""The queue of a pool: strictly first in, first out, and shed by CoDel while it stands.

A queue that forms and dissolves is a burst, and is served in full. A queue that stands adds
waiting and no throughput: when no wait was shorter than the target for a whole interval,
whoever has waited for more than twice the target is turned away, oldest first, until a wait is
short again. If it stood a moment ago, it need not stand for a whole interval to be shed again.
Source: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012. Twice the
target as the limit is from Ecto's db_connection: requests are not packets, and each that has
waited too long is better told so.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from .slots import Slot

RECENT = 4
"""Intervals for which it is remembered that the queue stood."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller in the queue."""

    future: asyncio.Future[Slot]
    since: float
    """When it joined, by the monotonic clock; later by as much as the event loop stood since."""


class WaitQueue:
    """Waiters in the order of their arrival.

    `target` and `interval` are seconds; with a target of 0 nobody is shed. Time is always the
    caller's `now`, by the monotonic clock.
    """

    def __init__(self, target: float, interval: float) -> None:
        self.target = target
        self.interval = interval
        # Ordered, and O(1) to leave: thousands of waiters may be cancelled at once.
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        """Who waits; to be looked at, and changed by the methods only."""
        self._short_at = -inf  # When a wait was last short.
        self._shed_at = -inf

    def __len__(self) -> int:
        return len(self.waiters)

    def join(self, waiter: Waiter) -> None:
        """Put a waiter at the end."""
        if not self.waiters:
            self._short_at = waiter.since
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out, wherever it stands."""
        self.waiters.pop(waiter, None)

    def clear(self) -> None:
        """Remove all waiters: their event loop has ended."""
        self.waiters.clear()

    def oldest(self) -> Waiter | None:
        """Return the waiter that is next, past those whose caller has gone."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            if not waiter.future.done():
                return waiter
            del self.waiters[waiter]
        return None

    def serve(self, now: float) -> Waiter | None:
        """Remove the next waiter and return it."""
        if waiter := self.oldest():
            del self.waiters[waiter]
            if not self.waiters or now - waiter.since <= (self.target or inf):
                self._short_at = now
        return waiter

    def stood(self, now: float, seconds: float) -> None:
        """Do not count the last `seconds`, in which the event loop was blocked."""
        for waiter in self.waiters:
            waiter.since = min(waiter.since + seconds, now)
        self._short_at = min(self._short_at + seconds, now)
        self._shed_at = min(self._shed_at + seconds, now)

    def excuse(self, now: float) -> None:
        """Restart the CoDel interval: the waits so far were not for other callers."""
        self._short_at = now

    def shed(self, now: float) -> Iterator[Waiter]:
        """Remove and yield the waiters that have waited too long in a standing queue."""
        if self.target and now - self._short_at >= self._patience(now):
            for waiter in self.expire(now, 2 * self.target):
                self._shed_at = now
                yield waiter

    def _patience(self, now: float) -> float:
        recently = now - self._shed_at < RECENT * self.interval
        return 2 * self.target if self.target and recently else self.interval

    def expire(self, now: float, age: float) -> Iterator[Waiter]:
        """Remove and yield the waiters that have waited for `age` seconds or longer."""
        while (waiter := self.oldest()) and now - waiter.since >= age:
            del self.waiters[waiter]
            yield waiter

    def due(self, now: float) -> float:
        """Return the seconds until `shed` should be called, if nothing is returned before."""
        oldest = self.oldest()
        if not self.target or oldest is None:
            return inf
        due = max(self._short_at + self._patience(now), oldest.since + 2 * self.target)
        return max(due - now, self.target / 2)
