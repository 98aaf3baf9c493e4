"""What several workers say of their pools, as one."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

MOST = 20
"""Holders, and routes, that are shown."""
LATEST = 5
"""Blocks of event loops that are shown."""

State = dict[str, Any]


def combine(states: Sequence[State]) -> State:
    """Add the states of workers up; settings are those of the first."""
    names = dict.fromkeys(chain.from_iterable(each["databases"] for each in states))
    loops = [each["event_loop"] for each in states]
    latest = chain.from_iterable(each["latest"] for each in loops)
    return states[0] | {
        "workers": [each["process"] for each in states],
        "event_loop": added(loops, latest=sorted(latest, key=lambda block: block["ago"])[:LATEST]),
        "databases": {
            name: combine_database([each for each in states if name in each["databases"]], name)
            for name in names
        },
    }


def combine_database(states: Sequence[State], name: str) -> State:
    """Add up what workers say of one database."""
    of_each = [each["databases"][name] for each in states]
    holders = chain.from_iterable(
        ({**holder, "process": state["process"]} for holder in each["holders"])
        for state, each in zip(states, of_each, strict=True)
    )
    routes: dict[str, list[State]] = {}
    for each in chain.from_iterable(each["routes"] for each in of_each):
        routes.setdefault(each["route"], []).append(each)
    pools = [each["pool"] for each in of_each]
    busiest = max(of_each, key=lambda each: busy(each["load"]))
    return of_each[0] | {
        "up": all(each["up"] for each in of_each),
        "pool": added(pools, oldest_wait=max(each["oldest_wait"] for each in pools)),
        "holders": first(holders, lambda each: each["held"]),
        "routes": first(
            (added(of, longest=max(each["longest"] for each in of)) for of in routes.values()),
            lambda each: each["held"] / max(each["checkouts"], 1),
        ),
        "load": busiest["load"],
        "advice": [
            *dict.fromkeys(chain.from_iterable(each["advice"] for each in of_each)),
            *busiest["sizing"],
        ],
    }


def add_samples(states: Iterable[State]) -> dict[str, Any]:
    """Add up the numbers of pools whose course is drawn."""
    samples: dict[str, list[State]] = {}
    for each in states:
        for name, sample in each["sample"].items():
            samples.setdefault(name, []).append(sample)
    return {name: added(each) for name, each in samples.items()}


def added(parts: Sequence[State], **others: Any) -> State:
    """Add numbers up; of states and names take the last by the alphabet: `open` before `closed`."""
    found = {
        key: (max if isinstance(value, str | bool) else sum)(part[key] for part in parts)
        for key, value in parts[0].items()
        if key not in others
    }
    return found | others


def first(found: Iterable[State], key: Callable[[State], float]) -> list[State]:
    """Return those that are shown, the greatest first."""
    return sorted(found, key=key, reverse=True)[:MOST]


def busy(load: State | None) -> float:
    """Return how many connections a load keeps busy."""
    return load["rate"] * load["hold"] if load else 0.0
