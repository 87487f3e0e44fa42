"""Files of a checkpoint that one rank of a group brings: it alone reads them, and each other rank has its part from there."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.loader.checkpoint import Checkpoint
from modelcache.loader.council import Council
from modelcache.loader.division import Block, Division
from modelcache.loader.exchange import Exchange, OpenFile
from modelcache.loader.files import Expecting, Opener, Settling, TensorFile, Way
from modelcache.loader.group import Member
from modelcache.loader.meeting import Arrival, Terms, meet
from modelcache.loader.memory import Memory
from modelcache.loader.pages import PageExchange, Piece
from modelcache.loader.plan import BLOCK_BYTES, Extent
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


@dataclass(frozen=True, slots=True)
class Bringing:
    """How a group has a model that arrives.

    Attributes:
        rank: that brings it.
        version: what it is, before its digest is known.
        extent_bytes: a tensor is handed out when its extent is here.
        is_paged: its bytes go through the page cache: ranks have them from there.
        may_map: this rank maps them there.
    """

    council: Council = field(repr=False)
    rank: int
    version: str
    extent_bytes: int
    is_paged: bool = False
    may_map: bool = True


class _Blocks:
    """The blocks that the bringing rank reads, and in which of them each byte of a tensor is: in one."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        """
        Args:
            extents: in the order in which they are read, with each tensor once.
        """
        self.all: list[Block] = []
        self._by_file: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)  # where its bytes of tensors start and stop
        for extent in extents:
            for span in _blocks(extent.span):
                wanted = _wanted(extent, span)
                self._by_file[extent.shard].append((wanted.start, wanted.stop, len(self.all)))
                self.all.append(Block(extent.shard, span))
        for found in self._by_file.values():
            found.sort()

    def pieces(self, file: int, span: ByteRange) -> Iterator[Piece]:
        """What bytes of tensors of a file consist of, in file order."""
        found = self._by_file[file]
        start = span.start
        for _, stop, number in found[max(0, bisect_right(found, (start, 1 << 63)) - 1) :]:
            if start >= span.stop:
                return
            yield Piece(number, start - self.all[number].span.start, ByteRange(start, min(stop, span.stop)))
            start = stop


def _blocks(span: ByteRange) -> Iterator[ByteRange]:
    """Cut where chunks of the file end, too: those are received whole in one place."""
    start = span.start
    while start < span.stop:
        stop = min(start - start % BLOCK_BYTES + BLOCK_BYTES, span.stop)
        yield ByteRange(start, stop)
        start = stop


def _wanted(extent: Extent, block: ByteRange) -> ByteRange:
    """Without what comes before the extent's first tensor: others have that."""
    return ByteRange(max(block.start, extent.tensors[0].span.start), block.stop)


@dataclass(slots=True)
class _Taken:
    """Pieces of one file, in file order, by the blocks and by the extents that consist of them."""

    blocks: dict[ByteRange, list[Piece]] = field(default_factory=dict)
    extents: dict[ByteRange, list[Piece]] = field(default_factory=dict)


class BroughtFile:
    """One file, all of which comes from the group (a `TensorFile`)."""

    def __init__(self, path: Path, taken: _Taken, exchange: Exchange, cancel: Cancellation) -> None:
        self.path = path
        self._taken = taken
        self._exchange = exchange
        self._cancel = cancel

    def may_map(self, span: ByteRange) -> bool:
        return False

    def mapped(self, span: ByteRange) -> Memory:
        raise AssertionError("what a group brings is never mapped")

    def read(self, block: ByteRange, into: memoryview) -> Way:
        way = Way.SHARED
        for piece in self._taken.blocks[block]:
            start = piece.span.start - block.start
            way = self._exchange.take(piece.number, piece.at, into[start : start + piece.span.size_bytes], self._cancel)
        return way

    def close(self) -> None:
        """Nothing is its own."""


class BroughtPages(BroughtFile):
    """The same, whose pages are in the page cache (a `Paged`)."""

    def __init__(self, path: Path, taken: _Taken, exchange: PageExchange, cancel: Cancellation) -> None:
        super().__init__(path, taken, exchange, cancel)
        self._pages = exchange

    def may_map(self, span: ByteRange) -> bool:
        return True

    def pages(self, span: ByteRange) -> tuple[Memory, Way]:
        return self._pages.pages(self._taken.extents[span], span, self._cancel)


