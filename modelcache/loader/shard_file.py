"""A file on a disk, read block by block by the cheapest way to each: what is in the page cache from there, the rest around it."""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from modelcache.errors import BadCheckpoint
from modelcache.loader.checkpoint import FileStamp, Shard, told_of
from modelcache.loader.files import Way
from modelcache.loader.memory import Memory, map_file
from modelcache.loader.plan import ALIGNMENT
from modelcache.loader.residency import resident_share, sampled_share
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

MAPPED_SHARE = 0.98
"""An extent with this share of its pages in memory is mapped and not copied."""
CACHED_SHARE = 0.5
"""A block with this share of its pages in memory is copied from there; else read from the disk, around the cache."""
WARM_BYTES_PER_S = 2.5 * 2**30
"""Where the kernel doesn't tell, a first block that came at this rate was in memory: no single read of a disk has it, and a copy by one
thread has twice as much."""


class ShardFile:
    """One file, open for both ways of reading (a `TensorFile`)."""

    def __init__(self, path: Path, expected_bytes: int, *, stays_whole: bool, stamp: FileStamp | None = None) -> None:
        """
        Args:
            stays_whole: it is certain that nobody makes the file shorter: it may be mapped.
            stamp: that it had when its header was read; None: nobody looked.

        Raises:
            BadCheckpoint: it is not the file whose header was read, or gone.
            FileFault: this process can't open it. StoreFault: the disk failed.
        """
        self.path = path
        with told_of(path):
            try:
                self._file = io.FileIO(path)  # and no bare descriptor, which Ctrl-C could leave to nobody
            except FileNotFoundError:
                raise BadCheckpoint("the file vanished after its header was read", address=str(path)) from None
        self.fd = self._file.fileno()
        self._pages: Memory | None = None
        self._warm: bool | None = None
        self._lock = threading.Lock()
        self._direct_file: io.FileIO | None = None
        self._reads_direct: bool | None = None
        try:
            self._check(expected_bytes, stamp)
        except BaseException:
            self.close()
            raise
        if stays_whole and expected_bytes:
            with suppress(OSError):  # of a file system without mappings, or an address space without room: it is read
                self._pages = map_file(self.fd, 0, expected_bytes)

    def _check(self, expected_bytes: int, expected: FileStamp | None) -> None:
        found = FileStamp.of(self.fd)
        if found.size_bytes != expected_bytes or expected not in (found, None):
            raise BadCheckpoint(
                "the file changed after its header was read",
                address=str(self.path),
                expected=f"{expected_bytes} bytes" if expected is None else str(expected),
                got=str(found),
            )

    def close(self) -> None:
        for file in (self._file, self._direct_file):
            if file is not None:
                file.close()
        self.fd, self._direct_file = -1, None
        self._pages = None  # its tensors keep them

    def may_map(self, span: ByteRange) -> bool:
        if self._pages is None:
            return False
        share = self._share(span)
        return share is not None and share >= MAPPED_SHARE

    def mapped(self, span: ByteRange) -> Memory:
        # mapped once, and before any of it is populated: mmap(2) waits while another thread populates (its lock is the process's)
        assert self._pages is not None  # by `may_map`
        return (ctypes.c_ubyte * span.size_bytes).from_buffer(self._pages, span.start)

    def read(self, block: ByteRange, into: memoryview) -> Way:
        direct_fd = self._direct()
        if direct_fd is None:
            self._fill(self.fd, block, into[: block.size_bytes], 0)
            return Way.BUFFERED
        share = self._share(block)
        if share is None:
            return self._read_unknowing(direct_fd, block, into)
        if share >= CACHED_SHARE:
            self._fill(self.fd, block, into[: block.size_bytes], 0)
            return Way.CACHED
        return self._read_direct(direct_fd, block, into)

    def _direct(self) -> int | None:
        """A descriptor for reads around the page cache, opened by the first of them: a file that is all mapped needs none. None: the file
        system has no such reads."""
        with self._lock:
            if self._reads_direct is None:
                self._direct_file = _reopened_direct(self.fd)
                self._reads_direct = self._direct_file is not None
            return None if self._direct_file is None else self._direct_file.fileno()

    def _share(self, span: ByteRange) -> float | None:
        """Of `span` in memory; None: there is no way to know."""
        share = resident_share(self.fd, span)
        return sampled_share(self.fd, span) if share is None else share

    def _read_unknowing(self, direct_fd: int, block: ByteRange, into: memoryview) -> Way:
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
        return self._read_direct(direct_fd, block, into)

    def _read_direct(self, direct_fd: int, block: ByteRange, into: memoryview) -> Way:
        aligned_bytes = -(-block.size_bytes // ALIGNMENT) * ALIGNMENT
        got = os.preadv(direct_fd, [into[:aligned_bytes]], block.start)
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


def open_shard(shard: Shard, cancel: Cancellation) -> ShardFile:
    """An `Opener` of files that anybody may make shorter: they are read and never mapped."""
    return ShardFile(shard.path, shard.header.file_bytes, stays_whole=False, stamp=shard.stamp)


def _reopened_direct(fd: int) -> io.FileIO | None:
    """The same file with O_DIRECT that really reads, or None: tmpfs and some others take the flag and fail, or refuse it."""
    try:
        with ExitStack() as held:
            direct = held.enter_context(io.FileIO(f"/proc/self/fd/{fd}", opener=_open_direct))
            with mmap.mmap(-1, ALIGNMENT) as probe:
                os.preadv(direct.fileno(), [probe], 0)
            held.pop_all()
            return direct
    except OSError:
        return None


def _open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)
