"""The commands `manage.py pools`: what a running service says of its pools, and sizes."""

# ruff: noqa: PLC0415 -- as in commands.py
import json
import sys
import time
from dataclasses import asdict, replace
from math import isfinite
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer

from ..telemetry import sizing
from ..telemetry.sizing import Advice, Load

HERE = "http://127.0.0.1:8000"
TIMEOUT = 10.0
"""Seconds that the service has to answer."""
CLEAR = "\x1b[H\x1b[2J"

UrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", help="Where the service is; POOLS_TOKEN opens it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]

cli = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at the pools of a running service."
)


@cli.command()
def show(url: UrlOption = HERE, *, as_json: JsonOption = False) -> None:
    """Show numbers, holders, slowest routes and advice."""
    state = read(url)
    typer.echo(json.dumps(state, indent=2) if as_json else describe(state))


@cli.command()
def watch(url: UrlOption = HERE, *, as_json: JsonOption = False) -> None:
    """Show them each second, until Ctrl-C."""
    while True:
        state = read(url)
        if as_json:
            typer.echo(json.dumps(state))
        else:
            typer.echo(f"{CLEAR if sys.stdout.isatty() else ''}{describe(state)}")
        time.sleep(1)


@cli.command("set")
def change(
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE", help="LOG_LEVEL, or ECHO or LEAK_AFTER of a database."
        ),
    ],
    url: UrlOption = HERE,
) -> None:
    """Change settings of a running service, of all its workers, until they end."""
    if wrong := [each for each in changes if "=" not in each]:
        sys.exit(f"{wrong[0]}: write it as DATABASE_ECHO=true")
    answer = read(url, dict(each.split("=", 1) for each in changes))
    for name, value in answer["changed"].items():
        typer.echo(f"{name}={json.dumps(value)} in {processes(answer)}")