class _KeptOpen:
    """A file that several threads read, and that stays open when one of them is through with it (a `TensorFile`, `Expecting`,
    `Settling`)."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self.path = file.path
        self.may_map = file.may_map
        self.mapped = file.mapped
        self.read = file.read

    def expect(self, span: ByteRange, memory: Memory) -> None:
        if isinstance(self._file, Expecting):
            self._file.expect(span, memory)

    def want(self, span: ByteRange) -> None:
        if isinstance(self._file, Settling):
            self._file.want(span)

    def settled(self, block: ByteRange) -> int:
        assert isinstance(self._file, Settling)
        return self._file.settled(block)

    def close(self) -> None:
        """Whoever opened it does that."""


class _Files:
    """Each opened once, when it is read first. Thread-safe."""

    def __init__(self, open_file: OpenFile, ends: ExitStack) -> None:
        self._open_file = open_file
        self._ends = ends
        self._lock = threading.Lock()
        self._open: dict[int, _KeptOpen] = {}

    def get(self, number: int, ended: Cancellation) -> _KeptOpen:
        """Raises what opening it raises."""
        with self._lock:
            if number not in self._open:
                file = self._open_file(number, ended)
                self._ends.callback(file.close)
                self._open[number] = _KeptOpen(file)
            return self._open[number]


@contextmanager
def taking_part(
    checkpoint: Checkpoint,
    whole: Sequence[Extent],
    own: Sequence[Extent],
    member: Member,
    bringing: Bringing,
    open_file: Opener,
    cancel: Cancellation,
) -> Iterator[Opener]:
    """What opens files so that all bytes come from the rank that brings them, while the context lasts; it ends when all are there.

    Args:
        whole: what that rank reads, in this order: the same for all, with each tensor once.
        own: what this rank takes, in the same order.
        open_file: of the rank that brings.

    Raises:
        GroupBroken, BadShard: the group could not meet. What reading raises, when the context ends. MemoryError, Cancelled.
    """
    blocks = _Blocks(whole)
    wanted: defaultdict[int, _Taken] = defaultdict(_Taken)
    needs = [0] * len(blocks.all)
    for extent in own:
        taken = wanted[extent.shard]
        for span in extent.blocks():
            taken.blocks[span] = list(blocks.pieces(extent.shard, _wanted(extent, span)))
        found = taken.extents[extent.span] = [piece for span in extent.blocks() for piece in taken.blocks[span]]
        for piece in found:
            needs[piece.number] += piece.span.size_bytes
    number_of = {shard.path: number for number, shard in enumerate(checkpoint.shards)}
    with ExitStack() as ends:
        kept = ends.enter_context(ExitStack())  # before the exchange, whose threads read them
        files = _Files(lambda number, ended: open_file(checkpoint.shards[number], ended), kept)
        exchange = ends.enter_context(_exchange(blocks.all, needs, member, bringing, files.get, cancel))
        ends.enter_context(cancel.on_cancel(exchange.ended.cancel))
        if isinstance(exchange, PageExchange) and bringing.may_map:
            yield lambda shard, cancel: BroughtPages(shard.path, wanted[number_of[shard.path]], exchange, cancel)
        else:
            yield lambda shard, cancel: BroughtFile(shard.path, wanted[number_of[shard.path]], exchange, cancel)
        exchange.finish(cancel)


def _exchange(
    blocks: Sequence[Block],
    needs: Sequence[int],
    member: Member,
    bringing: Bringing,
    open_file: OpenFile,
    cancel: Cancellation,
) -> Exchange:
    group = member.group
    terms = Terms(0 if bringing.is_paged else max(1, min(group.memory_bytes // BLOCK_BYTES, len(blocks))), frozenset())
    who = Arrival(group.name, member.rank, member.ranks, _digest(blocks, bringing), group.timeout_s)
    with bringing.council.watching(cancel) as until_one_is_gone:
        seat = meet(who, lambda: terms, until_one_is_gone)
    division = Division(blocks, [bringing.rank], needs, patient=True)
    if not bringing.is_paged:
        return Exchange(seat, member.rank, division, open_file, group.timeout_s)
    return PageExchange(seat, member.rank, division, open_file, group.timeout_s)


def _digest(blocks: Sequence[Block], bringing: Bringing) -> str:
    """Of what is read, and in which order."""
    told = hashlib.sha256(f"{bringing.version};{bringing.rank}".encode())
    for block in blocks:
        told.update(f";{block.file}{block.span}".encode())
    return told.hexdigest()
