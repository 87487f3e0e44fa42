"""How long to wait and when to stop: deadlines and cancellation. Nothing here sleeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelcache.errors import Cancelled


@dataclass(frozen=True, slots=True)
class Deadline:
    """An instant on the monotonic clock after which a wait is given up."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.at_s


class Cancellation:
    """A request to stop that many threads can see; may be asked for once, from any thread or a signal handler.

    `on_cancel` callbacks break blocking waits (shut a socket down); they must be quick, safe from any thread, and not raise.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.RLock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        """Ask for the stop; runs the callbacks of waits in progress. Doing so twice changes nothing."""
        self._event.set()
        with self._lock:
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise `Cancelled` if the stop was asked for."""
        if self.requested:
            raise Cancelled("cancelled")

    def wait(self, seconds: float) -> None:
        """Pause; ends early with `Cancelled` when the stop is asked for."""
        if self._event.wait(seconds):
            self.check()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` run if the stop is asked for inside the block (at once if it already was)."""
        with self._lock:
            key = self._next
            self._next += 1
            self._callbacks[key] = callback
        if self.requested:
            self.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(key, None)
