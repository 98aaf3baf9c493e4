"""What can be set on a pool."""

from dataclasses import dataclass

from sqlalchemy import exc


@dataclass(frozen=True)
class PoolOptions:
    """The arguments of `FairPool`. Times are seconds; see there for the defaults."""

    pool_size: int
    """Connections that are kept."""
    max_overflow: int
    """Connections that may be opened beyond them, under pressure."""
    timeout: float
    """A caller waits no longer than this (`PoolTimeout`)."""
    recycle: float
    """Age at which a connection is replaced, less up to a fifth; -1 is never."""
    queue_target: float | None
    """Wait above which a queue is too long; None turns nobody away."""
    queue_interval: float
    """While even the shortest wait of an interval is above the target, callers that have waited
    for twice the target are turned away (`PoolOverloaded`)."""
    max_waiting: int | None
    """So many may wait, the next is turned away at once; None is any number."""
    idle_timeout: float
    """Connections beyond `pool_size` are closed when they were unused for this long."""
    keepalive: float | None
    """Idle connections are pinged this often; None is never."""
    ping_after: float
    """A connection unused for this long is pinged before it is handed out."""
    ping_timeout: float
    """When a ping has failed."""
    connect_timeout: float
    """When an attempt to connect has failed."""
    breaker_threshold: int
    """After so many failures in a row nothing is asked of the server for a moment, and callers
    are told at once (`Unreachable`)."""
    env_prefix: str
    """Begins the names of the environment variables in messages."""

    def __post_init__(self) -> None:
        if self.pool_size < 1 or self.max_overflow < 0:
            message = (
                f"pool_size must be 1 or more (not {self.pool_size}), and max_overflow 0 or more"
                f" (not {self.max_overflow}): this pool is never unlimited"
            )
            raise exc.ArgumentError(message)

    @property
    def limit(self) -> int:
        """Connections that may be open at once."""
        return self.pool_size + self.max_overflow
