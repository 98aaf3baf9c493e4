"""How many connections a pool needs: Little's law for the floor, Erlang's C for the queue.

A pool is a queue with many servers: callers arrive at some rate, and each holds one of the
connections for some time. Times are seconds, rates are per second and per process.
Sources: J. D. C. Little, "A Proof for the Queuing Formula L = λW", Operations Research 9(3),
1961. A. K. Erlang, "Solution of some Problems in the Theory of Probabilities of Significance in
Automatic Telephone Exchanges", 1917. For hold times that vary more, or less, than exponential
ones: the approximation of Allen and Cunneen; A. O. Allen, "Probability, Statistics, and Queueing
Theory", 2nd edition, 1990.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, inf, log

LARGEST = 1000
"""The largest `pool_size`; more load than it carries belongs in more processes."""

ASSUMPTIONS = (
    "callers arrive at random, and the rate is that of the busiest minute, not of the day",
    "a larger pool does not slow its holders down: the server has processors to spare",
    "callers are served in the order in which they came, and none is turned away",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the pool of one process."""

    rate: float
    """Checkouts per second."""
    hold: float
    """Seconds that each holds its connection, on average."""
    variation: float = 1.0
    """Variance of the hold times over their squared mean: 0 when all are equal, 1 when they are
    exponential, more when a few are far longer than most."""

    @property
    def busy(self) -> float:
        """Connections in use on average, by Little's law."""
        return self.rate * self.hold


@dataclass(frozen=True, slots=True)
class Advice:
    """The sizes that a load asks for."""

    load: Load
    target: float
    share: float
    size: int | None
    """The least that keeps the wait of `share` of the callers at or under `target` seconds; None
    where no pool does."""

    @property
    def floor(self) -> int:
        """The least with which the queue does not grow for ever."""
        return floor(self.load.busy) + 1

    @property
    def rule(self) -> int:
        """The rule of thumb: rate x hold, and a fifth more."""
        return max(ceil(self.load.busy * 1.2), 1)


def advise(load: Load, *, target: float = 0.05, share: float = 0.99) -> Advice:
    """Find the size that keeps the wait of `share` of the callers at or under `target` seconds."""
    start = floor(load.busy) + 1
    sizes = (size for size in range(start, LARGEST + 1) if wait(load, size, share) <= target)
    return Advice(load, target, share, next(sizes, None))


def probability_of_wait(busy: float, size: int) -> float:
    """Return the part of the callers that has to wait: Erlang's C; 1 where the queue grows.

    By the recursion for Erlang's B, whose terms stay between 0 and 1 for any size: the sums of
    the textbook, of powers and factorials, overflow from some 170 connections on.
    """
    if busy >= size:
        return 1.0
    blocked = 1.0
    for number in range(1, size + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return size * blocked / (size - busy * (1 - blocked))


def mean_wait(load: Load, size: int) -> float:
    """Return the wait of a caller on average, those that do not wait included."""
    return probability_of_wait(load.busy, size) * wait_of_waiters(load, size)


def wait(load: Load, size: int, share: float) -> float:
    """Return the wait that `share` of the callers (0.99) do not exceed."""
    waits = probability_of_wait(load.busy, size)
    if waits <= 1 - share:
        return 0.0
    return wait_of_waiters(load, size) * log(waits / (1 - share))


def wait_of_waiters(load: Load, size: int) -> float:
    """Return the wait, on average, of those that have to; it is distributed exponentially."""
    if load.busy >= size:
        return inf
    return load.hold / (size - load.busy) * (1 + load.variation) / 2


def variation_of(holds: Iterable[tuple[int, float]]) -> float:
    """Estimate `Load.variation` from routes: how often each was called, and its mean hold time.

    Each route's hold times are taken to be exponential, so the mixture varies more than that.
    """
    count = mean = square = 0.0
    for calls, hold in holds:
        count += calls
        mean += calls * hold
        square += calls * 2 * hold**2
    return square * count / mean**2 - 1 if mean else 1.0
