"""Page-aligned buffers of one chunk, bounded in number and used again."""

from __future__ import annotations

import ctypes
import mmap
import threading

from modelcache.chunks import CHUNK_BYTES


class Buffer:
    """`CHUNK_BYTES` of page-aligned memory: what O_DIRECT needs, and what sockets receive into."""

    __slots__ = ("_map", "view")

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, CHUNK_BYTES)
        self.view = memoryview(self._map)


def address(view: memoryview) -> int:
    """Of a writable view's first byte."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def copy(data: memoryview, into: memoryview) -> None:
    """All of `data`, without the interpreter's lock."""
    ctypes.memmove(address(into), address(data), data.nbytes)


class BufferPool:
    """At most `limit` spare buffers, made when first needed and kept for the next who asks. Thread-safe.

    A thread may put any buffer in for the one it took: what counts is the number.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free: list[Buffer] = []
        self._left = limit

    def try_take(self) -> Buffer | None:
        """A buffer of undefined content, or None when all are in use. Never waits."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._left == 0:
                return None
            self._left -= 1
        return Buffer()

    def give_back(self, buffer: Buffer) -> None:
        with self._lock:
            self._free.append(buffer)

    def trim(self) -> None:
        """Let go of the memory of buffers that nobody uses."""
        with self._lock:
            self._left += len(self._free)
            self._free.clear()
