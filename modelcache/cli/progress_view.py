"""How work in progress is shown: drawn on a terminal, as lines elsewhere, as JSON lines with `--json`, or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from modelcache.cli import lazy
from modelcache.cli.output import Output
from modelcache.cli.tables import counted
from modelcache.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from modelcache.fetch.progress import Progress

LINE_INTERVAL_S = 5.0
"""A log gets a line per phase and one per this many seconds."""
EVENT_INTERVAL_S = 1.0
SETTLED_S = 0.5
"""A rate over less time than this says nothing."""
SETTLED_SHARE = 0.01
"""And of what is left nothing over less of the work: a slow start, or small files first, would have it last for days."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at some work.

    Attributes:
        title: what is worked on.
        phase: of the work, one word.
        rate_bytes_per_s, eta_s: None while unknown.
        waiting: why and how long nothing may happen; None: nothing waits.
        remarks: further words, most important first.
        fields: all of it for `--json`.
    """

    title: str
    phase: str
    bytes_done: int
    bytes_total: int
    rate_bytes_per_s: float | None
    eta_s: float | None
    waiting: str | None = None
    remarks: tuple[str, ...] = ()
    fields: dict[str, object] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """From 0 to 1; 0 while the total is not known."""
        return min(1.0, self.bytes_done / self.bytes_total) if self.bytes_total else 0.0

    def words(self) -> list[str]:
        """Bytes, rate, time left, waits and remarks, those that are known."""
        words = []
        if self.bytes_total:
            words.append(f"{format_bytes(self.bytes_done)} of {format_bytes(self.bytes_total)}")
        if self.rate_bytes_per_s:
            words.append(format_rate(self.rate_bytes_per_s))
        if self.eta_s is not None and self.bytes_done < self.bytes_total:
            words.append(f"{format_duration(max(1.0, self.eta_s))} left")
        if self.waiting is not None:
            words.append(self.waiting)
        return [*words, *self.remarks]


class ProgressView(Protocol):
    """Shows looks at one piece of work. Safe for many threads; never raises because of the stream it writes to."""

    def show(self, look: Look) -> None: ...

    def close(self) -> None:
        """Clear what was drawn. Idempotent."""
        ...


class SilentView:
    def show(self, look: Look) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PacedView:
    """One line per change of phase, and at most one per interval within a phase; a wait is told at once if none was in that time."""

    def __init__(self, write: Callable[[Look], None], interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ""
        self._next_s = 0.0
        self._next_wait_s = float("-inf")

    def show(self, look: Look) -> None:
        with self._lock:
            now_s = self._clock()
            waits = look.waiting is not None
            if look.phase == self._phase and now_s < self._next_s and not (waits and now_s >= self._next_wait_s):
                return
            self._phase = look.phase
            self._next_s = now_s + self._interval_s
            if waits:
                self._next_wait_s = self._next_s
            self._write(look)

    def close(self) -> None:
        """Nothing was drawn that could be cleared."""


def line_of(look: Look) -> str:
    """`s3://m/x: fetching 43%, 1.2 GiB of 2.8 GiB, 310.0 MiB/s, 5.2 s left`."""
    words = look.words()
    head = f"{look.title}: {look.phase}"
    return ", ".join([f"{head} {look.share:.0%}" if look.bytes_total else head, *words])


@contextmanager
def progress_view(output: Output) -> Iterator[ProgressView]:
    """The view that fits the output, cleared at the end of the block."""
    view: ProgressView
    if output.style.quiet:
        view = SilentView()
    elif output.style.as_json:
        view = PacedView(lambda look: output.event("progress", look.fields), EVENT_INTERVAL_S)
    elif output.err_is_terminal:
        view = lazy.bars(output)
    else:
        view = PacedView(lambda look: output.note(line_of(look)), LINE_INTERVAL_S)
    try:
        yield view
    finally:
        view.close()


def look_of_fetch(progress: Progress) -> Look:
    """A fetch, as it is shown."""
    remarks = []
    if progress.bytes_reused and not progress.hit:
        remarks.append(f"{format_bytes(progress.bytes_reused)} reused")
    if progress.files_total:
        remarks.append(f"{progress.files_done:,}/{counted(progress.files_total, 'file')}")
    return Look(
        title=progress.uri,
        phase=str(progress.phase),
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        rate_bytes_per_s=progress.rate_bytes_per_s,
        eta_s=progress.eta_s,
        waiting=progress.waiting,
        remarks=tuple(remarks),
        fields={
            "uri": progress.uri,
            "phase": str(progress.phase),
            "bytes_total": progress.bytes_total,
            "bytes_done": progress.bytes_done,
            "bytes_fetched": progress.bytes_fetched,
            "bytes_reused": progress.bytes_reused,
            "files_total": progress.files_total,
            "files_done": progress.files_done,
            "rate_bytes_per_s": round(progress.rate_bytes_per_s),
            "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
            "elapsed_s": round(progress.elapsed_s, 3),
            "waiting": progress.waiting,
        },
    )


class Reading:
    """Turns the two numbers of a verify, export or import into looks, with rate and time left over the whole of it."""

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic, *, phase: str = "reading") -> None:
        self._title = title
        self._phase = phase
        self._clock = clock
        self._started_s = self._known_s = clock()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_s

    def look(self, bytes_done: int, bytes_total: int) -> Look:
        elapsed_s = self.elapsed_s
        if not bytes_total:
            self._known_s = self._clock()  # what passes until it is known what there is, torch's import for one, is no byte's time
        counted_s = self._clock() - self._known_s
        rate = bytes_done / counted_s if counted_s >= SETTLED_S and bytes_done else None
        eta_s = (bytes_total - bytes_done) / rate if rate and bytes_done >= bytes_total * SETTLED_SHARE else None
        fields: dict[str, object] = {
            "phase": self._phase,
            "bytes_total": bytes_total,
            "bytes_done": bytes_done,
            "rate_bytes_per_s": None if rate is None else round(rate),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "elapsed_s": round(elapsed_s, 3),
        }
        return Look(self._title, self._phase, bytes_done, bytes_total, rate, eta_s, fields=fields)
