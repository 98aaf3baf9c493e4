"""What to do, in sentences, from what a pool says of itself."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...database.database import Database
from ...errors import Holder
from ...pool.usage import RouteUse
from ...telemetry import sizing
from ...telemetry.sizing import Load

if TYPE_CHECKING:
    from ...pool import FairPool
    from ...pool.thread_pool import ThreadPool

WINDOW = 30.0
"""Seconds over which the load is measured."""
ENOUGH = 50
"""Checkouts from which on a measured load says something."""
LONG = 1.0
"""Seconds from which on a holder is worth a sentence."""


def measure(
    samples: Sequence[dict[str, Any]], routes: Iterable[RouteUse], *, window: float = WINDOW
) -> Load | None:
    """Measure the load of the last seconds, callers that were turned away included.

    How much hold times vary is taken from the routes since the start. None when it is too little.
    """
    if not samples:
        return None
    last = samples[-1]
    first = next(each for each in samples if last["at"] - each["at"] <= window)
    checkouts = last["checkouts"] - first["checkouts"]
    seconds = last["at"] - first["at"]
    if checkouts < ENOUGH:
        return None
    turned_away = last["turned_away"] - first["turned_away"]
    varied = [(each.checkouts, each.held / each.checkouts) for each in routes if each.checkouts]
    return Load(
        rate=(checkouts + turned_away) / seconds,
        hold=(last["held"] - first["held"]) / checkouts,
        variation=sizing.variation_of(varied),
    )


def advise(
    database: Database,
    pool: "FairPool | ThreadPool",
    holders: Sequence[Holder],
    load: Load | None,
) -> list[str]:
    """Say what to do, the most urgent first."""
    status, settings = pool.snapshot(), database.settings
    size = "POOL_SIZE" if pool is database.pool else "SYNC_POOL_SIZE"
    advice: list[str] = []
    if status.breaker != "closed" or not database.probe.is_up:
        advice.append(
            f"The server cannot be reached: see that it runs, and check {database.env_prefix}URL."
        )
    if status.suspended:
        advice.append("The pool is suspended: it hands out nothing until `resume()`.")
    advice += [about(each) for each in holders if each.ended or each.held >= LONG]
    advice = list(dict.fromkeys(advice))[:5]
    if load is None:
        return advice
    found = sizing.advise(load, target=settings.queue_target or 0.05)
    sentence = f"{load.rate:.0f} checkouts/s of {1000 * load.hold:.1f} ms keep {load.busy:.2f} busy"
    if found.size is None:
        return [*advice, f"{sentence}: no pool carries that; shorten what holds connections."]
    sentence += f"; with {found.size}, 99 % wait for less than {1000 * found.target:.0f} ms"
    if found.size > status.limit:
        hint = f"raise {database.env_prefix}{size}, or shorten what holds connections"
        return [*advice, f"{sentence}, and there are {status.limit}: {hint}."]
    return [*advice, f"{sentence}, and there are {status.limit}."]


def about(holder: Holder) -> str:
    """Say what to do about who holds a connection for long, or for good."""
    name = holder.route or f"Task {holder.task}"
    at = " at" if holder.is_there else ", taken at"
    where = f"{at} {holder.where[0]}" if holder.where else ""
    if holder.ended:
        return f"{name} ended, and its connection was not returned: close its session{where}."
    if holder.streams:
        return f"{name} has been streaming rows for long{where}."
    if holder.idle >= holder.held / 2:
        return (
            f"{name} holds a connection and waits for something else{where}:"
            " end the session before, or begin it after."
        )
    return f"{name} has been in SQL for long{where}: a slow statement, or a lock."
