"""Where the bytes of a file are on the disk (FIEMAP), and whether a file system can share blocks between files at all."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelcache.store import durable

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1
FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED = 0x1, 0x2000
"""<linux/fiemap.h>."""
FIEMAP_EXTENT_PLACELESS = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x400
"""Unknown, delayed, encoded, not aligned, inline, tail: such an extent has no blocks of its own that could be compared."""
EXTENTS = 64
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
PROBE_BYTES = 4096
REGION_BYTES = 16 << 30
"""Overlaps are looked for in so much of the disk at a time: of runs of a chunk, 4 MiB, that many can be sorted in a megabyte."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of blocks. `physical` is where it begins on the disk, or in the file system's own numbering of it."""

    logical: int
    physical: int
    size_bytes: int
    flags: int

    @property
    def is_shared(self) -> bool:
        return bool(self.flags & FIEMAP_EXTENT_SHARED)


def extents(fd: int, offset: int, size_bytes: int) -> Iterator[Extent]:
    """The extents of a range, in order; holes are left out. Raises OSError where the file system does not tell."""
    end = offset + size_bytes
    while offset < end:
        head = _HEAD.pack(offset, end - offset, FIEMAP_FLAG_SYNC, 0, EXTENTS, 0)
        request = bytearray(head.ljust(_HEAD.size + EXTENTS * _EXTENT.size, b"\0"))
        fcntl.ioctl(fd, FS_IOC_FIEMAP, request, True)
        count = _HEAD.unpack_from(request)[3]
        if count == 0:
            return
        for number in range(count):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEAD.size + number * _EXTENT.size)
            yield Extent(logical, physical, length, flags)
            offset = logical + length
            if flags & FIEMAP_EXTENT_LAST:
                return


def places(fd: int, offset: int, size_bytes: int) -> tuple[tuple[int, int, int], ...] | None:
    """Where exactly a range is: begin within it, place, length of each run. None if the file system does not say."""
    found: list[tuple[int, int, int]] = []
    for extent in extents(fd, offset, size_bytes):
        if extent.flags & FIEMAP_EXTENT_PLACELESS:
            return None
        first = max(extent.logical, offset)
        length = min(extent.logical + extent.size_bytes, offset + size_bytes) - first
        begin, place = first - offset, extent.physical + first - extent.logical
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (begin, place):
            begin, place, before = found.pop()
            length += before
        found.append((begin, place, length))
    return tuple(found)


def can_share(directory: Path) -> bool:
    """Whether two files in this directory can use the same blocks: tried on two unnamed ones."""
    with tempfile.TemporaryFile(dir=directory) as first, tempfile.TemporaryFile(dir=directory) as second:
        for file in (first, second):
            file.write(bytes(PROBE_BYTES))
            file.flush()
        try:
            return durable.dedupe_range(first.fileno(), 0, second.fileno(), 0, PROBE_BYTES) is not None
        except OSError:
            return False


def doubly_used_bytes(files: Iterator[Path]) -> int:
    """Blocks that these files use more than once, as often as they are used beyond the first time. Keeps 16 bytes per shared extent."""
    regions: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))
    for path in files:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            for item in extents(fd, 0, os.fstat(fd).st_size):
                if item.is_shared:
                    _note(regions, item.physical, item.physical + item.size_bytes)
        finally:
            os.close(fd)
    return sum(_overlap_bytes(runs) for runs in regions.values())


def _note(regions: defaultdict[int, array[int]], first: int, stop: int) -> None:
    while first < stop:
        region = first // REGION_BYTES
        end = min(stop, (region + 1) * REGION_BYTES)
        regions[region].extend((first, end))
        first = end


def _overlap_bytes(runs: array[int]) -> int:
    """Args: runs: begin and end of each, one behind the other."""
    total = end = 0
    for first, stop in sorted(zip(runs[::2], runs[1::2], strict=True)):
        total += max(0, min(end, stop) - first)
        end = max(end, stop)
    return total
