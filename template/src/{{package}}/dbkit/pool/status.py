"""What a pool says of itself in numbers."""

from dataclasses import dataclass

from .breaker import BreakerState


@dataclass
class Counters:
    """What has happened since the engine was created; they only grow."""

    connects: int = 0
    """Connections that were opened."""
    connect_seconds: float = 0.0
    """What opening them took, in all."""
    connect_errors: int = 0
    """Attempts to open one that failed."""
    pings: int = 0
    ping_errors: int = 0
    waits: int = 0
    """Checkouts that had to wait, and were served."""
    wait_seconds: float = 0.0
    """What they waited, in all."""
    timeouts: int = 0
    """Callers that waited for `pool_timeout` in vain."""
    shed: int = 0
    """Callers turned away because the queue stood, or was full."""
    refused: int = 0
    """Callers told that the server cannot be reached."""
    retired: int = 0
    """Connections closed in good health: too old, idle for too long, or too many."""
    lost: int = 0
    """Connections found dead, invalidated, or taken out of the pool."""
    reclaimed: int = 0
    """Connections that were never returned, and that nothing referred to any more; also `lost`."""
    native: int = 0
    """Single statements that asyncpg ran without a greenlet; see `native.py`."""


@dataclass(kw_only=True)
class PoolStatus(Counters):
    """A pool at one moment. Times are seconds.

    (Each error has one, and under overload there are many: frozen, it would take three times as
    long to make.)
    """

    name: str
    pool_size: int
    """Connections that are kept."""
    max_overflow: int
    """Connections that may be opened beyond them, under pressure."""
    in_use: int
    idle: int
    """Open and not in use, including those that are being pinged."""
    connecting: int
    closing: int
    """Being closed; they count towards the limit until they are."""
    waiting: int
    """Callers in the queue."""
    oldest_wait: float
    breaker: BreakerState
    suspended: bool
    closed: bool

    @property
    def limit(self) -> int:
        """Connections that may be open at once."""
        return self.pool_size + self.max_overflow

    def __str__(self) -> str:
        text = (
            f"{self.in_use} of {self.limit} in use, {self.idle} idle,"
            f" {self.connecting} connecting, {self.waiting} waiting"
        )
        if self.waiting:
            text += f", the oldest for {self.oldest_wait:.2f} s"
        return f"{text}, suspended" if self.suspended else text
