"""Host memory that checkpoints are read into: few large pieces, in huge pages where the kernel has them, used again."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from contextlib import suppress

Memory = ctypes.Array[ctypes.c_ubyte]
"""Bytes that stay while anything refers to them."""
_MEMORIES: weakref.WeakSet[HostMemory] = weakref.WeakSet()
REUSE_SHARE = 0.75
"""A kept piece is lent again to who asks for at least this share of it."""


class HostMemory:
    """Lends pieces of page-aligned memory; keeps those that came back, up to a bound. Thread-safe, and usable in both processes after a
    fork: the child begins with none.

    A piece comes back by itself when the last tensor in it is gone.

    Attributes:
        idle_limit_bytes: of what is kept and not lent; beyond it a piece that comes back goes to the machine.
    """

    def __init__(self, idle_limit_bytes: int) -> None:
        self.idle_limit_bytes = idle_limit_bytes
        self._lock = threading.RLock()  # what comes back may do so in the middle of a lend, by garbage collection
        self._idle: list[mmap.mmap] = []
        self._lent_bytes = 0
        self._owner_pid = os.getpid()
        _MEMORIES.add(self)

    def begin_anew(self) -> None:
        """In the child of a fork: another thread of the parent may have had the lock, and what is kept is the parent's."""
        self._lock = threading.RLock()
        self._idle = []
        self._lent_bytes = 0
        self._owner_pid = os.getpid()

    @property
    def lent_bytes(self) -> int:
        """In the hands of loads and of tensors."""
        with self._lock:
            return self._lent_bytes

    @property
    def idle_bytes(self) -> int:
        """Kept and not lent."""
        with self._lock:
            return sum(map(len, self._idle))

    def lend(self, size_bytes: int) -> Memory:
        """At least `size_bytes` (over 0) of memory from a page's start. Its content is anything.

        Raises:
            MemoryError: the machine has no more.
        """
        piece = self._take(size_bytes) or _new(size_bytes)
        lent = (ctypes.c_ubyte * len(piece)).from_buffer(piece)
        with self._lock:
            self._lent_bytes += len(piece)
        weakref.finalize(lent, self._give_back, piece, self._owner_pid).atexit = False
        return lent

    def release(self) -> int:
        """Give everything that is idle back to the machine; how many bytes."""
        with self._lock:
            released, self._idle = self._idle, []
        return sum(map(len, released))  # they go with the list

    def _take(self, size_bytes: int) -> mmap.mmap | None:
        with self._lock:
            fitting = [piece for piece in self._idle if size_bytes <= len(piece) and size_bytes >= REUSE_SHARE * len(piece)]
            if not fitting:
                return None
            best = min(fitting, key=len)
            self._idle.remove(best)
            return best

    def _give_back(self, piece: mmap.mmap, owner_pid: int) -> None:
        if owner_pid != os.getpid():
            return  # a fork's copy of what the parent still has
        with self._lock:
            self._lent_bytes -= len(piece)
            if sum(map(len, self._idle)) + len(piece) <= self.idle_limit_bytes:
                self._idle.append(piece)


def _after_fork() -> None:
    for each in list(_MEMORIES):
        each.begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def _new(size_bytes: int) -> mmap.mmap:
    try:
        piece = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size_bytes} bytes of memory can't be had ({error.strerror})") from error
    with suppress(OSError):  # a kernel without huge pages
        piece.madvise(mmap.MADV_HUGEPAGE)
    return piece


def map_file(fd: int, offset: int, size_bytes: int) -> Memory:
    """A file's own pages from an aligned offset; what is written there is this process's alone. Unmapped with its last user.

    Not by `mmap.mmap`, which keeps a descriptor open for every mapping (Python before 3.13).

    Raises:
        OSError.
    """
    ctypes.set_errno(0)
    address = _LIBC.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _NORESERVE, fd, offset)
    if address in (None, _MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    lent = (ctypes.c_ubyte * size_bytes).from_address(address)
    weakref.finalize(lent, _LIBC.munmap, address, size_bytes).atexit = False
    return lent


_NORESERVE = 0x4000
"""MAP_NORESERVE (mmap(2)): what may be written to is not booked, or a file larger than the machine's memory could not be mapped."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value
