"""Which rank of a group reads which block. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.ranges import ByteRange

READS = 4
"""In flight in a group, together: what reaches the ceiling of a disk (`reader.THREADS`); each rank has one at least."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is read at once.

    Attributes:
        file: number of the checkpoint's file.
        span: of the file, from an aligned start; at most BLOCK_BYTES.
    """

    file: int
    span: ByteRange


@dataclass(frozen=True, slots=True)
class Division:
    """Which rank reads what, and what this one takes of it.

    Attributes:
        blocks: in the order in which they are read; the same for all ranks.
        readers: ranks that read them in turn.
        needs: bytes of each block that this rank takes; of some maybe none.
        reads: in flight of all readers together.
        patient: a block may take as long as its reader waits for it; else no longer than the timeout.
    """

    blocks: Sequence[Block]
    readers: Sequence[int]
    needs: Sequence[int]
    reads: int = READS
    patient: bool = False

    @classmethod
    def even(cls, blocks: Sequence[Block], ranks: Sequence[int]) -> Division:
        """All ranks read, and take all."""
        return cls(blocks, sorted(ranks), [block.span.size_bytes for block in blocks])

    def reader_of(self, number: int) -> int:
        return self.readers[number % len(self.readers)]
