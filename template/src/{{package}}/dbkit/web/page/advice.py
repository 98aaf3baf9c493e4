"""What to do, in sentences, from what a pool says of itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
HALF = 0.5
"""The part of all time that a route holds connections for something else, from which on too."""


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
    database: Database, pool: "FairPool | ThreadPool", holders: Sequence[Holder]
) -> list[str]:
    """Say what to do about what there is now, the most urgent first."""
    status = pool.snapshot()
    advice: list[str] = []
    if status.breaker != "closed" or not database.probe.is_up:
        advice.append(
            f"The server cannot be reached: see that it runs, and check {database.env_prefix}URL."
        )
    if status.suspended:
        advice.append("The pool is suspended: it hands out nothing until `resume()`.")
    advice += [about(each) for each in holders if each.ended or each.held >= LONG]
    return list(dict.fromkeys(advice))[:5]


def advise_size(
    database: Database,
    pool: "FairPool | ThreadPool",
    load: Load,
    routes: Mapping[str, RouteUse],
) -> list[str]:
    """Say how many connections the load needs, and first which route needs fewer."""
    limit = pool.snapshot().limit
    size = "POOL_SIZE" if pool is database.pool else "SYNC_POOL_SIZE"
    target = database.settings.queue_target or 0.05
    found = sizing.advise(load, target=target)
    sentence = f"{load.rate:.0f} checkouts/s of {1000 * load.hold:.1f} ms keep {load.busy:.2f} busy"
    if found.size is not None:
        sentence += f"; with {found.size}, 99 % wait for less than {1000 * found.target:.0f} ms"
        if found.size <= limit:
            return [f"{sentence}, and there are {limit}."]
    idle = {name: each.held - each.in_sql for name, each in routes.items()}
    name = max(idle, key=lambda each: idle[each])
    share = idle[name] / sum(each.held for each in routes.values())
    advice: list[str] = []
    if share >= HALF:
        use = routes[name]
        less = sizing.advise(replace(load, hold=load.hold * (1 - share)), target=target)
        advice.append(
            f"{name} holds a connection for {1000 * use.held / use.checkouts:.0f} ms,"
            f" {100 * use.in_sql / use.held:.0f} % of it in SQL: end the session before what else"
            f" it does, or begin it after; then a size of {less.size or less.floor} is enough."
        )
    if found.size is None:
        return [*advice, f"{sentence}: no pool carries that; shorten what holds connections."]
    hint = f"raise {database.env_prefix}{size}, or shorten what holds connections"
    return [*advice, f"{sentence}, and there are {limit}: {hint}."]


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
