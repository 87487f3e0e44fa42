"""Who watches over calls that tell their progress: one that says nothing for long is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watched:
    """One call. `silent`: it was given up."""

    def __init__(self, give_up: Callable[[], object]) -> None:
        self.give_up = give_up
        self.silent = False
        self.since_s: float | None = time.monotonic()
        """When it began to be silent; None: nobody listens now."""

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """In this block nobody listens: no silence is counted."""
        self.since_s = None
        try:
            yield
        finally:
            self.since_s = time.monotonic()


class Silence:
    """Gives up calls that say nothing for `patience_s`. Thread-safe; one thread for all calls, while there are any."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self._changed = threading.Condition()
        self._calls: set[Watched] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watched(self, give_up: Callable[[], object]) -> Iterator[Watched]:
        """A call for the block; `give_up` ends it, from another thread."""
        call = Watched(give_up)
        with self._changed:
            self._calls.add(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="agent silence", daemon=True)
                self._thread.start()
        try:
            yield call
        finally:
            with self._changed:
                self._calls.discard(call)
                if not self._calls:
                    self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    self._thread = None
                    return
                now_s = time.monotonic()
                ends_s = {
                    call: now_s + self.patience_s if (since_s := call.since_s) is None else since_s + self.patience_s
                    for call in self._calls
                }
                silent = [call for call, end_s in ends_s.items() if end_s <= now_s]
                if not silent:
                    self._changed.wait(min(ends_s.values()) - now_s)
                    continue
                self._calls.difference_update(silent)
            for call in silent:
                call.silent = True
                call.give_up()
