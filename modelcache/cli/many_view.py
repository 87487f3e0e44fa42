"""How several pieces of work at once are shown: a bar each and one over all on a terminal, lines elsewhere, JSON lines with `--json`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from modelcache.cli import lazy
from modelcache.cli.output import Output
from modelcache.cli.progress_view import EVENT_INTERVAL_S, LINE_INTERVAL_S, Look, PacedView, SilentView, line_of
from modelcache.units import format_bytes, format_rate

ENDED = "done"
"""The phase of a piece of work that is over."""


class ManyView(Protocol):
    """Shows looks at pieces of work, each under its number. Safe for many threads; never raises because of the stream."""

    def show(self, number: int, look: Look) -> None: ...

    def close(self) -> None:
        """Clear what was drawn. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Sum:
    """All pieces of work together.

    Attributes:
        running: those in progress, in the order of their numbers.
        share: from 0 to 1, each piece of work weighing the same: what has not begun has no size yet.
    """

    running: tuple[Look, ...]
    ended: int
    pieces: int
    bytes_done: int
    bytes_total: int
    rate_bytes_per_s: float
    share: float

    def words(self) -> str:
        words = [f"{self.ended} of {self.pieces} done"]
        if self.bytes_total:
            words.append(f"{format_bytes(self.bytes_done)} of {format_bytes(self.bytes_total)}")
        if self.rate_bytes_per_s:
            words.append(format_rate(self.rate_bytes_per_s))
        return ", ".join(words)


class Looks:
    """The last look at each piece of work. Thread-safe."""

    def __init__(self, pieces: int) -> None:
        self._lock = threading.Lock()
        self._pieces = pieces
        self._last: dict[int, Look] = {}

    def add(self, number: int, look: Look) -> Sum:
        with self._lock:
            self._last[number] = look
            looks = [self._last[key] for key in sorted(self._last)]
        running = tuple(look for look in looks if look.phase != ENDED)
        return Sum(
            running=running,
            ended=len(looks) - len(running),
            pieces=self._pieces,
            bytes_done=sum(look.bytes_done for look in looks),
            bytes_total=sum(look.bytes_total for look in looks),
            rate_bytes_per_s=sum(look.rate_bytes_per_s or 0.0 for look in running),
            share=sum(1.0 if look.phase == ENDED else look.share for look in looks) / self._pieces,
        )


class EachAlone:
    """Paced lines of each piece of work, as if it were the only one."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._views: dict[int, PacedView] = {}

    def show(self, number: int, look: Look) -> None:
        if look.phase == ENDED:
            return
        with self._lock:
            view = self._views.setdefault(number, self._made())
        view.show(look)

    def close(self) -> None:
        """Nothing was drawn that could be cleared."""

    def _made(self) -> PacedView:
        if self._output.style.as_json:
            return PacedView(lambda look: self._output.event("progress", look.fields), EVENT_INTERVAL_S)
        return PacedView(lambda look: self._output.note(line_of(look)), LINE_INTERVAL_S)


class SilentMany:
    def __init__(self) -> None:
        self._view = SilentView()

    def show(self, number: int, look: Look) -> None:
        self._view.show(look)

    def close(self) -> None:
        self._view.close()


@contextmanager
def many_view(output: Output, pieces: int) -> Iterator[ManyView]:
    """The view that fits the output, cleared at the end of the block."""
    view: ManyView
    if output.style.quiet:
        view = SilentMany()
    elif output.err_is_terminal and not output.style.as_json:
        view = lazy.many_bars(output, pieces)
    else:
        view = EachAlone(output)
    try:
        yield view
    finally:
        view.close()
