"""Several pieces of work drawn on a terminal, with rich. Imported by `lazy` alone."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
        console = Console(file=output.err, no_color=not output.style.color, highlight=False, markup=False, emoji=False)
        self._lock = threading.RLock()
        self._output = output
        self._looks = Looks(pieces)
        self._next_s = 0.0
        self._live: Live | None = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)

    def show(self, number: int, look: Look) -> None:
        found = self._looks.add(number, look)
        with self._lock:
            live, now_s = self._live, time.monotonic()
            if live is None or now_s < self._next_s:
                return
            self._next_s = now_s + DRAW_S
            try:
                if not self._output.drawing:
                    live.start()
                    self._output.drawing = True
                live.update(_drawn(found, live.console.width, live.console.height), refresh=True)
            except OSError:
                self._live = None  # the terminal is gone; the work goes on

    def close(self) -> None:
        with self._lock:
            live, self._live = self._live, None
            if live is None or not self._output.drawing:
                return
            with suppress(OSError):  # as in show
                live.stop()
            self._output.drawing = False


def _drawn(found: Sum, width: int, height: int) -> RenderableType:
    room = max(1, height - OTHER_LINES)
    head = Table.grid(padding=(0, 1))
    head.add_row(ProgressBar(total=1.0, completed=found.share, width=BAR_CELLS), Text(f"{found.share:4.0%}"), Text(found.words()))
    rows = Table.grid(padding=(0, 1))
    for look in found.running[:room]:
        name = Text(printable(look.title), no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=1.0, completed=look.share, width=BAR_CELLS) if look.bytes_total else Text(f"{look.phase} …", style="dim")
        rows.add_row(bar, Text(f"{look.share:4.0%}" if look.bytes_total else ""), name)
    more = len(found.running) - room
    return Group(head, rows, *([Text(f"and {more} more", style="dim")] if more > 0 else []))
