"""Instances of one filesystem, most of which are a connection that one thread at a time may use."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modelcache.sources.any_fsspec.filesystems import Filesystem

CONNECTIONS = ("ftp", "client", "session")
"""Attributes of fsspec's own filesystems (FTP, SFTP, WebHDFS) that hold connections; fsspec has no word for closing them."""


class Pool:
    """Instances, made by `make` (which may connect), kept and given again. Safe for many threads.

    Filesystems that are asynchronous inside are safe for many threads: of these there is one.
    """

    def __init__(self, make: Callable[[], Filesystem]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[Filesystem] = []
        self._shared: Filesystem = None
        self._closes = 0
        self._taken: dict[int, int] = {}
        """Of instances that are in use, by identity: how often it had been closed when they were taken."""

    def take(self) -> Filesystem:
        """An instance for the caller alone, or a shared one."""
        with self._lock:
            if self._shared is not None:
                return self._shared
            closes = self._closes
            if self._idle:
                idle = self._idle.pop()
                self._taken[id(idle)] = closes
                return idle
        made = self._make()
        with self._lock:
            self._taken[id(made)] = closes
            if getattr(made, "async_impl", False):
                self._shared = made  # of two that were made at once both work
        return made

    def give(self, filesystem: Filesystem) -> None:
        """Back in working order."""
        with self._lock:
            if filesystem is self._shared:
                return
            if self._taken.pop(id(filesystem), None) == self._closes:
                self._idle.append(filesystem)
                return
        _end(filesystem)

    def drop(self, filesystem: Filesystem) -> None:
        """It failed, or may be in the middle of something. The idle ones go, too: likely the server closed them all."""
        with self._lock:
            stale, self._idle = self._idle, []
            self._taken.pop(id(filesystem), None)
        for each in (*stale, *(() if filesystem is self._shared else (filesystem,))):
            _end(each)

    def close(self) -> None:
        """Close idle instances; those in use are closed when they come back. Later ones are kept again."""
        with self._lock:
            self._closes += 1
            idle, self._idle = self._idle, []
        for each in idle:
            _end(each)


def _end(filesystem: Filesystem) -> None:
    for name in CONNECTIONS:
        close = getattr(getattr(filesystem, name, None), "close", None)
        if callable(close):
            close()
