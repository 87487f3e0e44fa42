"""Which bytes are read in which order, and which tensors lie in them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.header import TensorEntry
from modelcache.ranges import ByteRange
from modelcache.units import KIB, MIB

ALIGNMENT = 4096
"""Of address, offset and length in a direct read; covers every logical block size in use (open(2), O_DIRECT)."""
GAP_BYTES = 512 * KIB
"""Unwanted bytes between two wanted tensors that are read along: about what a disk gives in the time of one more request."""
EXTENT_BYTES = 256 * MIB
"""An extent is ended at the next tensor beyond this: a consumer of a stream gives memory back in such pieces."""
BLOCK_BYTES = 8 * MIB
"""Of one read, and what the page cache is asked about: four in flight reach the disk's ceiling (`reference/loaders.md`)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A contiguous piece of one file that is read into one piece of memory, so that no tensor is copied.

    Attributes:
        shard: its number in the checkpoint.
        span: of the file, from an aligned start; read to where its last tensor ends.
        tensors: in file order; each lies in it whole.
    """

    shard: int
    span: ByteRange
    tensors: tuple[TensorEntry, ...] = field(repr=False)

    @property
    def memory_bytes(self) -> int:
        """What a direct read fills: whole blocks."""
        return _up(self.span.size_bytes)

    def blocks(self) -> Iterator[ByteRange]:
        """In file order; all but the last of equal size, all from aligned starts."""
        for start in range(self.span.start, self.span.stop, BLOCK_BYTES):
            yield ByteRange(start, min(start + BLOCK_BYTES, self.span.stop))


def plan(checkpoint: Checkpoint, names: Sequence[str]) -> list[Extent]:
    """Extents that hold these tensors, in file order: no byte is in two of them, and no gap over GAP_BYTES in one.

    Tensors of no bytes are in none.
    """
    wanted: dict[int, list[TensorEntry]] = {}
    for name in names:
        shard, entry = checkpoint.place[name]
        if entry.span.size_bytes:
            wanted.setdefault(shard, []).append(entry)
    return [extent for shard in sorted(wanted) for extent in _extents(shard, sorted(wanted[shard], key=lambda entry: entry.span.start))]


def _extents(shard: int, entries: Sequence[TensorEntry]) -> Iterator[Extent]:
    group: list[TensorEntry] = []
    for entry in entries:
        if group and (entry.span.start - group[-1].span.stop > GAP_BYTES or entry.span.stop - group[0].span.start > EXTENT_BYTES):
            yield _extent(shard, group)
            group = []
        group.append(entry)
    if group:
        yield _extent(shard, group)


def _extent(shard: int, group: Sequence[TensorEntry]) -> Extent:
    start = group[0].span.start
    return Extent(shard, ByteRange(start - start % ALIGNMENT, group[-1].span.stop), tuple(group))


def _up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
