"""Write `results.json` into the documentation: two pictures, one for phones, and a table.

uv run --group plots python -m benchmarks.sizing.plot
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "template" / "src" / "{{package}}"))

from dbkit.telemetry.sizing import Load, mean_wait, wait  # noqa: E402

DOCS = HERE.parents[1] / "docs"
PICTURES = DOCS / "images"
PAGE = DOCS / "sizing.md"
BEGIN, END = "<!-- sizing: written by benchmarks/sizing/plot.py -->", "<!-- /sizing -->"
EXAMPLE = Load(rate=200, hold=0.02)
SIZES = range(5, 13)
COLOURS = {"mean": "#1f6f8b", "share": "#b0413e"}
LABELS = {"mean": "on average", "share": "p99"}


def table(results: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    rows = [
        "| connections | busy | | predicted | simulated | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size, each in results["sizes"].items():
        for key, label in (("mean", "mean wait"), ("share", "p99")):
            waits = each[key]
            cells = " | ".join(
                f"{1000 * waits[how]:.1f} ms ({100 * (waits[how] / waits['predicted'] - 1):+.0f}%)"
                for how in ("simulated", "measured")
            )
            predicted = f"{1000 * waits['predicted']:.1f} ms"
            rows.append(f"| {size} | {each['busy']:.2f} | {label} | {predicted} | {cells} |")
    return "\n".join(rows)


def draw(results: dict[str, Any], picture: Path, shape: dict[str, Any]) -> None:
    """Draw the wait against the size, and what was measured beside what is predicted."""
    figure, (curve, beside) = plt.subplots(layout="constrained", **shape)
    for key, waits in {
        "mean": [1000 * mean_wait(EXAMPLE, size) for size in SIZES],
        "share": [1000 * wait(EXAMPLE, size, 0.99) for size in SIZES],
    }.items():
        curve.plot(list(SIZES), waits, "o-", label=LABELS[key], color=COLOURS[key])
    curve.axhline(50, color="grey", linestyle="--", linewidth=1)
    curve.set(title="200 checkouts/s of 20 ms: 4 busy", xlabel="connections", ylabel="wait, ms")
    curve.legend(frameon=False, fontsize=8)
    sizes = list(results["sizes"])
    for offset, key in ((-0.2, "mean"), (0.2, "share")):
        places = [place + offset for place in range(len(sizes))]
        each = [results["sizes"][size][key] for size in sizes]
        measured = [1000 * one["measured"] for one in each]
        beside.bar(places, measured, 0.36, color=COLOURS[key], label=f"{LABELS[key]}, measured")
        predicted = [1000 * one["predicted"] for one in each]
        beside.plot(places, predicted, "k_", markersize=18, markeredgewidth=2)
    beside.plot([], [], "k_", label="predicted")
    beside.set(title="A real load", xlabel="connections", ylabel="wait, ms", yscale="log")
    beside.set_xticks(range(len(sizes)), sizes)
    beside.legend(frameon=False, fontsize=8)
    for axes in (curve, beside):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, metadata={"Date": None})


def main() -> None:
    """Write both."""
    results: dict[str, Any] = json.loads((HERE / "results.json").read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")
    plt.rcParams["svg.hashsalt"] = "sizing"  # The same figures draw the same file.
    draw(results, PICTURES / "sizing.svg", {"ncols": 2, "figsize": (9, 3.4)})
    draw(results, PICTURES / "sizing-narrow.svg", {"nrows": 2, "figsize": (4.5, 6.4)})


if __name__ == "__main__":
    main()
