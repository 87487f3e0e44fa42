"""How long to wait and when to stop: deadlines and cancellation. Nothing here sleeps."""

from __future__ import annotations

import _thread
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from modelcache.errors import Cancelled

STARTING_S = 5.0
"""A thread that was started runs within this time, or never."""


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


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause before something is tried again, for people.

    Attributes:
        why: one sentence; no secret in it.
        until: when it ends.
    """

    why: str
    until: Deadline


class Cancellation:
    """A request to stop that many threads can see; may be asked for once, from any thread or a signal handler.

    `on_cancel` callbacks break blocking waits (shut a socket down); they must be quick, safe from any thread, and not raise.
    """

    def __init__(self, told: Cancellation | None = None) -> None:
        """`told`: one whose holders see the pauses of this one, too."""
        self._told = told
        self._requested = False
        # Not an Event: its lock is not reentrant, so `set` in a signal handler can wait for ever for the thread that it interrupted.
        self._lock = threading.RLock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._waits: dict[int, Wait] = {}
        self._next = 0

    @property
    def requested(self) -> bool:
        return self._requested

    def cancel(self) -> None:
        """Ask for the stop; runs the callbacks of waits in progress, each once. Doing so twice changes nothing."""
        self._requested = True
        while True:
            try:
                with self._lock:
                    _, callback = self._callbacks.popitem()
            except KeyError:
                return
            callback()

    def check(self) -> None:
        """Raise `Cancelled` if the stop was asked for."""
        if self.requested:
            raise Cancelled("cancelled")

    def wait(self, seconds: float) -> None:
        """Pause; ends early with `Cancelled` when the stop is asked for."""
        bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        with self.on_cancel(partial(bell.put, None)), suppress(queue.Empty):
            bell.get(timeout=max(0.0, seconds))
        self.check()

    @contextmanager
    def saying(self, why: str, seconds: float) -> Iterator[None]:
        """While the block runs, whoever else holds this sees why it waits, and for how long (`waits`)."""
        if self._told is not None:
            with self._told.saying(why, seconds):
                yield
            return
        with self._lock:
            key = self._next
            self._next += 1
            self._waits[key] = Wait(why, Deadline.after(seconds))
        try:
            yield
        finally:
            with self._lock:
                del self._waits[key]

    @property
    def waits(self) -> list[Wait]:
        """The pauses in progress, the one that ends last first."""
        with self._lock:
            return sorted(self._waits.values(), key=lambda wait: -wait.until.at_s)

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have `callback` run if the stop is asked for inside the block (at once if it already was).

        One that was asked for as the block ended may still run just after it; then `requested` is true when it has ended.
        """
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


class Condition(_thread.RLock, threading.Condition):  # type: ignore[misc]  # both say how they are entered, and the lock's way counts
    """As `threading.Condition`, for threads that Ctrl-C may reach: what a block takes and gives back at its ends is the lock itself, in C.

    threading's own does so by functions of Python. An interrupt as one returns, or begins, leaves the lock taken for ever (CPython 3.11).
    """

    def __init__(self) -> None:
        threading.Condition.__init__(self, self)


class Event:
    """As `threading.Event`, and as `Condition` for threads that Ctrl-C may reach."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wakes who waits; for good."""
        with self._changed:
            self._is_set = True
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is set; whether it is. `timeout_s`: None: for as long as that takes."""
        with self._changed:
            return self._changed.wait_for(self.is_set, timeout_s)


def begin(threads: Iterable[threading.Thread], end: Callable[[], None]) -> None:
    """Start them. Where that is broken off (Ctrl-C, which may come when one runs already; this machine has no more) `end` ends what runs.

    Raises:
        RuntimeError: there are no more threads.
    """
    try:
        for thread in threads:
            thread.start()
    except BaseException:
        end()
        raise


def end_of(thread: threading.Thread) -> None:
    """Wait until a thread has ended that has nothing to do any more, though Ctrl-C may have interrupted who waited for it to begin."""
    begins = Deadline.after(STARTING_S)
    while thread in threading.enumerate() and not begins.passed:
        try:
            return thread.join()
        except RuntimeError:  # it doesn't run yet
            Cancellation().wait(0.001)
