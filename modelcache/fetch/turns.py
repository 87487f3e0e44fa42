"""Turns: of those who are about to bring the same thing in, one does at a time, and the others look afterwards whether it is here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

from modelcache.fetch.flight import LOOK_S
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Progress
from modelcache.patience import Cancellation


class Awaited(Protocol):
    """Who is at work: what those who wait look at, and hurry."""

    def hurry(self, priority: Priority) -> None: ...

    def look(self) -> Progress: ...


class Turns:
    """Who is at work on what. Thread-safe.

    Unlike a flight nothing is shared but the time: each does its own, with its own rights, and one that fails fails alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working: dict[Hashable, Awaited] = {}

    def ahead(self, key: Hashable) -> Awaited | None:
        """Who is at work on this now."""
        with self._changed:
            return self._working.get(key)

    @contextmanager
    def take(self, key: Hashable, worker: Awaited, cancel: Cancellation, waiting: Callable[[Awaited], None]) -> Iterator[None]:
        """Be at work on it for the block, once nobody else is.

        Args:
            waiting: called now and then with who is ahead.

        Raises:
            Cancelled: by `cancel`, while waiting.
        """
        with cancel.on_cancel(self._wake):
            while True:
                cancel.check()
                with self._changed:
                    other = self._working.setdefault(key, worker)
                    if other is worker:
                        break
                waiting(other)
                with self._changed:
                    if self._working.get(key) is other:
                        self._changed.wait(LOOK_S)
        try:
            yield
        finally:
            with self._changed:
                del self._working[key]
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
