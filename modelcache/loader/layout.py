"""Where an extent's tensors lie in the memory of a device. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from modelcache.loader.header import TensorEntry
from modelcache.ranges import ByteRange

TENSOR_ALIGNMENT = 16
"""Bytes: what vector loads, tensor cores and compiled kernels want of a tensor's start (CUDA C++ programming guide, "Device memory
accesses": words of up to 16 bytes). Files align to 8 at best, and some to nothing."""
RUN_ALIGNMENT = 256
"""Bytes, of whatever begins anew; allocations of a device start at multiples of it, too (the same guide)."""
PAGE_BYTES = 4096
"""Of files, and of a device's memory that GPUDirect Storage fills without a copy between (GPUDirect Storage, Best Practices Guide)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tensors that follow each other in the file and on the device: one copy brings those of a block.

    Attributes:
        span: of the file.
        at: where it begins in the device's memory.
    """

    span: ByteRange
    at: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a block that is copied.

    Attributes:
        offset: in the block.
        at: in the device's memory.
    """

    offset: int
    at: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """An extent's place on a device.

    Attributes:
        size_bytes: of the memory; none where no tensor has bytes.
        runs: in file order. What lies between wanted tensors is in none.
    """

    size_bytes: int
    runs: Sequence[Run] = field(repr=False)

    def place_of(self, entry: TensorEntry) -> int:
        """Where a tensor (of some bytes) begins: at a multiple of TENSOR_ALIGNMENT."""
        run = self.runs[self._index(entry.span.start)]
        return run.at + entry.span.start - run.span.start

    def pieces(self, block: ByteRange) -> Iterator[Piece]:
        """What of a block of the file is copied where."""
        for index in range(max(0, self._index(block.start)), len(self.runs)):
            run = self.runs[index]
            if run.span.start >= block.stop:
                return
            start, stop = max(block.start, run.span.start), min(block.stop, run.span.stop)
            if start < stop:
                yield Piece(start - block.start, run.at + start - run.span.start, stop - start)

    def _index(self, position: int) -> int:
        """Of the last run that begins at or before a position of the file; -1: none does."""
        return bisect_right(self.runs, position, key=lambda run: run.span.start) - 1


def layout(tensors: Sequence[TensorEntry], *, by_pages: bool = False) -> Layout:
    """Lay tensors, in file order, out on a device: as they lie in the file where that keeps them aligned, else moved up.

    Args:
        by_pages: also as they lie in the file's pages, where that keeps them aligned: takes up to two pages more for each run.
    """
    runs: list[Run] = []
    for entry in tensors:
        if not entry.span.size_bytes:
            continue
        if runs and _follows(runs[-1], entry.span):
            runs[-1] = Run(ByteRange(runs[-1].span.start, entry.span.stop), runs[-1].at)
        else:
            end = runs[-1].at + runs[-1].span.size_bytes if runs else 0
            runs.append(Run(entry.span, _beginning(end, entry.span.start, by_pages)))
    return Layout(runs[-1].at + runs[-1].span.size_bytes if runs else 0, tuple(runs))


def _beginning(end: int, start: int, by_pages: bool) -> int:
    """Of a run from `start` of the file, behind what ends at `end`."""
    if by_pages and start % TENSOR_ALIGNMENT == 0:
        return -(-end // PAGE_BYTES) * PAGE_BYTES + start % PAGE_BYTES
    return -(-end // RUN_ALIGNMENT) * RUN_ALIGNMENT


def _follows(run: Run, span: ByteRange) -> bool:
    return span.start == run.span.stop and (run.at + run.span.size_bytes) % TENSOR_ALIGNMENT == 0
