"""`plot.py RESULTS.jsonl PICTURE.svg`: bars of medians for each contender, a column of panels per circumstance (VIEWS, for each bench).

A script of its own: it needs matplotlib (`requirements-plot.txt`) and nothing of modelcache.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

OURS, PEER, CEILING, BOUND = "#1f77b4", "#ff9f4a", "#7f7f7f", "#c7c7c7"
KINDS = {"ours": OURS, "peer": PEER, "ceiling": CEILING, "bound": BOUND}
MIB = 2.0**-20
Line = dict[str, Any]


@dataclass(frozen=True)
class View:
    """What of a bench's lines is drawn.

    Attributes:
        columns: lines that differ in one of these stand in different columns; how each value is said.
        bars: what a bar is called by; a number, with this word behind it.
        panels: from top to bottom, title, key and factor; the bars are sorted by the first.
    """

    columns: dict[str, str]
    bars: str
    panels: tuple[tuple[str, str, float], ...]


CPU = ("CPU s/GiB", "cpu_s_per_gib", 1.0)
LOADED = View({"state": "{}"}, "contender", (("GiB/s", "rate_gib_per_s", 1.0), CPU, ("peak / model", "peak_rss_share", 1.0)))
VIEWS = {
    "cli_start": View({}, "what", (("ms, median", "p50_ms", 1.0), ("ms, nine of ten", "p90_ms", 1.0))),
    "dedupe": View({"step": "{}"}, "contender", (("MiB fetched", "fetched_bytes", MIB), ("MiB on disk", "stored_bytes", MIB))),
    "fetch": View(
        {"server": "{}", "series": "{}", "files": "{} files"},
        "contender",
        (("GiB/s, fsync included", "rate_gib_per_s", 1.0), CPU, ("peak MiB", "peak_rss_bytes", MIB)),
    ),
    "gpu": View(LOADED.columns, LOADED.bars, (*LOADED.panels, ("device's peak / model", "peak_device_share", 1.0))),
    "hit": View({}, "files", (("hit, ms, median", "hit_p50_ms", 1.0), ("p99", "hit_p99_ms", 1.0), ("the first", "first_p50_ms", 1.0))),
    "load": LOADED,
    "ranks": View({"world": "{} ranks"}, "contender", (("read / model", "read_share", 1.0), CPU, ("peak / model", "peak_share", 1.0))),
    "store": View({"blobs": "{} blobs"}, "question", (("s", "wall_s", 1.0), ("peak MiB", "peak_rss_bytes", MIB))),
    "arriving": View({"world": "{} ranks"}, "contender", (("s, all tensors", "total_s", 1.0), ("s, first tensor", "first_s", 1.0), CPU)),
    "stream": View({"server": "{}"}, "contender", (("s, all tensors", "total_s", 1.0), ("s, first tensor", "first_tensor_s", 1.0), CPU)),
}


def main() -> None:
    source, picture = sys.argv[1:]
    lines = [json.loads(text) for text in Path(source).read_text().splitlines()]
    draw(VIEWS[lines[0]["bench"]], lines, picture)


def draw(view: View, lines: list[Line], picture: str) -> None:
    runs: defaultdict[str, defaultdict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        column = ", ".join(words.format(line[key]) for key, words in view.columns.items())
        bar = line[view.bars]
        runs[column][f"{bar} {view.bars}" if isinstance(bar, int) else bar].append(line)
    most = max(len(each) for each in runs.values())
    mpl.rcParams["svg.hashsalt"] = "modelcache"  # the same lines give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text as text: a tenth of the bytes
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(4.2 * len(runs), (0.26 * most + 1) * len(view.panels)), layout="constrained")
    axes = figure.subplots(len(view.panels), len(runs), squeeze=False)
    for at, (column, bars) in enumerate(runs.items()):
        for row, (title, key, factor) in enumerate(view.panels):
            _panel(axes[row][at], bars, _order(bars, view.panels[0][1]), key, factor)
            axes[row][at].set_title(f"{column}\n{title}" if column and row == 0 else title, fontsize=9)
    figure.savefig(picture, metadata={"Date": None})


def _order(bars: dict[str, list[Line]], key: str) -> list[str]:
    return sorted(bars, key=lambda name: median(line[key] for line in bars[name]))


def _panel(axes: Any, bars: dict[str, list[Line]], order: list[str], key: str, factor: float) -> None:
    """Bars of medians, with a dot for every run; none where a contender has no such figure."""
    for at, name in enumerate(order):
        values = [line[key] * factor for line in bars[name] if line[key] is not None]
        if not values:
            continue
        middle = median(values)
        axes.barh(at, middle, color=_colour(name, bars[name][0]), height=0.72)
        axes.plot(values, [at] * len(values), ".", color="black", markersize=3)
        axes.annotate(f" {middle:.2f}" if middle < 10 else f" {middle:.0f}", (max(values), at), va="center", fontsize=7)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.margins(x=0.14)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str, line: Line) -> str:
    """By the kind that the line states; else by the contender's name; where nobody else is measured, all are ours."""
    if "kind" in line:
        return KINDS[line["kind"]]
    if name.startswith(("ceiling", "mmap-touch", "python ")):
        return CEILING
    mine = "contender" not in line or name in ("modelcache", "together", "alone") or "ours" in name
    return OURS if mine and not name.startswith("typer") else PEER


if __name__ == "__main__":
    main()
