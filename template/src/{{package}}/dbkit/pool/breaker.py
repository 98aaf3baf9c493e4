"""The breaker of a pool: stop asking a server that does not answer."""

import random
from typing import Literal

BreakerState = Literal["closed", "open", "probing"]

FIRST_DELAY = 0.1
LONGEST_DELAY = 0.5
"""Seconds between attempts, doubled from the first to the longest, each varied by half.

A pool asks once at a time. 100 processes ask 200 times a second, which costs PostgreSQL 0.3 s of
CPU when it refuses each of them after its fork, and next to nothing before.
"""


class Breaker:
    """Counts failures in a row, and says when to ask again.

    Closed: connect as needed. Open: `threshold` attempts in a row failed, so nothing is asked
    before `retry_at`. Probing: one attempt is under way, and its outcome decides. Delays are
    varied so that the processes of a service do not all return in the same moment.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.state: BreakerState = "closed"
        self.failures = 0
        self.error: Exception | None = None
        self.failed_at = 0.0
        self.opened_at = 0.0
        self.retry_at = 0.0
        self._delay = FIRST_DELAY

    def doubt(self, error: Exception, now: float) -> None:
        """Count a failed ping.

        It never opens the breaker: connections that a firewall has dropped fail their pings on a
        healthy server. But it lets the next attempt to connect decide at once.
        """
        self.failures += 1
        self.failed_at = now
        self.error = error

    def fail(self, error: Exception, now: float) -> bool:
        """Count a failed attempt to connect; return whether it opened the breaker."""
        self.doubt(error, now)
        if self.failures < self.threshold or self.state == "open":
            return False  # When open, one that had begun before: it says nothing new.
        opened = self.state == "closed"
        if opened:
            self.opened_at = now
            self._delay = FIRST_DELAY
        else:
            self._delay = min(2 * self._delay, LONGEST_DELAY)
        self.state = "open"
        self.retry_at = now + self._delay * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret
        return opened

    def probe(self) -> None:
        """Begin the one attempt that decides."""
        self.state = "probing"

    def succeed(self) -> bool:
        """Note that the server answered; return whether that closed the breaker."""
        closed = self.state != "closed"
        self.state = "closed"
        self.failures = 0
        self.error = None
        return closed

    def retry_after(self, now: float) -> float:
        """Return the seconds after which asking this pool again may help."""
        return max(self.retry_at - now, FIRST_DELAY)
