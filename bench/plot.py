"""`plot.py RESULTS.jsonl PICTURE.svg`: speed, CPU and memory of every contender, a column of panels per server and series.

A script of its own: it needs matplotlib (`requirements-plot.txt`) and nothing of modelcache.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {"ours": "#1f77b4", "peer": "#ff9f4a", "ceiling": "#7f7f7f", "bound": "#c7c7c7"}
PANELS = (
    ("GiB/s, fsync included", "rate_gib_per_s", 1.0),
    ("CPU s/GiB of the client", "cpu_s_per_gib", 1.0),
    ("peak MiB of the client", "peak_rss_bytes", 2.0**-20),
)


def main() -> None:
    source, picture = sys.argv[1:]
    runs: defaultdict[tuple[str, str], defaultdict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for text in Path(source).read_text().splitlines():
        line = json.loads(text)
        runs[line["server"], line["series"]][line["contender"]].append(line)
    most = max(len(each) for each in runs.values())
    mpl.rcParams["svg.hashsalt"] = "modelcache"  # the same lines give the same file
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(4.2 * len(runs), (0.26 * most + 1) * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), len(runs), squeeze=False)
    for column, ((server, series), contenders) in enumerate(runs.items()):
        for row, (title, key, factor) in enumerate(PANELS):
            _panel(axes[row][column], contenders, key, factor)
            axes[row][column].set_title(f"{server}, {series}: {title}", fontsize=9)
    figure.savefig(picture, metadata={"Date": None})


def _panel(axes: Any, contenders: dict[str, list[dict[str, Any]]], key: str, factor: float) -> None:
    """Bars of medians, with a dot for every run."""
    order = sorted(contenders, key=lambda name: median(line["rate_gib_per_s"] for line in contenders[name]))
    for at, name in enumerate(order):
        values = [line[key] * factor for line in contenders[name]]
        middle = median(values)
        axes.barh(at, middle, color=COLOURS[contenders[name][0]["kind"]], height=0.72)
        axes.plot(values, [at] * len(values), ".", color="black", markersize=3)
        axes.annotate(f" {middle:.2f}" if middle < 10 else f" {middle:.0f}", (max(values), at), va="center", fontsize=7)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
