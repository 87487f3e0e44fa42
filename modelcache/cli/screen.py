"""Progress drawn on a terminal, with rich. Imported by `lazy` alone."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelcache.cli.live_region import LiveRegion
from modelcache.cli.output import Output
from modelcache.cli.progress_view import Look
from modelcache.cli.tables import printable

BAR_CELLS = 40


class BarView:
    """A bar and a line of words under the name of what is worked on, redrawn in place and cleared at the end."""

    def __init__(self, output: Output) -> None:
        self._region = LiveRegion(output)

    def show(self, look: Look) -> None:
        self._region.draw(lambda console: _drawn(look, console.width))

    def close(self) -> None:
        self._region.close()


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
