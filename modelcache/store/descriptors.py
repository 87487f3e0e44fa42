"""Open files of an ingest: kept open between writes, but never more than a bound."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelcache.store.forked import is_of_this_process

Key = tuple[int, int]

SHARE = 4
"""A quarter of the files that this process may have open (often 1,024) is for those that nobody uses just now: the rest is for connections,
journals, locks, and for the program that this is a part of."""

_ingests: dict[int, Descriptors] = {}
"""All of this process that are not closed. Of its methods only such are used as are atomic: a lock could be left taken in a child."""


@dataclass
class _Open:
    fd: int
    users: int = 0
    doomed: bool = False


class Descriptors:
    """File descriptors by (file number, flags). Safe for many threads; one in use is closed when its last user is done.

    All of a process keep no more than a share of what it may have open: the more there are, the fewer each.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, _Open] = OrderedDict()
        self._flags: dict[int, list[int]] = {}
        _ingests[id(self)] = self
        is_of_this_process(self)
        for other in list(_ingests.values()):
            other.yield_room()

    def forked(self) -> None:
        """As `Inherited.forked`: what is open in a child counts for nobody there."""
        _ingests.pop(id(self), None)

    def yield_room(self) -> None:
        """Another ingest has begun: keep no more than what is left for each."""
        with self._lock:
            self._shrink()

    @contextmanager
    def using(self, number: int, path: str | Path, flags: int) -> Iterator[int]:
        """The descriptor of this file, opened with `flags` if it is not open."""
        key = (number, flags)
        with self._lock:
            entry = self._open.get(key)
            if entry is None:
                entry = _Open(os.open(path, flags | os.O_CLOEXEC))
                self._open[key] = entry
                self._flags.setdefault(number, []).append(flags)
            entry.users += 1
            self._open.move_to_end(key)
        try:
            yield entry.fd
        finally:
            with self._lock:
                entry.users -= 1
                self._close_if_done(entry)
                self._shrink()

    def forget(self, number: int) -> None:
        """Close all of this file: its name now means another inode, or nothing will write to it any more."""
        with self._lock:
            for flags in list(self._flags.get(number, ())):
                self._doom((number, flags))

    def close(self) -> None:
        """Close all, and from here on each as soon as nobody uses it."""
        _ingests.pop(id(self), None)
        with self._lock:
            self._limit = 0
            for key in list(self._open):
                self._doom(key)

    def _doom(self, key: Key) -> None:
        number, flags = key
        entry = self._open.pop(key)
        self._flags[number].remove(flags)
        if not self._flags[number]:
            del self._flags[number]
        entry.doomed = True
        self._close_if_done(entry)

    def _shrink(self) -> None:
        limit = min(self._limit, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE // max(1, len(_ingests)))
        while len(self._open) > limit:
            idle = next((key for key, entry in self._open.items() if entry.users == 0), None)
            if idle is None:
                return
            self._doom(idle)

    @staticmethod
    def _close_if_done(entry: _Open) -> None:
        if entry.doomed and entry.users == 0:
            os.close(entry.fd)