@cli.command()
def advise(
    rate: Annotated[
        float | None, typer.Option(help="Checkouts per second of one process.", min=0)
    ] = None,
    hold: Annotated[
        float | None, typer.Option(help="Seconds that each holds a connection.", min=0)
    ] = None,
    *,
    target: Annotated[float, typer.Option(help="Seconds that callers may wait.", min=0)] = 0.05,
    share: Annotated[
        float, typer.Option(help="The part of them that may not wait longer.", min=0.5, max=0.99999)
    ] = 0.99,
    seconds: Annotated[
        float, typer.Option(help="For how long a running service is measured.", min=1)
    ] = 10,
    url: UrlOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say how many connections a load needs.

    That is the load of a running service, unless --rate and --hold give one.
    """
    if (rate is None) != (hold is None):
        sys.exit("--rate and --hold belong together; without both, a running service is measured")
    loads = {"pool": Load(rate, hold)} if rate and hold else measured(url, seconds)
    found = {name: sizing.advise(load, target=target, share=share) for name, load in loads.items()}
    if as_json:
        typer.echo(json.dumps({name: numbers(each) for name, each in found.items()}, indent=2))
        return
    for name, each in found.items():
        typer.echo(f"{name}: {explain(each)}\n")
    typer.echo("This takes for granted that")
    for assumption in sizing.ASSUMPTIONS:
        typer.echo(f"  * {assumption}")


def measured(url: str, seconds: float) -> dict[str, Load]:
    """Measure the loads of a running service."""
    from ..pool.usage import RouteUse
    from ..web.page.advice import measure

    before = read(url)["samples"][-1]
    time.sleep(seconds)
    state = read(url)
    after = state["samples"][-1]
    loads: dict[str, Load] = {}
    for name, database in state["databases"].items():
        routes = [
            RouteUse(**{k: v for k, v in r.items() if k != "route"}) for r in database["routes"]
        ]
        samples = [{"at": each["at"], **each["databases"][name]} for each in (before, after)]
        if load := measure(samples, routes, window=seconds + TIMEOUT):
            loads[name] = replace(load, rate=load.rate / len(state.get("workers", [1])))
    if not loads:
        sys.exit(f"too little happened in {seconds:g} s to measure a load; see --seconds")
    return loads


def numbers(advice: Advice) -> dict[str, Any]:
    """Return advice as JSON takes it."""
    sizes = {"floor": advice.floor, "rule": advice.rule, "size": advice.size}
    return {**asdict(advice.load), "busy": advice.load.busy, **sizes, "waits": waits(advice)}


def waits(advice: Advice) -> dict[int, dict[str, float | None]]:
    """Return the waits with some sizes around the advised one; None grows for ever."""
    last = advice.size or advice.floor
    found: dict[int, dict[str, float | None]] = {}
    for size in range(max(advice.floor - 1, last - 5, 1), last + 3):
        mean, late = (
            sizing.mean_wait(advice.load, size),
            sizing.wait(advice.load, size, advice.share),
        )
        found[size] = {
            "mean": mean if isfinite(mean) else None,
            "share": late if isfinite(late) else None,
        }
    return found


def explain(advice: Advice) -> str:
    """Write advice for people."""
    load, percent = advice.load, f"{100 * advice.share:g} %"
    lines = [
        (
            f"{load.rate:.1f} checkouts/s, held for {1000 * load.hold:.1f} ms on average"
            f" (variation {load.variation:.1f}), keep {load.busy:.2f} connections busy"
        ),
        f"  {advice.floor:>4}  the least with which the queue does not grow for ever",
        f"  {advice.rule:>4}  by the rule of thumb: rate x hold, and 20 % more",
        f"  {advice.size or 'none':>4}  so that {percent} wait for {advice.target:g} s at the most",
        f"  with  wait, mean  wait, {percent}",
    ]
    for size, each in waits(advice).items():
        mean, late = (
            "for ever" if each[key] is None else f"{1000 * (each[key] or 0):.1f} ms"
            for key in ("mean", "share")
        )
        lines.append(f"  {size:>4}  {mean:>10}  {late:>10}{'  <-' if size == advice.size else ''}")
    return "\n".join(lines)


def describe(state: dict[str, Any]) -> str:
    """Write the state of a service for people."""
    lines = [f"{state['service']}, {processes(state)}"]
    loop = state.get("event_loop", {"latest": []})  # What an older service does not say yet.
    if loop["latest"]:
        lines += [
            "",
            f"event loop: blocked {loop['blocks']} x, {loop['blocked_seconds']:.2f} s in all",
        ]
    lines += [
        f"  {each['seconds']:8.2f} s  {each['ago']:4.0f} s ago  {each['by']}"
        f"  {' <- '.join(each['where'])}"
        for each in loop["latest"]
    ]
    for name, database in state["databases"].items():
        pool = database["pool"]
        limit = pool["pool_size"] + pool["max_overflow"]
        lines += [
            "",
            (
                f"{name}: {'up' if database['up'] else 'down'}; {pool['in_use']} of {limit} in use,"
                f" {pool['idle']} idle, {pool['waiting']} waiting, turned away since the start:"
                f" {pool['shed'] + pool['timeouts'] + pool['refused']}"
            ),
        ]
        for each in database["holders"]:
            who = each["route"] or f"task {each['task']}"
            lines.append(
                f"  {each['held']:8.2f} s  {percent_of(each['in_sql'], each['held'])} in SQL  {who}"
                f"{', streaming rows' if each.get('streams') else ''}"
                f"{', ended' if each['ended'] else ''}"
                f"  {'' if each.get('is_there', True) else 'taken at '}{' <- '.join(each['where'])}"
            )
        if database["routes"]:
            lines.append("  on average   longest  in SQL   times  route")
        lines += [
            f"  {1000 * each['held'] / max(each['checkouts'], 1):7.1f} ms {each['longest']:7.2f} s"
            f"  {percent_of(each['in_sql'], each['held'])}  {each['checkouts']:6}  {each['route']}"
            for each in database["routes"]
        ]
        lines += [f"  * {each}" for each in database["advice"]]
    # What routes and tasks are called is not ours: a terminal obeys control characters.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def processes(state: dict[str, Any]) -> str:
    """Say which processes the numbers are of."""
    workers = state.get("workers", [])  # An older service has none.
    if len(workers) > 1 or state.get("silent"):
        silent = f"; {state['silent']} more do not answer" if state["silent"] else ""
        return f"processes {', '.join(map(str, workers))}{silent}"
    several = f", one of {state['processes']}" if state.get("processes", 1) > 1 else ""
    return f"process {workers[0] if workers else state['process']}{several}"


def percent_of(part: float, whole: float) -> str:
    """Write a share in four characters and the sign."""
    return f"{100 * min(part / whole, 1) if whole else 0:4.0f} %"


def read(url: str, changes: dict[str, str] | None = None) -> dict[str, Any]:
    """Ask a running service for its state, or to change its settings."""
    from ..settings.database import environment
    from ..settings.service import read_service_settings

    if not url.startswith(("http://", "https://")):
        sys.exit(f"{url} is no URL; write it as {HERE}")
    token = read_service_settings(environment()).pools_token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = json.dumps(changes).encode() if changes else None
    request = Request(  # noqa: S310 -- see above
        f"{url.rstrip('/')}/pools/{'settings' if body else 'state'}",
        body,
        headers,
        method="PATCH" if body else "GET",
    )
    try:
        with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 -- see above
            return json.load(response)
    except HTTPError as error:
        if changes and error.code in {403, 422}:
            sys.exit(error.read().decode())
        sys.exit(REFUSALS.get(error.code, f"{url} answers {error.code}"))
    except (URLError, TimeoutError, ValueError) as error:
        sys.exit(
            f"{url} does not answer: {getattr(error, 'reason', error)}; name another with --url"
        )


REFUSALS = {
    401: "POOLS_TOKEN is not that of the service: set the same here",
    404: "the page of the pools is closed: set POOLS_TOKEN where the service runs, and here",
}
