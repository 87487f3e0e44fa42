"""Crashes and failing disks on purpose: at the n-th change that a store makes to the disk."""

from __future__ import annotations

import inspect
import mmap
import os
import signal
import stat
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from modelcache.store import durable

CHANGES = (
    "link",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
    "utime",
    "create",
    "truncate",
    "write",
    "fallocate",
    "start_writeback",
    "dedupe_range",
    "fsync",
    "syncfs",
)
"""The functions of `durable` that are one system call each; the others are made of these."""
COMPOSED = ("write_all", "fsync_directory", "write_new")
ROOM_TAKERS = ("link", "rename", "mkdir", "create", "truncate", "write", "fallocate", "fsync", "syncfs")
"""Changes that a full disk refuses: they need a block, an inode or an entry of a directory, or write out what was put off."""

Before = Callable[[str], None]
"""Called with the name of each change before it is made; what it raises is raised in its place."""


@contextmanager
def interposed(before: Before, *, write: Callable[[int, bytes | memoryview, int], int] | None = None) -> Iterator[None]:
    """Have `before` called ahead of every change to the disk in the block; `write` stands in for pwrite(2)."""
    kept = {name: getattr(durable, name) for name in CHANGES}
    for name, function in kept.items():
        setattr(durable, name, _ahead(before, name, write if name == "write" and write is not None else function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(durable, name, function)


def _ahead(before: Before, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        before(name)
        return function(*args, **kwargs)

    return inner


def unknown_changes() -> set[str]:
    """Functions of `durable` that this module does not know, or knows in vain."""
    public = {name for name, each in vars(durable).items() if inspect.isfunction(each) and not name.startswith("_")}
    return public ^ {*CHANGES, *COMPOSED}


class Board:
    """Numbers that a process leaves to others when it is killed: shared, anonymous memory."""

    NUMBERS = 8
    MOST_CHANGES = 4096 - 8 * NUMBERS

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4096)
        self._lock = threading.Lock()

    def _get(self, slot: int) -> int:
        return int(struct.unpack_from("<q", self._memory, slot * 8)[0])

    def _set(self, slot: int, value: int) -> None:
        struct.pack_into("<q", self._memory, slot * 8, value)

    @property
    def step(self) -> int:
        """Index of the step of a script that is being done, or was when the process was killed."""
        return self._get(0)

    @step.setter
    def step(self, value: int) -> None:
        self._set(0, value)

    @property
    def fetched_bytes(self) -> int:
        """What came from origins since the last `clear`."""
        return self._get(1)

    @property
    def changes(self) -> int:
        """Changes to the disk since the last `clear`."""
        return self._get(2)

    def fetched(self, count: int) -> None:
        with self._lock:
            self._set(1, self._get(1) + count)

    def changed(self, name: str) -> int:
        """Count one more; how many there are."""
        with self._lock:
            count = self._get(2)
            self._memory[8 * self.NUMBERS + min(count, self.MOST_CHANGES - 1)] = name == "write"
            self._set(2, count + 1)
            return count + 1

    @property
    def writes(self) -> list[int]:
        """Which of the changes (counted from 1) are writes of bytes, that can be torn."""
        flags = self._memory[8 * self.NUMBERS : 8 * self.NUMBERS + min(self.changes, self.MOST_CHANGES)]
        return [number for number, flag in enumerate(flags, start=1) if flag]

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))


@contextmanager
def doomed(board: Board, at: int, *, torn: bool = False) -> Iterator[None]:
    """Kill this process (SIGKILL) ahead of the change number `at`, counted from 1; or, `torn`, in the middle of that write."""

    def before(name: str) -> None:
        if board.changed(name) == at and not torn:
            _die()

    def write(fd: int, data: bytes | memoryview, offset: int) -> int:
        if torn and board.changes == at:
            os.pwrite(fd, memoryview(data)[: len(data) // 2], offset)
            _die()
        return os.pwrite(fd, data, offset)

    with interposed(before, write=write):
        yield


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], *, deadline_s: int = 60) -> int:
    """Do `work` in a forked process: 0 if it ended well, 1 if it raised (the traceback goes to stderr), -9 if it was killed.

    To be called in a process of one thread. The child is killed by SIGALRM (-14) after `deadline_s`.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(deadline_s)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class FullDisk:
    """A disk that refuses everything that takes room, from its n-th such change on, until it is `mended`.

    Attributes:
        asked: changes of this kind so far.
    """

    def __init__(self, at: int, error: int, refused: tuple[str, ...] = ROOM_TAKERS) -> None:
        self.asked = 0
        self._at = at
        self._error = error
        self._refused = refused
        self._lock = threading.Lock()

    @property
    def hit(self) -> bool:
        """Whether anything was refused."""
        return self.asked >= self._at

    def __call__(self, name: str) -> None:
        """A `Before`."""
        with self._lock:
            self.asked += name in self._refused
        if self.hit and name in self._refused:
            raise OSError(self._error, os.strerror(self._error))


def flip_bit(path: Path, at: int) -> None:
    """Damage a blob as a disk does: the content changes, and nothing that stat(2) tells."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    path.chmod(stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
