"""Files of a checkpoint that a group reads together: what several ranks need is read from the disk by one of them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.division import Block, Division
from modelcache.loader.exchange import Exchange
from modelcache.loader.files import Opener, TensorFile, Way
from modelcache.loader.group import Member
from modelcache.loader.meeting import Arrival, Terms, meet
from modelcache.loader.memory import Memory
from modelcache.loader.plan import BLOCK_BYTES, Extent
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


@dataclass(slots=True)
class Shared:
    """What of one file comes from the group.

    Attributes:
        numbers: of the group's blocks, by where they lie.
        spans: of the extents that consist of them.
    """

    numbers: dict[ByteRange, int] = field(default_factory=dict)
    spans: set[ByteRange] = field(default_factory=set)


class TogetherFile:
    """One file, of which some blocks come from the group (a `TensorFile`)."""

    def __init__(self, own: TensorFile, shared: Shared, exchange: Exchange, cancel: Cancellation) -> None:
        self._own = own
        self._shared = shared
        self._exchange = exchange
        self._cancel = cancel

    @property
    def path(self) -> Path:
        return self._own.path

    def may_map(self, span: ByteRange) -> bool:
        return span not in self._shared.spans and self._own.may_map(span)

    def mapped(self, span: ByteRange) -> Memory:
        return self._own.mapped(span)

    def read(self, block: ByteRange, into: memoryview) -> Way:
        number = self._shared.numbers.get(block)
        return self._own.read(block, into) if number is None else self._exchange.take(number, 0, into[: block.size_bytes], self._cancel)

    def close(self) -> None:
        self._own.close()


@contextmanager
def reading_together(
    checkpoint: Checkpoint, common: Sequence[Extent], member: Member, open_file: Opener, cancel: Cancellation
) -> Iterator[Opener]:
    """What opens files so that the blocks of these extents, which all ranks read, come from the group while the context lasts.

    What is in the page cache when all ranks have come each gets from there by itself.

    Args:
        common: the same for all ranks, in the order in which they are read.

    Raises:
        GroupBroken, BadShard: the group could not meet.
        FileFault: a file can't be opened. BadCheckpoint, MemoryError, Cancelled.
    """
    if len(member.ranks) == 1 or not any(extent.span.size_bytes for extent in common):
        yield open_file
        return
    settle = partial(_terms, checkpoint, common, member.group.memory_bytes, open_file, cancel)
    who = Arrival(member.group.name, member.rank, member.ranks, _digest(checkpoint, common), member.group.timeout_s)
    seat = meet(who, settle, cancel)
    blocks: list[Block] = []
    shared: defaultdict[int, Shared] = defaultdict(Shared)
    for extent in (extent for number, extent in enumerate(common) if number not in seat.skipped):
        shared[extent.shard].spans.add(extent.span)
        for span in extent.blocks():
            shared[extent.shard].numbers[span] = len(blocks)
            blocks.append(Block(extent.shard, span))
    number_of = {shard.path: number for number, shard in enumerate(checkpoint.shards)}
    with ExitStack() as ends:
        exchange = ends.enter_context(
            Exchange(
                seat,
                member.rank,
                Division.even(blocks, member.ranks),
                lambda file, ended: open_file(checkpoint.shards[file], ended),
                member.group.timeout_s,
            )
        )
        ends.enter_context(cancel.on_cancel(exchange.ended.cancel))
        yield lambda shard, cancel: TogetherFile(open_file(shard, cancel), shared[number_of[shard.path]], exchange, cancel)


def _terms(checkpoint: Checkpoint, common: Sequence[Extent], memory_bytes: int, open_file: Opener, cancel: Cancellation) -> Terms:
    skipped = set()
    for file in sorted({extent.shard for extent in common}):
        with closing(open_file(checkpoint.shards[file], cancel)) as opened:
            extents = ((number, extent.span) for number, extent in enumerate(common) if extent.shard == file)
            skipped |= {number for number, span in extents if not span.size_bytes or opened.may_map(span)}
    blocks = sum(1 for number, extent in enumerate(common) if number not in skipped for _ in extent.blocks())
    return Terms(max(1, min(memory_bytes // BLOCK_BYTES, blocks)), frozenset(skipped))


def _digest(checkpoint: Checkpoint, common: Sequence[Extent]) -> str:
    """Of what is read in common, and in which order: the very same files, as this node's kernel knows them."""
    told = hashlib.sha256(f"{BLOCK_BYTES}".encode())
    for file in sorted({extent.shard for extent in common}):
        found = os.stat(checkpoint.shards[file].path)
        told.update(f";{file}:{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}".encode())
    for extent in common:
        told.update(f";{extent.shard}{extent.span}".encode())
    return told.hexdigest()
