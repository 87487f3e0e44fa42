"""Reads extents into memory, block by block, by the cheapest way to each: what is in the page cache from there, the rest around it."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from modelcache.errors import BadCheckpoint, StoreFault
from modelcache.loader.memory import HostMemory, map_file
from modelcache.loader.plan import ALIGNMENT, Extent
from modelcache.loader.residency import resident_share
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

THREADS = 4
"""Reads in flight: with blocks of 8 MiB, what reached the ceiling of the disk and of memory (`reference/loaders.md`)."""
MAPPED_SHARE = 0.98
"""An extent with this share of its pages in memory is mapped and not copied."""
CACHED_SHARE = 0.5
"""A block with this share of its pages in memory is copied from there; else read from the disk, around the cache."""
WARM_BYTES_PER_S = 2.5 * 2**30
"""Where the kernel doesn't tell, a first block that came at this rate was in memory: no single read of a disk has it, and a copy by one
thread has twice as much."""


class Way(StrEnum):
    """How a byte came."""

    MAPPED = "mapped"
    CACHED = "cached"
    """Copied from the page cache."""
    DIRECT = "direct"
    BUFFERED = "buffered"
    """Through the page cache, because the file system can't do otherwise, or to find out."""


class ShardFile:
    """One file, open for both ways of reading. Used by many threads; closed by its owner."""

    def __init__(self, path: Path, expected_bytes: int) -> None:
        """Raises BadCheckpoint: the file is not as long as its header says; OSError."""
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.direct_fd = -1
        try:
            self._check_size(expected_bytes)
            self.direct_fd = _direct(path)
        except BaseException:
            self.close()
            raise
        self._warm: bool | None = None
        self._lock = threading.Lock()

    def _check_size(self, expected_bytes: int) -> None:
        size_bytes = os.fstat(self.fd).st_size
        if size_bytes != expected_bytes:
            raise BadCheckpoint(
                "the file is not as long as when its header was read",
                address=str(self.path),
                expected=str(expected_bytes),
                got=str(size_bytes),
            )

    def close(self) -> None:
        for fd in (self.fd, self.direct_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct_fd = -1

    def is_resident(self, span: ByteRange) -> bool:
        """Whether nearly all of it is in memory, for certain."""
        share = resident_share(self.fd, span)
        return share is not None and share >= MAPPED_SHARE

    def mapped(self, span: ByteRange) -> ctypes.Array[ctypes.c_ubyte]:
        """The file's own pages, from the span's aligned start. What is written there is this process's alone. Raises OSError."""
        return map_file(self.fd, span.start, span.size_bytes)

    def read(self, block: ByteRange, into: memoryview) -> Way:
        """Fill the first bytes of `into` with a block. A direct read may fill up to its next aligned end.

        Raises:
            BadCheckpoint: the file ends before the block does.
            OSError.
        """
        if self.direct_fd < 0:
            self._fill(self.fd, block, into[: block.size_bytes], 0)
            return Way.BUFFERED
        share = resident_share(self.fd, block)
        if share is None:
            return self._read_unknowing(block, into)
        if share >= CACHED_SHARE:
            self._fill(self.fd, block, into[: block.size_bytes], 0)
            return Way.CACHED
        return self._read_direct(block, into)

    def _read_unknowing(self, block: ByteRange, into: memoryview) -> Way:
        """The first block of a file goes through the page cache, and its time tells about the others."""
        with self._lock:
            if self._warm is None:
                started_s = time.monotonic()
                self._fill(self.fd, block, into[: block.size_bytes], 0)
                self._warm = block.size_bytes >= WARM_BYTES_PER_S * (time.monotonic() - started_s)
                return Way.BUFFERED
        if self._warm:
            self._fill(self.fd, block, into[: block.size_bytes], 0)
            return Way.BUFFERED
        return self._read_direct(block, into)

    def _read_direct(self, block: ByteRange, into: memoryview) -> Way:
        aligned_bytes = -(-block.size_bytes // ALIGNMENT) * ALIGNMENT
        got = os.preadv(self.direct_fd, [into[:aligned_bytes]], block.start)
        if got < block.size_bytes:  # a short read (a signal, the end of the file) leaves what can't be aligned
            self._fill(self.fd, block, into[: block.size_bytes], got)
        return Way.DIRECT

    def _fill(self, fd: int, block: ByteRange, into: memoryview, got: int) -> None:
        while got < block.size_bytes:
            count = os.preadv(fd, [into[got:]], block.start + got)
            if count == 0:
                raise BadCheckpoint(
                    "the file shrank while it was read", address=str(self.path), expected=str(block.stop), got=str(block.start + got)
                )
            got += count


class Reading:
    """One extent on its way into memory.

    Attributes:
        memory: from the extent's aligned start.
    """

    def __init__(self, extent: Extent, memory: ctypes.Array[ctypes.c_ubyte], parts: list[Future[tuple[Way, int]]]) -> None:
        self.extent = extent
        self.memory = memory
        self._parts = parts

    def wait(self) -> dict[Way, int]:
        """Wait until every byte is there; how many came by which way.

        Raises:
            BadCheckpoint: the file shrank. StoreFault: the disk failed. Cancelled.
        """
        ways: dict[Way, int] = {}
        for part in self._parts:
            way, size_bytes = part.result()
            ways[way] = ways.get(way, 0) + size_bytes
        return ways or {Way.MAPPED: self.extent.span.size_bytes}


class Reader:
    """Reads extents of one checkpoint's files with a few threads. A context manager; what is not read when it ends is dropped."""

    def __init__(self, files: list[ShardFile], memory: HostMemory, cancel: Cancellation) -> None:
        self._files = files
        self._memory = memory
        self._cancel = cancel
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="load")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def start(self, extent: Extent, *, may_map: bool) -> Reading:
        """Begin to read an extent; its blocks are read in the order in which extents were started.

        Args:
            may_map: the file's own pages will do if they are in memory.

        Raises:
            MemoryError.
        """
        file = self._files[extent.shard]
        if may_map and file.is_resident(extent.span):
            return Reading(extent, file.mapped(extent.span), [])
        memory = self._memory.lend(extent.memory_bytes)
        parts = [self._threads.submit(self._read, file, block, memory, block.start - extent.span.start) for block in extent.blocks()]
        return Reading(extent, memory, parts)

    def _read(self, file: ShardFile, block: ByteRange, memory: ctypes.Array[ctypes.c_ubyte], at: int) -> tuple[Way, int]:
        self._cancel.check()
        with memoryview(memory) as whole, whole.cast("B") as view, view[at:] as into:
            try:
                return file.read(block, into), block.size_bytes
            except OSError as error:
                raise StoreFault(f"the file can't be read ({error.strerror})", address=str(file.path)) from error


@contextmanager
def opened(paths_and_sizes: list[tuple[Path, int]]) -> Iterator[list[ShardFile]]:
    """Every file of a checkpoint, open; closed at the end. Raises BadCheckpoint, OSError."""
    files: list[ShardFile] = []
    try:
        for path, size_bytes in paths_and_sizes:
            files.append(ShardFile(path, size_bytes))
        yield files
    finally:
        for file in files:
            file.close()


def _direct(path: Path) -> int:
    """A descriptor with O_DIRECT that really reads, or -1: tmpfs and some others take the flag and fail, or refuse it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return -1
    try:
        with mmap.mmap(-1, ALIGNMENT) as probe:
            os.preadv(fd, [probe], 0)
    except OSError:
        os.close(fd)
        return -1
    return fd
