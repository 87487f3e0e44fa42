"""How many requests at a time: more while that brings more bytes, fewer when it does not or the origin asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

GAIN = 1.05
"""One more worker must bring 5 %: less drowns in the noise of a one-second window."""
WINDOW_S = 1.0
ARRIVALS_PER_REQUEST = 8
"""A window also lasts for so many arrivals a request. At 10 MB/s a second holds two chunks, and windows of a second took chance for gain:
in simulation (one flat rate, exponential gaps, 10 minutes) they led from 4 requests to 16; windows of 8 a request stay at 4."""
LONGEST_HOLD_WINDOWS = 32
KEPT_ORIGINS = 256
"""What was learned of so many is kept; a node agent may see a host for every model."""


@dataclass(frozen=True, slots=True)
class ConcurrencyBounds:
    """Attributes:
    start, least, most: numbers of requests in flight.
    """

    start: int
    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.start <= self.most:
            raise ValueError(f"not bounds of a number of requests: {self}")


class Concurrency:
    """Climbs towards the number of requests that gives the highest rate. Not thread-safe.

    Every window it compares the rate with that before its last step: a step up that brought `GAIN` is followed by another, one
    that didn't is taken back and the next try waits twice as long. A throttling origin halves it at once, but once a window:
    the answers to all requests in flight are one complaint.
    """

    def __init__(self, bounds: ConcurrencyBounds) -> None:
        self._bounds = bounds
        self.limit = bounds.start
        self._window_start_s: float | None = None
        self._window_bytes = 0
        self._window_arrivals = 0
        self._throttled_at_s: float | None = None
        self._rate_before = 0.0
        self._trying = False
        self._hold = 1
        self._next_hold = 2

    def moved(self, count: int, now_s: float, *, saturated: bool) -> None:
        """`count` bytes arrived; `saturated`: as many requests are in flight as are allowed, so the limit is what bounds."""
        if self._window_start_s is None:
            self._window_start_s = now_s  # these bytes arrived before the window
            return
        self._window_bytes += count
        self._window_arrivals += 1
        elapsed_s = now_s - self._window_start_s
        if elapsed_s >= WINDOW_S and self._window_arrivals >= ARRIVALS_PER_REQUEST * self.limit:
            rate = self._window_bytes / elapsed_s
            self._begin_window(now_s)
            if saturated:
                self._step(rate)

    def idle(self) -> None:
        """No fetch is in progress: the time until one is says nothing about rates."""
        self._begin_window(None)
        if self._trying:
            self._trying = False
            self.limit = max(self._bounds.least, self.limit - 1)

    def throttled(self, now_s: float) -> None:
        """The origin asked to slow down (429, 503)."""
        if self._throttled_at_s is not None and now_s - self._throttled_at_s < WINDOW_S:
            return
        self._throttled_at_s = now_s
        self.limit = max(self._bounds.least, self.limit // 2)
        self._trying = False
        self._hold = self._next_hold = LONGEST_HOLD_WINDOWS
        self._begin_window(now_s)

    def _begin_window(self, now_s: float | None) -> None:
        self._window_start_s, self._window_bytes, self._window_arrivals = now_s, 0, 0

    def _step(self, rate: float) -> None:
        if self._trying:
            self._trying = False
            if rate >= self._rate_before * GAIN:
                self._next_hold = 2
                self._hold = 0
            else:
                self.limit = max(self._bounds.least, self.limit - 1)
                self._hold = self._next_hold
                self._next_hold = min(self._next_hold * 2, LONGEST_HOLD_WINDOWS)
                return
        if self._hold > 0:
            self._hold -= 1
            return
        if self.limit < self._bounds.most:
            self._rate_before = rate
            self.limit += 1
            self._trying = True


class Concurrencies:
    """Requests in flight by origin, each within its own limit, all within one total: an origin that throttles slows nobody else.

    Not thread-safe. Origins are named by `str(Origin)`.
    """

    def __init__(self, bounds: ConcurrencyBounds) -> None:
        self._bounds = bounds
        self._of: dict[str, Concurrency] = {}
        self._busy: Counter[str] = Counter()

    def limit(self, origin: str) -> int:
        """Requests in flight to this origin that are allowed just now."""
        return self._concurrency(origin).limit

    def full(self) -> bool:
        """Whether no request may begin, whatever its origin."""
        return self._busy.total() >= self._bounds.most

    def open(self, origin: str) -> bool:
        """Whether the origin's own limit lets another request begin."""
        return self._busy[origin] < self.limit(origin)

    def useful(self, origins: Iterable[str]) -> int:
        """Requests that could be in flight to these."""
        return min(self._bounds.most, sum(self.limit(origin) for origin in set(origins)))

    def began(self, origin: str) -> None:
        """A request to this origin is in flight."""
        self._busy[origin] += 1

    def ended(self, origin: str) -> None:
        """It is no more."""
        self._busy[origin] -= 1

    def moved(self, origin: str, count: int, now_s: float) -> bool:
        """`count` bytes arrived; whether that allows more requests than before."""
        concurrency = self._concurrency(origin)
        before = concurrency.limit
        concurrency.moved(count, now_s, saturated=self._busy[origin] >= before)
        return concurrency.limit > before

    def throttled(self, origin: str, now_s: float) -> None:
        """This origin asked to slow down."""
        self._concurrency(origin).throttled(now_s)

    def idle(self, origin: str) -> None:
        """No fetch from this origin is in progress."""
        self._concurrency(origin).idle()

    def _concurrency(self, origin: str) -> Concurrency:
        if origin not in self._of:
            quiet = [name for name in self._of if not self._busy[name]]
            if len(self._of) >= KEPT_ORIGINS and quiet:
                del self._of[quiet[0]], self._busy[quiet[0]]
            self._of[origin] = Concurrency(self._bounds)
        return self._of[origin]
