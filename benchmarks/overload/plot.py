"""Write `results.json` into the documentation: two pictures, one for phones, and a table.

uv run --group plots python -m benchmarks.overload.plot
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PICTURES = DOCS / "images"
PAGE = DOCS / "pool.md"
BEGIN, END = "<!-- overload: written by benchmarks/overload/plot.py -->", "<!-- /overload -->"
LABELS = {"stock": "SQLAlchemy's queue pool", "fair": "FairPool"}
COLOURS = {"stock": "#b0413e", "fair": "#1f6f8b"}


def table(results: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    rows = ["| | SQLAlchemy's queue pool | FairPool |", "| --- | --- | --- |"]

    def row(name: str, sentence: Callable[[dict[str, Any]], str], of: dict[str, Any]) -> None:
        rows.append(f"| {name} | {sentence(of['stock'])} | {sentence(of['fair'])} |")

    for load in (key for key in results if key.replace(".", "").isdigit()):
        row(
            f"{load} x capacity ({results['capacity']:.0f}/s)",
            under_load,
            results[load],
        )
    row(
        "four bursts of 80",
        lambda each: f"{each['served']:g} served, {each['refused']:g} refused",
        results["burst"],
    )
    row(
        "cold start: clients wait 30 ms, a connect takes 60 ms",
        lambda each: f"{each['served']:g} of {each['sent']:g} served",
        results["cold_start"],
    )
    row(
        "a server that refuses: 100 requests at once",
        lambda each: (
            f"{each['within_0.1_s']} told within 0.1 s, the last after {each['last']:.2f} s"
        ),
        results["refused"],
    )
    cost = results["checkout_cost"]
    rows.append(
        f"| CPU of a checkout without a queue | {cost['stock']:.0f} us | {cost['fair']:.0f} us"
        f" (x {cost['ratio']:.3f}, the quickest fifth of 200 rounds) |"
    )
    return "\n".join(rows)


def under_load(each: dict[str, Any]) -> str:
    """Write the figures of one contender under one load."""
    text = f"{each['good']:.0f} good/s, p50 {milliseconds(each['p50'])},"
    text += f" p99 {milliseconds(each['p99'])}; {100 * (each['wasted'] or 0):.0f}% wasted"
    if each["time_to_error"] is not None:
        text += f"; turned away after {milliseconds(each['time_to_error'])}"
    return text


def milliseconds(seconds: float | None) -> str:
    """Write a time, or that there is none."""
    return "none" if seconds is None else f"{1000 * seconds:.0f} ms"


def main() -> None:
    """Write both."""
    results: dict[str, Any] = json.loads((HERE / "results.json").read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")
    plt.rcParams["svg.hashsalt"] = "overload"  # The same figures draw the same file.
    draw(results, PICTURES / "overload.svg", {"ncols": 2, "figsize": (9, 3.4)})
    draw(results, PICTURES / "overload-narrow.svg", {"nrows": 2, "figsize": (4.5, 6.4)})


def draw(results: dict[str, Any], picture: Path, shape: dict[str, Any]) -> None:
    """Draw good responses, and their p99, against the load."""
    loads = [key for key in results if key.replace(".", "").isdigit()]
    figure, (good, slow) = plt.subplots(layout="constrained", **shape)
    for offset, contender in ((-0.2, "stock"), (0.2, "fair")):
        rounds = [results[load][contender] for load in loads]
        places = [place + offset for place in range(len(loads))]
        shares = [100 * each["good"] / results["capacity"] for each in rounds]
        bars = good.bar(places, shares, 0.38, label=LABELS[contender], color=COLOURS[contender])
        good.bar_label(bars, fmt="%.0f", fontsize=8)
        waits = [1000 * each["p99"] for each in rounds]
        slow.plot(range(len(loads)), waits, "o-", color=COLOURS[contender])
        for place, (load, wait) in enumerate(zip(loads, waits, strict=True)):
            is_slower = wait == max(1000 * each["p99"] for each in results[load].values())
            slow.annotate(
                f"{wait:.0f}",
                (place, wait),
                (0, 5 if is_slower else -12),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    good.set(title="Good responses", ylabel="% of capacity", xlabel="offered load, x capacity")
    slow.set(title="p99 of the good ones", ylabel="ms", xlabel="offered load, x capacity")
    slow.set(yscale="log", ylim=(10, 5000))
    slow.set_yticks([10, 100, 1000], ["10", "100", "1000"])
    slow.minorticks_off()
    for axes in (good, slow):
        axes.set_xticks(range(len(loads)), loads)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
