"""A whole terminal that is redrawn, with rich. Imported by `lazy` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from modelcache.cli.output import Output
from modelcache.patience import Cancellation


def redraw(output: Output, draw: Callable[[int, int], Sequence[str]], interval_s: float) -> None:
    """Show what `draw` gives for the terminal's width and height, until it raises or the user interrupts; then all is as it was."""
    console = Console(file=output.out, no_color=not output.style.color, highlight=False, markup=False, emoji=False)
    pause = Cancellation()
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            lines = draw(console.width, console.height)
            live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
            pause.wait(interval_s)
