"""Progress drawn on a terminal, with rich. Imported by `lazy` alone."""

from __future__ import annotations

import threading
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelcache.cli.output import Output
from modelcache.cli.progress_view import Look
from modelcache.cli.tables import printable

BAR_CELLS = 40


class BarView:
    """A bar and a line of words under the name of what is worked on, redrawn in place and cleared at the end."""

    def __init__(self, output: Output) -> None:
        console = Console(file=output.err, no_color=not output.style.color, highlight=False, markup=False, emoji=False)
        self._lock = threading.RLock()
        self._output = output
        self._live: Live | None = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)

    def show(self, look: Look) -> None:
        with self._lock:
            live = self._live
            if live is None:
                return
            try:
                if not self._output.drawing:
                    live.start()
                    self._output.drawing = True
                live.update(_drawn(look, live.console.width), refresh=True)
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


def _drawn(look: Look, width: int) -> RenderableType:
    title = Text(printable(look.title), style="bold", no_wrap=True, overflow="ellipsis")
    if not look.bytes_total:
        return Group(title, Text(_fitting([f"{look.phase} …", *look.words()], width), style="dim", no_wrap=True, overflow="ellipsis"))
    cells = max(10, min(BAR_CELLS, width - 20))
    head = Table.grid(padding=(0, 1))
    head.add_row(Text(f"{look.phase:<10}"), ProgressBar(total=1.0, completed=look.share, width=cells), Text(f"{look.share:4.0%}"))
    return Group(title, head, Text(_fitting(look.words(), width), no_wrap=True, overflow="ellipsis"))


def _fitting(words: list[str], width: int) -> str:
    """As many of the words, from the first on, as fit into one line."""
    line = words[0]
    for word in words[1:]:
        if len(line) + 2 + len(word) > width:
            break
        line = f"{line}, {word}"
    return line
