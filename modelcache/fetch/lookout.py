"""Looks after the fetches that wait for other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from modelcache.fetch.fetch import Fetch

LOOK_S = 0.1
"""From one look to the next: how late a waiting fetch notices that a file is there, or that who brought it has died."""
SHARE = 0.1
"""Of a processor's time, at most, that a lookout takes: with ten thousands of files it looks less often. What it waits for itself (a
processor that others have, the disk) delays no look."""


class Lookout:
    """One thread while anything waits, none otherwise. `changed` guards it, and is held by who calls `begin`."""

    def __init__(self, changed: threading.Condition, fetches: Callable[[], Sequence[Fetch]], ready: Callable[[], None]) -> None:
        """
        Args:
            fetches: those in progress; called under the lock.
            ready: called under the lock when there may be something to do for workers.
        """
        self._changed = changed
        self._fetches = fetches
        self._ready = ready
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def begin(self) -> None:
        """A fetch begins to wait."""
        if self._thread is None and not self._over.is_set():
            thread = threading.Thread(target=self._look_out, name="lookout", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread to be had: nobody would ever end their wait
                for fetch in self._waiting():
                    fetch.fail(error)
                return
            self._thread = thread

    def _waiting(self) -> list[Fetch]:
        return [fetch for fetch in self._fetches() if fetch.awaited and not fetch.ended]

    def close(self) -> None:
        """End the thread and wait for it. Not under the lock."""
        self._over.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def _look_out(self) -> None:
        while True:
            with self._changed:
                waiting = self._waiting()
                if not waiting or self._over.is_set():
                    self._thread = None
                    return
            before_s = time.thread_time()
            for fetch in waiting:
                self._attend(fetch)
            with self._changed:
                if any(fetch.left for fetch in self._fetches()):
                    self._ready()
            waiting = []  # no ended fetch is kept alive
            self._over.wait(max(LOOK_S, (time.thread_time() - before_s) / SHARE))

    def _attend(self, fetch: Fetch) -> None:
        """See how far others are; take what is there, and bring what nobody brings."""
        with fetch.busy() as goes_on:
            if not goes_on:
                return
            seen = fetch.awaited.look({file: fetch.incoming(file) for file in fetch.awaited.files})
            fetch.meter.awaited(seen.here_bytes)
            for file, digest in seen.published.items():
                fetch.link(file, digest)
            with self._changed:
                for file in seen.ours:
                    fetch.lead(file)
