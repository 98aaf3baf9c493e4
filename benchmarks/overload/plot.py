"""Draw `results.json` into the documentation.

uv run --group plots python -m benchmarks.overload.plot
"""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "images" / "overload.svg"
LABELS = {"stock": "SQLAlchemy's queue pool", "fair": "FairPool"}
COLOURS = {"stock": "#b0413e", "fair": "#1f6f8b"}


def main() -> None:
    """Draw good responses, and the slowest of them, against the load."""
    results: dict[str, Any] = json.loads((HERE / "results.json").read_text())
    loads = [key for key in results if key.replace(".", "").isdigit()]
    figure, (good, slow) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for offset, contender in ((-0.2, "stock"), (0.2, "fair")):
        rounds = [results[load][contender] for load in loads]
        places = [place + offset for place in range(len(loads))]
        shares = [100 * each["good"] / results["capacity"] for each in rounds]
        bars = good.bar(places, shares, 0.38, label=LABELS[contender], color=COLOURS[contender])
        good.bar_label(bars, fmt="%.0f", fontsize=8)
        waits = [1000 * (each["p99"] or 0) for each in rounds]
        bars = slow.bar(places, waits, 0.38, color=COLOURS[contender])
        slow.bar_label(bars, [f"{wait:.0f}" if wait else "none" for wait in waits], fontsize=8)
    good.set(title="Good responses", ylabel="% of capacity", xlabel="offered load, x capacity")
    slow.set(title="p99 of the good ones", ylabel="ms", xlabel="offered load, x capacity")
    slow.set_yscale("symlog", linthresh=10)
    for axes in (good, slow):
        axes.set_xticks(range(len(loads)), loads)
        axes.spines[["top", "right"]].set_visible(False)
    good.legend(frameon=False, fontsize=8, loc="lower left")
    PICTURE.parent.mkdir(exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "overload"  # The same figures draw the same file.
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
