"""Write `results.json` into the documentation: tables and a picture.

uv run --group plots python -m benchmarks.throughput.plot
"""

import json
import math
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt

from .__main__ import CONTENDERS, HERE, LOADS, SCENARIOS

DOCS = HERE.parents[1] / "docs"
PICTURE = DOCS / "images" / "throughput.svg"
PAGE = DOCS / "performance.md"
BEGIN = "<!-- throughput: written by benchmarks/throughput/plot.py -->"
END = "<!-- /throughput -->"
HEADINGS = {
    "read": "one row by key",
    "list": "list of 20",
    "insert": "insert",
    "both": "one row from each of two databases",
}
OURS = {"rendered", "rendered_logging", "rendered_collected", "example"}
STEPS = {
    "read": "columns, by a reader",
    "object": "an object, by a reader",
    "session": "an object, in a session",
    "driver": "the driver's own connection",
}


def table(rows: list[list[str]]) -> str:
    """Write rows as Markdown; the first is the heading."""
    heading, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *others))


def rate(each: dict[str, float]) -> str:
    """Write a rate, and its spread."""
    return f"{each['rate']:,.0f} ({each['least']:,.0f} to {each['most']:,.0f})"


def milliseconds(seconds: float) -> str:
    """Write a time."""
    return f"{1000 * seconds:.1f}"


def tables(results: dict[str, Any]) -> str:
    """Write all tables."""
    names = {each: label for each, label in CONTENDERS.items() if each in results}
    run, trips = results["run"], results["round trips"]
    parts = [
        f"Requests per second, 32 clients, one process; medians of {run['rounds']} rounds (range).",
        table(
            [
                ["", *HEADINGS.values()],
                *(
                    [label, *(rate(results[each][f"{name} 32"]) for name in SCENARIOS)]
                    for each, label in names.items()
                ),
            ]
        ),
        "One row by key: p50 and p99 in ms by clients, CPU in us, errors (503s are among them).",
        table(
            [
                ["", "1", "32", "256", "CPU", "errors"],
                *(
                    [
                        label,
                        *(latency(results[each][f"read {number}"]) for number in (1, 32, 256)),
                        f"{1e6 * results[each]['read 32']['cpu']:.0f}",
                        f"{sum(results[each][f'{n} {c}']['errors'] for n, c in LOADS):g}",
                    ]
                    for each, label in names.items()
                ),
            ]
        ),
        "Round trips for each request; connections to the first database; start, s.",
        table(
            [
                ["", *HEADINGS.values(), "connections", "start", "MiB"],
                *(
                    [
                        label,
                        *(f"{trips[each][name]:.1f}" for name in SCENARIOS),
                        f"{trips[each]['connections']:g}",
                        f"{results[each]['start']['s']:.2f}",
                        f"{results[each]['start']['MiB']:.0f}",
                    ]
                    for each, label in names.items()
                ),
            ]
        ),
        "What each way to read one row is worth, in the rendered service at 32 clients.",
        table(
            [
                ["", "requests per second", "CPU, us"],
                *(
                    [STEPS[name], rate(each), f"{1e6 * each['cpu']:.0f}"]
                    for name, each in results["steps"].items()
                ),
            ]
        ),
        "Where the work goes: calls of Python and C for one row by key, counted.",
        table(profile_rows(results["profiles"])),
        "How it grows; the update is one from the first release.",
        table(
            [
                ["pool size, 32 clients", "requests per second", "p99, ms"],
                *(
                    [size, rate(each), milliseconds(each["p99"])]
                    for size, each in results["pool sizes"].items()
                ),
            ]
        ),
        table(
            [
                ["databases", "start, s", "MiB", "rendering, s", "update, s"],
                *(
                    [
                        n,
                        f"{each['start']:.2f}",
                        f"{each['MiB']:.0f}",
                        f"{each['render']:.1f}",
                        f"{each['update']:.1f}",
                    ]
                    for n, each in results["growth"].items()
                ),
            ]
        ),
    ]
    return "\n\n".join(parts)


def profile_rows(profiles: dict[str, dict[str, float]]) -> list[list[str]]:
    """Write the calls of each layer, a column for each service."""
    layers = list(dict.fromkeys(layer for each in profiles.values() for layer in each))
    return [
        ["", *(CONTENDERS[each] for each in profiles)],
        *(
            [layer, *(f"{each.get(layer, 0):.0f}" for each in profiles.values())]
            for layer in layers
        ),
        ["all", *(f"{sum(each.values()):,.0f}" for each in profiles.values())],
    ]


def latency(each: dict[str, float]) -> str:
    """Write p50 and p99."""
    if math.isnan(each["p50"]):
        return "none answered in a window"
    return f"{milliseconds(each['p50'])}, {milliseconds(each['p99'])}"


def draw(results: dict[str, Any]) -> None:
    """Draw the rates at 32 clients."""
    names = [each for each in reversed(CONTENDERS) if each in results]
    figure, plots = plt.subplots(1, len(SCENARIOS), figsize=(11, 3.4), layout="constrained")
    for axes, scenario in zip(plots, SCENARIOS, strict=True):
        rates = [results[each][f"{scenario} 32"]["rate"] for each in names]
        colours = ["#1f6f8b" if each in OURS else "#b9c3c9" for each in names]
        bars = axes.barh(range(len(names)), rates, color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
        axes.set_title(fill(HEADINGS[scenario], 22), fontsize=9)
        axes.set_xticks([])
        axes.set_yticks(range(len(names)), [CONTENDERS[each].strip("*") for each in names])
        axes.tick_params(labelsize=7, labelleft=scenario == "read")
        axes.margins(x=0.25)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "throughput"  # The same figures draw the same file.
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Write both."""
    results: dict[str, Any] = json.loads((HERE / "results.json").read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    picture = f"![Requests per second](images/{PICTURE.name})"
    PAGE.write_text(f"{before}{BEGIN}\n\n{picture}\n\n{tables(results)}\n\n{END}{after}")
    draw(results)


if __name__ == "__main__":
    main()
