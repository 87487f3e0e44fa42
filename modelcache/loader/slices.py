"""Parts of one tensor: the rows that are read, and what is cut from them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.loader.header import Dtype, TensorEntry
from modelcache.loader.plan import ALIGNMENT, Extent
from modelcache.ranges import ByteRange

Index = slice | tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a tensor.

    Attributes:
        rows: the rows it lies in, as a tensor of their own; they follow each other in the file.
        rest: of the other dimensions.
    """

    rows: TensorEntry
    rest: tuple[slice, ...]

    def extent(self, shard: int) -> Extent:
        """What is read for it. `shard`: the number of its file."""
        span = self.rows.span
        start = span.start - span.start % ALIGNMENT if span.size_bytes else span.start
        return Extent(shard, ByteRange(start, span.stop), (self.rows,))


def cut(entry: TensorEntry, index: Index) -> Cut:
    """The part of a tensor that slices of its first dimensions name, as Python has them: `slice(-2, None)` are the last two rows. The last
    dimension of 4-bit elements is counted as torch has it, two in one.

    Raises:
        IndexError: more slices than dimensions, or a step other than 1.
    """
    slices = index if isinstance(index, tuple) else (index,)
    if len(slices) > len(entry.shape) or any(each.step not in (None, 1) for each in slices):
        raise IndexError(f"tensor `{entry.name}` of shape {list(entry.shape)} has no part {index!r}: one slice a dimension, of step 1")
    if not slices:
        return Cut(entry, ())
    packed = 2 if entry.dtype is Dtype.F4 and len(entry.shape) == 1 else 1
    count = entry.shape[0] // packed
    start, stop, _ = slices[0].indices(count)
    stop = max(start, stop)
    row_bytes = entry.span.size_bytes // count if count else 0
    span = ByteRange(entry.span.start + start * row_bytes, entry.span.start + stop * row_bytes)
    rows = TensorEntry(entry.name, entry.dtype, ((stop - start) * packed, *entry.shape[1:]), span)
    return Cut(rows, slices[1:])
