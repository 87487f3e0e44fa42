"""Lines of a terminal that are redrawn in place, with rich. Imported by `lazy` alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, RenderableType
from rich.live import Live

from modelcache.cli.output import Output


class LiveRegion:
    """The lines that an output draws over, from any thread; cleared at the end. Draws nothing once the terminal is gone.

    Args:
        pause_s: a draw this soon after the last one is left out.
    """

    def __init__(self, output: Output, *, pause_s: float = 0.0) -> None:
        console = Console(file=output.err, no_color=not output.style.color, highlight=False, markup=False, emoji=False)
        self._lock = threading.RLock()
        self._output = output
        self._pause_s = pause_s
        self._next_s = 0.0
        self._live: Live | None = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)

    def draw(self, drawn: Callable[[Console], RenderableType]) -> None:
        with self._lock:
            live, now_s = self._live, time.monotonic()
            if live is None or now_s < self._next_s:
                return
            self._next_s = now_s + self._pause_s
            try:
                if not self._output.drawing:
                    live.start()
                    self._output.drawing = True
                live.update(drawn(live.console), refresh=True)
            except OSError:
                self._live = None  # the terminal is gone; the work goes on

    def close(self) -> None:
        with self._lock:
            live, self._live = self._live, None
            if live is None or not self._output.drawing:
                return
            with suppress(OSError):  # as in draw
                live.stop()
            self._output.drawing = False
