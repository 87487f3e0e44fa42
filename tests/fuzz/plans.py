"""What holds of every plan of a load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from modelcache.loader.checkpoint import Checkpoint, Order, Shard
from modelcache.loader.header import Dtype, Header, TensorEntry
from modelcache.loader.plan import ALIGNMENT, BLOCK_BYTES, EXTENT_BYTES, GAP_BYTES, plan
from modelcache.ranges import ByteRange

SIZES = (0, 0, 1, 5000, 100_000, GAP_BYTES, GAP_BYTES * 3, BLOCK_BYTES + 1, EXTENT_BYTES)


def checkpoint_of(sizes: Sequence[Sequence[int]]) -> Checkpoint:
    """Shards with tensors of these sizes, on no disk."""
    shards: list[Shard] = []
    place: dict[str, tuple[int, TensorEntry]] = {}
    for number, of_shard in enumerate(sizes):
        at, entries = 1000, []
        for index, size_bytes in enumerate(of_shard):
            entries.append(TensorEntry(f"s{number}.t{index}", Dtype.U8, (size_bytes,), ByteRange(at, at + size_bytes)))
            at += size_bytes
        shards.append(Shard(Path(f"{number}"), Header(tuple(entries), 1000, at, {})))
        place |= {entry.name: (number, entry) for entry in entries}
    return Checkpoint(Path("model"), tuple(shards), place)


def expect_sound(checkpoint: Checkpoint, names: Sequence[str], order: Order, destination: Callable[[str], bool]) -> None:
    """Plan a load, and raise AssertionError if a tensor is missing, torn apart or brought twice, or bytes are read for nothing."""
    extents = plan(checkpoint, names, order=order, destination=destination)
    planned = [entry.name for extent in extents for entry in extent.tensors]
    assert sorted(planned) == sorted(names)
    places = [(number, entry.span) for number, entry in map(checkpoint.place.__getitem__, planned)]
    assert planned == list(names) if order == "given" else places == sorted(places)
    for extent in extents:
        assert len({destination(entry.name) for entry in extent.tensors}) == 1
        assert {checkpoint.place[entry.name][0] for entry in extent.tensors} == {extent.shard}
        assert all(extent.span.start <= entry.span.start and entry.span.stop <= extent.span.stop for entry in extent.tensors)
        assert extent.span.size_bytes == 0 or extent.span.start % ALIGNMENT == 0
        blocks = list(extent.blocks())
        assert [block.start for block in blocks] == list(range(extent.span.start, extent.span.stop, BLOCK_BYTES))
        assert sum(block.size_bytes for block in blocks) == extent.span.size_bytes <= extent.memory_bytes
        gaps = [after.span.start - before.span.stop for before, after in pairwise(extent.tensors)]
        assert all(0 <= gap <= GAP_BYTES for gap in gaps)
        assert extent.span.size_bytes <= EXTENT_BYTES + ALIGNMENT or len(extent.tensors) == 1
    if order == "file":
        spans = [(extent.shard, extent.span) for extent in extents if extent.span.size_bytes]
        assert all(one[0] != two[0] or one[1].stop - two[1].start < ALIGNMENT for one, two in pairwise(spans))
