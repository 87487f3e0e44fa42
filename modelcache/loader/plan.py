"""Which bytes are read in which order, and which tensors lie in them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from modelcache.loader.checkpoint import Checkpoint, Order
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
"""Of one read, and what the page cache is asked about: four in flight reach the disk's ceiling (`bench/README.md`, bench.load)."""
Destination = Callable[[str], object]
"""Where the tensor of a name goes, as a value to compare."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A contiguous piece of one file that is read into one piece of memory, so that no tensor is copied.

    Attributes:
        shard: its number in the checkpoint.
        span: of the file, from an aligned start; read to where its last tensor ends. Of no bytes if its tensors have none.
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


def plan(
    checkpoint: Checkpoint,
    names: Sequence[str],
    *,
    order: Order = "file",
    destination: Destination | None = None,
    extent_bytes: int = EXTENT_BYTES,
    gap_bytes: int = GAP_BYTES,
) -> list[Extent]:
    """Extents that hold these tensors: no gap over `gap_bytes` in one, and none with tensors of two destinations.

    In file order no byte is in two of them, but for the page in which one ends and the next begins. As given, tensors that follow each
    other in the file, too, are read together; one that comes out of turn begins an extent, and what lies between may be read again.

    Args:
        destination: of a tensor's name; None: all have the same.
        extent_bytes: an extent is ended at the next tensor beyond this.
    """
    found = [checkpoint.place[name] for name in names]
    if order == "file":
        found.sort(key=lambda place: (place[0], place[1].span))
    return extents_of(found, destination=destination, gap_bytes=gap_bytes, extent_bytes=extent_bytes)


def extents_of(
    found: Sequence[tuple[int, TensorEntry]], *, destination: Destination | None, gap_bytes: int, extent_bytes: int = EXTENT_BYTES
) -> list[Extent]:
    """Extents of these tensors, (number of the shard, where it is), in their order.

    Args:
        gap_bytes: between two tensors of an extent, at most.
    """
    extents: list[Extent] = []
    group: list[TensorEntry] = []
    before: tuple[int, object] | None = None
    for shard, entry in found:
        here = shard, None if destination is None else destination(entry.name)
        if before is not None and (here != before or not _joins(entry, group, gap_bytes, extent_bytes)):
            extents.append(_extent(before[0], group))
            group = []
        group.append(entry)
        before = here
    if before is not None:
        extents.append(_extent(before[0], group))
    return extents


def _joins(entry: TensorEntry, group: Sequence[TensorEntry], gap_bytes: int, extent_bytes: int) -> bool:
    return 0 <= entry.span.start - group[-1].span.stop <= gap_bytes and entry.span.stop - group[0].span.start <= extent_bytes


def _extent(shard: int, group: Sequence[TensorEntry]) -> Extent:
    start, stop = group[0].span.start, group[-1].span.stop
    return Extent(shard, ByteRange(start - start % ALIGNMENT if stop > start else start, stop), tuple(group))


def _up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
