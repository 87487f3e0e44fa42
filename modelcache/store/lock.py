"""The locks of a store: who may remove (exclusive) while nobody links or publishes (shared)."""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from modelcache.errors import StoreBusy
from modelcache.patience import Cancellation, Deadline
from modelcache.store.layout import Layout

FIRST_POLL_S = 0.0002
LAST_POLL_S = 0.01


class StoreLock:
    """flock(2) on files of the store; works between threads and between processes, because each acquisition opens its own file.

    `shared` and `exclusive` are the store lock, held for milliseconds, never across a fetch or a long deletion. Everyone passes
    a turnstile first and an exclusive taker keeps it while it waits, so a stream of shared holders can't starve it. `room` is
    held by one reservation at a time and may be held longer; it is taken before the store lock, never inside it. None of them
    is reentrant.
    """

    def __init__(self, layout: Layout, *, timeout_s: float, room_timeout_s: float) -> None:
        self._layout = layout
        self._timeout_s = timeout_s
        self._room_timeout_s = room_timeout_s

    def shared(self) -> AbstractContextManager[None]:
        """Hold the store lock with other linkers and publishers. Raises StoreBusy."""
        return self._store_lock(fcntl.LOCK_SH)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the store lock alone. Raises StoreBusy."""
        return self._store_lock(fcntl.LOCK_EX)

    def room(self, cancel: Cancellation | None = None) -> AbstractContextManager[None]:
        """Be the only one who reserves. Raises StoreBusy; Cancelled, by `cancel` while it waits."""
        return _held(self._layout.room_lock, fcntl.LOCK_EX, Deadline.after(self._room_timeout_s), cancel=cancel)

    def _store_lock(self, operation: int) -> AbstractContextManager[None]:
        deadline = Deadline.after(self._timeout_s)
        return _held(self._layout.lock, operation, deadline, turn=_held(self._layout.turnstile, fcntl.LOCK_EX, deadline))


def try_lock(fd: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Whether the flock could be had at once."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Unlock, not merely close: a child process that inherited the file would keep the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def _held(
    path: Path,
    operation: int,
    deadline: Deadline,
    *,
    turn: AbstractContextManager[None] | None = None,
    cancel: Cancellation | None = None,
) -> Iterator[None]:
    """The flock of a file; `turn` is kept while it is waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with turn or nullcontext():
            _acquire(fd, operation, deadline, path, cancel)
        try:
            yield
        finally:
            release(fd)
    finally:
        os.close(fd)


def _acquire(fd: int, operation: int, deadline: Deadline, path: Path, cancel: Cancellation | None) -> None:
    """Poll: flock(2) has no timeout, and a signal to end a blocked one would be the whole process's."""
    poll_s = FIRST_POLL_S
    while not try_lock(fd, operation):
        if cancel is not None:
            cancel.check()
        if deadline.passed:
            raise StoreBusy("the store lock could not be had in time; another process holds it", address=str(path))
        time.sleep(poll_s * random.uniform(0.5, 1.0))
        poll_s = min(poll_s * 2, LAST_POLL_S)
