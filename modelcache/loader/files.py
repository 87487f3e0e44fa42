"""What the loader asks of a file: whether it is in memory, its own pages, a block of it. Files on a disk and files that still arrive."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from modelcache.loader.checkpoint import Shard
from modelcache.loader.memory import Memory
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


class Way(StrEnum):
    """How a byte came."""

    MAPPED = "mapped"
    CACHED = "cached"
    """Copied from the page cache."""
    DIRECT = "direct"
    BUFFERED = "buffered"
    """Through the page cache, because the file system can't do otherwise, or to find out."""
    STRAIGHT = "straight"
    """From the disk into a GPU's memory (GPUDirect Storage)."""
    ARRIVED = "arrived"
    """From a file that was still being fetched when it was asked for."""
    SHARED = "shared"
    """Read by another rank of the group."""


class TensorFile(Protocol):
    """One file of a checkpoint, open. Read by several threads at once; closed by the load that opened it, after its last read."""

    @property
    def path(self) -> Path:
        """What errors name."""
        ...

    def may_map(self, span: ByteRange) -> bool:
        """Whether `mapped` may be asked for: nearly all of `span` (not empty) is in memory, and it is certain that the file stays whole."""
        ...

    def mapped(self, span: ByteRange) -> Memory:
        """The file's own pages, from the span's aligned start. What is written there is this process's alone. Raises OSError."""
        ...

    def read(self, block: ByteRange, into: memoryview) -> Way:
        """Fill the first bytes of `into` with a block; return when they are there. Waits as long as the file needs to have them.

        `block.start` and the address of `into` are multiples of ALIGNMENT; `into` has room up to the block's next aligned end, and what
        lies there beyond the block is anything afterwards.

        Raises:
            BadCheckpoint: the file ends before the block does.
            OSError: the disk failed. Cancelled, and what a file that arrives fails with.
        """
        ...

    def close(self) -> None:
        """Let go of it. What was mapped stays."""
        ...


@runtime_checkable
class Expecting(Protocol):
    """A file whose bytes may still be on their way, and can be put where they are wanted as they pass."""

    def expect(self, span: ByteRange, memory: Memory) -> None:
        """`memory` is for the bytes of `span`, and begins with the first: `read` will be asked for all of it, in blocks."""
        ...


@runtime_checkable
class Settling(Protocol):
    """A file whose bytes arrive in a file of this machine, through the page cache."""

    def want(self, span: ByteRange) -> None:
        """These bytes will be asked for."""
        ...

    def settled(self, block: ByteRange) -> int:
        """Wait for a block; a descriptor of the file that has it, for as long as this one is open. Raises as `TensorFile.read`."""
        ...


@runtime_checkable
class Paged(Protocol):
    """A file whose bytes may still be on their way, and whose own pages can be had when they are here."""

    def pages(self, span: ByteRange) -> tuple[Memory, Way]:
        """Wait for the bytes of `span`; the pages, as of `TensorFile.mapped`, and how they came. Raises as `TensorFile.read`."""
        ...


Opener = Callable[[Shard, Cancellation], TensorFile]
"""Opens one file of a checkpoint. The cancellation is the load's own: asked for when the caller cancels and when the load ends early, and
the one that a `read` that waits must end with.

Raises: BadCheckpoint: the file is not as long as its header says, or gone. FileFault, StoreFault: it can't be opened.
"""
