"""Several pieces of work drawn on a terminal, with rich. Imported by `lazy` alone."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelcache.cli.live_region import LiveRegion
from modelcache.cli.many_view import Looks, Sum
from modelcache.cli.output import Output
from modelcache.cli.progress_view import Look
from modelcache.cli.tables import printable

BAR_CELLS = 20
DRAW_S = 0.1
"""Looks come from many threads; the terminal gets this many seconds of them at once."""
OTHER_LINES = 3
"""Lines of a terminal that are left to the sum, to what is not shown, and to the prompt."""


class ManyBars:
    """A line with a bar for each piece of work in progress, under one over all of them; redrawn in place, cleared at the end."""

    def __init__(self, output: Output, pieces: int) -> None:
        self._looks = Looks(pieces)
        self._region = LiveRegion(output, pause_s=DRAW_S)

    def show(self, number: int, look: Look) -> None:
        found = self._looks.add(number, look)
        self._region.draw(lambda console: _drawn(found, console.width, console.height))

    def close(self) -> None:
        self._region.close()


def _drawn(found: Sum, width: int, height: int) -> RenderableType:
    room = max(1, height - OTHER_LINES)
    head = Table.grid(padding=(0, 1))
    head.add_row(
        ProgressBar(total=1.0, completed=found.share, width=BAR_CELLS),
        Text(f"{found.share:4.0%}"),
        Text(found.words(), no_wrap=True, overflow="ellipsis"),
    )
    rows = Table.grid(padding=(0, 1))
    for look in found.running[:room]:
        name = Text(printable(look.title), no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=1.0, completed=look.share, width=BAR_CELLS) if look.bytes_total else Text(f"{look.phase} …", style="dim")
        rows.add_row(bar, Text(f"{look.share:4.0%}" if look.bytes_total else ""), name)
    more = len(found.running) - room
    return Group(head, rows, *([Text(f"and {more} more", style="dim")] if more > 0 else []))
