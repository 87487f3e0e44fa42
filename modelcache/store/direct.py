"""Aligned buffers and O_DIRECT: bytes around the page cache."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALIGNMENT = 4096
"""Covers every logical block size in use (512 and 4096) of address, offset and length; open(2), O_DIRECT."""


def aligned_bytes(data: memoryview, offset: int) -> int:
    """How many bytes from the start of `data` may be written at `offset` with O_DIRECT; 0 if address or offset are not aligned."""
    if offset % ALIGNMENT or data.nbytes < ALIGNMENT or data.readonly or not data.contiguous:
        return 0
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    return 0 if address % ALIGNMENT else data.nbytes - data.nbytes % ALIGNMENT


class DiskReader:
    """Reads a file from its start to its end, chunk by chunk, from the disk and not from the page cache where that can be had.

    A buffered read would show what was written and not what the disk kept. Its buffer has `chunk_bytes`, or what the file takes if that
    is less.
    """

    def __init__(self, path: Path, chunk_bytes: int, *, drop_cached: bool = True) -> None:
        self._fd = _open(path, drop_cached=drop_cached)
        try:  # O_DIRECT touches all of a buffer: 4 MiB for each of 20,000 small files took minutes
            blocks = max(1, -(-os.fstat(self._fd).st_size // ALIGNMENT))
            self._buffer = mmap.mmap(-1, min(chunk_bytes, blocks * ALIGNMENT))
        except BaseException:
            os.close(self._fd)
            raise

    def chunks(self) -> Iterator[memoryview]:
        """Views of one buffer: each is good until the next. Raises OSError where the disk fails."""
        offset = 0
        with memoryview(self._buffer) as view:
            while got := self._fill(view, offset):
                yield view[:got]
                offset += got
                if got < len(view):
                    return

    def span(self, offset: int, size_bytes: int) -> memoryview | None:
        """These bytes (at most the buffer's size, from an aligned offset), good until the next read; None if the disk can't give
        them all."""
        view = memoryview(self._buffer)
        try:
            got = self._fill(view, offset)
        except OSError:
            return None
        return view[:size_bytes] if got >= size_bytes else None

    def close(self) -> None:
        os.close(self._fd)  # The buffer goes with its last view.

    def _fill(self, view: memoryview, offset: int) -> int:
        """Read until the view is full or the file ends; after a short read the rest can't be aligned, and is read buffered."""
        got = os.preadv(self._fd, [view], offset)
        if not 0 < got < len(view):
            return got
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        try:
            while got < len(view) and (more := os.preadv(self._fd, [view[got:]], offset + got)):
                got += more
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)
        return got


@contextmanager
def disk_reader(path: Path, chunk_bytes: int, *, drop_cached: bool = True) -> Iterator[DiskReader]:
    """Args: drop_cached: whether, without O_DIRECT, the file's pages are dropped from the cache first."""
    reader = DiskReader(path, chunk_bytes, drop_cached=drop_cached)
    try:
        yield reader
    finally:
        reader.close()


def _open(path: Path, *, drop_cached: bool) -> int:
    """With O_DIRECT if the file system takes it and gives a first block; else buffered."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
    except OSError:
        fd = -1
    if fd >= 0:
        try:
            with mmap.mmap(-1, ALIGNMENT) as probe:
                os.preadv(fd, [probe], 0)
        except OSError:
            os.close(fd)
        else:
            return fd
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if drop_cached:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd
