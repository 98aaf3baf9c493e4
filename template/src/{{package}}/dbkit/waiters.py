"""The queue of a pool: strictly first in, first out, and shed by CoDel while it stands.

A queue that forms and dissolves is a burst, and is served in full. A queue that stands adds
latency and no throughput: when the *smallest* wait of a whole interval was above the target,
whoever has waited for more than twice the target is turned away, oldest first, until the
waits are short again. Sources: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM
Queue 10(5), 2012; the doubled target and the first one served are from Ecto's db_connection.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from .slots import Slot


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller in the queue."""

    future: asyncio.Future[Slot]
    since: float
    """When it joined, by the monotonic clock."""


class WaitQueue:
    """Waiters in the order of their arrival.

    `target` and `interval` are seconds; without a target nobody is shed. Time is always the
    caller's `now`, by the monotonic clock.
    """

    def __init__(self, target: float | None, interval: float) -> None:
        self.target = target
        self.interval = interval
        # Ordered, and O(1) to leave: thousands of waiters may be cancelled at once.
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._standing = False
        self._smallest: float | None = None  # Smallest wait of this interval; None: none served.
        self._interval_ends = 0.0

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters)

    def join(self, waiter: Waiter) -> None:
        """Put a waiter at the end."""
        if not self._waiters:
            self.restart(waiter.since)
        self._waiters[waiter] = None

    def restart(self, now: float) -> None:
        """Take the queue for one that does not stand: for a moment, nobody had to wait."""
        self._standing = False
        self._smallest = 0.0
        if now >= self._interval_ends:
            self._interval_ends = now + self.interval

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out, wherever it stands."""
        self._waiters.pop(waiter, None)

    def clear(self) -> None:
        """Forget everybody: their event loop has ended."""
        self._waiters.clear()

    def oldest(self) -> Waiter | None:
        """Return the waiter that is next, past those whose caller has gone."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            if not waiter.future.done():
                return waiter
            del self._waiters[waiter]
        return None

    def serve(self, now: float) -> Waiter | None:
        """Take out the waiter that is next."""
        if (waiter := self.oldest()) is None:
            return None
        del self._waiters[waiter]
        waited = now - waiter.since
        self._smallest = waited if self._smallest is None else min(self._smallest, waited)
        return waiter

    def shed(self, now: float) -> Iterator[Waiter]:
        """Take out those who waited too long in a queue that stands; before each `serve`.

        The first call of an interval sheds nobody: it decides whether the queue stands.
        """
        if self.target is None or (oldest := self.oldest()) is None:
            return
        if now >= self._interval_ends:
            smallest = now - oldest.since if self._smallest is None else self._smallest
            self._standing = smallest > self.target
            self._smallest = None
            self._interval_ends = now + self.interval
        elif self._standing:
            yield from self.expire(now, 2 * self.target)

    def expire(self, now: float, age: float) -> Iterator[Waiter]:
        """Take out, one by one, those who have waited for `age` seconds or longer."""
        while (waiter := self.oldest()) and now - waiter.since >= age:
            del self._waiters[waiter]
            yield waiter

    def due(self, now: float) -> float:
        """Return the seconds until `shed` should be asked although nothing was returned."""
        if self.target is None:
            return inf
        return self.target if self._standing else max(self._interval_ends - now, 0.0)
