"""How much room there is under every limit; measured each time, never summed up from what was believed."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.store import Limits
from modelcache.store.blobs import BLOCK_BYTES
from modelcache.store.faults import unless_of_the_disk
from modelcache.store.parts import Parts
from modelcache.store.workspace import RESERVED, TREE, ingest_directories


@dataclass(frozen=True, slots=True)
class Room:
    """What a reservation has to do with, in bytes.

    Attributes:
        total_bytes: the file system's size.
        free_bytes: what is free for us there, after what other ingests have booked without blocks.
        available_bytes: what may be booked under every limit; negative when a watermark is passed.
        low_bytes: what may be used until the low watermark; negative when it is passed.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int
    low_bytes: int


class Budget:
    """Measures a store against its limits."""

    def __init__(self, parts: Parts, limits: Limits) -> None:
        self._parts = parts
        self._layout = parts.root.layout
        self.limits = limits
        self._block_bytes = os.statvfs(self._layout.root).f_frsize

    def room(self) -> Room:
        """The room now. Two that book must not measure at once: the room lock."""
        promised = self.promised_bytes()  # first: what is written meanwhile counts twice then, and not never
        found = os.statvfs(self._layout.root)
        total = found.f_blocks * found.f_frsize
        free = found.f_bavail * found.f_frsize - promised
        available = free - (total - int(total * self.limits.high_watermark))
        low = free - (total - int(total * self.limits.low_watermark))
        if self.limits.max_bytes is not None:
            under_cap = self.limits.max_bytes - self.own_bytes()
            available, low = min(available, under_cap), min(low, under_cap)
        return Room(total, free, available, low)

    def own_bytes(self) -> int:
        """Blocks of all that the store holds, and what it has promised to ingests.

        Each inode once, and looked for in the order in which others may move it meanwhile: none is missed. Of blobs, the many, only the
        numbers of the inodes are kept, 8 bytes each.
        """
        elsewhere = {found.st_ino: found.st_blocks for found in regular_files(self._layout.ingests)}
        seen, blocks = array("Q"), 0
        compartments = list(self._parts.compartments())
        for compartment in compartments:
            for directory in compartment.blobs.blocks():
                seen.extend(directory)
                blocks += sum(directory.values())
        for place in (*(compartment.home / "quarantine" for compartment in compartments), self._layout.trash):
            elsewhere |= {found.st_ino: found.st_blocks for found in regular_files(place)}
        for inode in seen:
            elsewhere.pop(inode, None)
        return (blocks + sum(elsewhere.values())) * BLOCK_BYTES + self.promised_bytes()

    def ingest_bytes(self) -> int:
        """Blocks of what is on its way in and no blob yet, and what is promised to it."""
        return unshared_bytes(self._layout.ingests) + self.promised_bytes()

    def promised_bytes(self) -> int:
        """What ingests have booked as a number, where the file system could not book blocks, and have not written yet."""
        return sum(self._promised(path) for path in ingest_directories(self._parts.root))

    def rounded(self, size_bytes: int) -> int:
        """The blocks of a file of this size."""
        return -(-size_bytes // self._block_bytes) * self._block_bytes

    @staticmethod
    def _promised(ingest: Path) -> int:
        try:
            total = int((ingest / RESERVED).read_text("ascii"))
        except FileNotFoundError:
            return 0
        except ValueError:  # A record of a crash or a stray hand; what is on the disk is counted anyway.
            return 0
        if not (ingest / TREE).is_dir():  # It is a snapshot already.
            return 0
        return max(0, total - sum(found.st_blocks * BLOCK_BYTES for found in regular_files(ingest / TREE)))


def regular_files(directory: Path) -> Iterator[os.stat_result]:
    """Every file below a directory; what vanishes meanwhile is left out."""
    for parent, _, files in os.walk(directory, onerror=unless_of_the_disk):
        for name in files:
            try:
                yield os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue


def unshared_bytes(directory: Path) -> int:
    """Blocks of the files below a directory that have no other name: what deleting it frees."""
    return sum(found.st_blocks * BLOCK_BYTES for found in regular_files(directory) if found.st_nlink == 1)
