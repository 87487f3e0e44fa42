"""One file of a fetch in progress, and the memory that its bytes are put into as they pass."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modelcache import chunks
from modelcache.abc.ingest import IncomingFile
from modelcache.digest import Digest
from modelcache.errors import Cancelled, SourceChanged
from modelcache.fetch.begun import Begun
from modelcache.fetch.buffers import address
from modelcache.loader.memory import Memory
from modelcache.patience import Cancellation, Condition
from modelcache.ranges import ByteRange, RangeSet

LOOK_S = 0.2
"""Longest sleep between two looks whether the fetch goes on."""


@dataclass(eq=False)
class _Place:
    """Memory for a span of the file.

    Attributes:
        address: of its first byte.
        memory: what keeps it, if who reads it does not.
        here: what was put there.
        taken: what somebody took from there: nothing is put there any more.
    """

    span: ByteRange
    address: int
    memory: Memory | None = None
    here: RangeSet = field(default_factory=RangeSet)
    taken: RangeSet = field(default_factory=RangeSet)

    def is_at(self, block: ByteRange, address: int) -> bool:
        """Whether this has the memory from `address` on for the block."""
        at = address - self.address
        return at >= 0 and self.span.start + at == block.start and block.stop <= self.span.stop

    def open_parts(self, at: ByteRange) -> Sequence[ByteRange]:
        """What is to be put there of these bytes."""
        start, stop = max(self.span.start, at.start), min(self.span.stop, at.stop)
        return self.taken.missing(ByteRange(start, stop)) if start < stop else []

    def receives(self, at: ByteRange) -> memoryview | None:
        """Its memory for these bytes, if it has room for all of them and nobody took any yet."""
        inside = self.span.start <= at.start and at.stop <= self.span.stop
        if self.memory is None or not inside or self.taken.missing(at) != [at]:
            return None
        with memoryview(self.memory) as whole, whole.cast("B") as view:
            return view[at.start - self.span.start : at.stop - self.span.start]


_Copy = tuple[_Place, ByteRange]


class Passage:
    """The files of one fetch that somebody reads (an `Audience`). Thread-safe."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._numbers = {item.path: number for number, item in enumerate(begun.listing.files)}
        self._lock = threading.Lock()
        self._files: dict[int, Passing] = {}

    def file(self, name: str, size_bytes: int) -> Passing:
        """One of them, the same each time. Raises SourceChanged: the fetch is of a version without it, or with one of another size."""
        number = self._numbers.get(name)
        got_bytes = None if number is None else self._begun.listing.files[number].size_bytes
        if number is None or got_bytes != size_bytes:
            raise SourceChanged(
                f"`{name}` changed while it was loaded",
                address=str(self._begun.listing.uri),
                expected=f"{size_bytes} bytes",
                got="no such file" if got_bytes is None else f"{got_bytes} bytes",
            )
        with self._lock:
            return self._files.setdefault(number, Passing(self._begun, number))

    def room(self, file: int, at: ByteRange) -> memoryview | None:
        return self._files[file].room(at) if file in self._files else None

    def broke(self, file: int, at: ByteRange) -> None:
        if file in self._files:
            self._files[file].broke(at)

    def arrived(self, file: int, at: ByteRange, data: memoryview, mark: bytes) -> None:
        if file in self._files:
            self._files[file].arrived(at, data, mark)

    def restarted(self, file: int) -> None:
        if file in self._files:
            self._files[file].restarted()

    def completed(self, file: int) -> None:
        if file in self._files:
            self._files[file].completed()


class Passing:
    """One file of one fetch. Thread-safe."""

    def __init__(self, begun: Begun, number: int) -> None:
        self.begun = begun
        self.incoming: IncomingFile = begun.ingest.files[number]
        self.is_resumable = begun.listing.files[number].resumable
        self.pass_number = 0
        self._number = number
        self._changed = Condition()
        self._places: list[_Place] = []
        self._copying: list[_Copy] = []
        self._receiving: list[_Copy] = []
        self._marks: dict[int, bytes] = {}

    def vouches(self, pass_number: int, digest: Digest | None) -> bool:
        """Whether this is the digest that was computed of the bytes that passed then."""
        computed = self._number in self.begun.fetch.compared and self.incoming.sha256 == digest
        return computed and self.pass_number == pass_number

    # -- for the passage ---------------------------------------------------------------------------------------------

    def room(self, at: ByteRange) -> memoryview | None:
        """Where this chunk is wanted, if it is wanted whole in one place; until `arrived` or `broke`. The view keeps the memory."""
        with self._changed:
            for place in self._places:
                room = place.receives(at)
                if room is not None:
                    self._receiving.append((place, at))
                    return room
        return None

    def broke(self, at: ByteRange) -> None:
        """This chunk is not received any more."""
        with self._changed:
            self._receiving = [each for each in self._receiving if each[1] != at]
            self._changed.notify_all()

    def arrived(self, at: ByteRange, data: memoryview, mark: bytes) -> None:
        """This chunk passes, with this xxh3-128."""
        with self._changed:
            self._marks[at.start // chunks.CHUNK_BYTES] = mark
            copies = [(place, part) for place in self._places for part in place.open_parts(at)]
            self._copying += copies
            self._receiving = [each for each in self._receiving if each[1] != at]
            self._changed.notify_all()
        if not copies:
            return
        source = address(data)
        for place, part in copies:
            start, to = source + part.start - at.start, place.address + part.start - place.span.start
            if to != start:  # else it was received there
                ctypes.memmove(to, start, part.size_bytes)  # lets the GIL go
        with self._changed:
            for copy in copies:
                copy[0].here.add(copy[1])
                self._copying.remove(copy)
            self._changed.notify_all()

    def restarted(self) -> None:
        """What passed was wrong: all passes again."""
        with self._changed:
            self.pass_number += 1
            self._marks.clear()
            for place in self._places:
                place.here = RangeSet()

    def completed(self) -> None:
        """All of it is verified."""
        self._wake()

    # -- for readers ------------------------------------------------------------------------------------------------

    def want(self, span: ByteRange, *, now: bool = False) -> None:
        """These bytes go before those that nobody wants, or `now`, before all others of the fetch."""
        self.begun.fetch.want(self._number, span.start // chunks.CHUNK_BYTES, -(-span.stop // chunks.CHUNK_BYTES), now=now)

    def expect(self, span: ByteRange, memory: Memory) -> None:
        """The bytes of `span` are wanted in `memory`, which begins with the first. A chunk that passes from now on is received there; where
        it is wanted in parts, or elsewhere too, it is copied there.
        """
        with self._changed:
            self._places.append(_Place(span, ctypes.addressof(memory), memory))
        self.want(span)

    def forget(self, *, settle: bool = False) -> None:
        """Nothing is expected any more, and no copy is made once this returns; what is received just now keeps its memory.

        Args:
            settle: wait for that, too: somebody else fills that memory next.
        """
        with self._changed:
            self._places = []
            while self._copying or (settle and self._receives(ByteRange(0, self.incoming.size_bytes))):
                self._changed.wait(LOOK_S)

    def holds(self, block: ByteRange, into: memoryview) -> bool:
        """Whether all of a block was put into `into`, as it was expected."""
        at = address(into)
        with self._changed:
            places = [place for place in self._places if place.is_at(block, at)]
            return any(not place.here.missing(block) for place in places)

    def take(self, block: ByteRange, into: memoryview, cancel: Cancellation) -> tuple[bool, int]:
        """Wait for a block and have it in `into`; whether all of it passed, so that nothing had to be read back, and on which pass.

        Raises:
            Cancelled: by `cancel`, or because the fetch ended without it. StoreFault.
        """
        place = self._place_of(block, into)
        while True:
            pass_number = self.pass_number
            came = False
            try:
                self.want(block, now=True)
                while not (came := self.incoming.wait(block, LOOK_S, cancel)):
                    pass
            finally:
                gaps = self._close(place, block, settle=came)
            for gap in gaps:
                self.incoming.read(gap.start, into[gap.start - block.start : gap.stop - block.start])
            if self.pass_number == pass_number:
                return not gaps, pass_number
            with self._changed:
                place.here = RangeSet()  # it may have been taken of the pass that was wrong: it is read back

    def settle(self, block: ByteRange, cancel: Cancellation) -> int:
        """Wait until a block is in the file; on which pass. Raises as `take`."""
        while True:
            pass_number = self.pass_number
            self.want(block, now=True)
            while not self.incoming.wait(block, LOOK_S, cancel):
                pass
            if self.pass_number == pass_number:
                return pass_number

    def leave(self, block: ByteRange, into: memoryview) -> None:
        """A block is read elsewhere into `into`: nothing is put there any more once this returns, and a place that was taken is let go."""
        at = address(into)
        with self._changed:
            places = [place for place in self._places if place.is_at(block, at)]
        for place in places:
            self._close(place, block, settle=True)

    def marks(self, block: ByteRange, pass_number: int) -> Mapping[ByteRange, bytes] | None:
        """xxh3-128 of the chunks that a block lies in, as they passed then; None: not all of them were seen."""
        numbers = range(block.start // chunks.CHUNK_BYTES, -(-block.stop // chunks.CHUNK_BYTES))
        with self._changed:
            if self.pass_number != pass_number or not all(number in self._marks for number in numbers):
                return None
            return {chunks.chunk_range(number, self.incoming.size_bytes): self._marks[number] for number in numbers}

    def wait_complete(self, cancel: Cancellation) -> None:
        """Wait until the file is verified. Raises Cancelled: by `cancel`, or because the fetch ended without it."""
        self.want(ByteRange(0, self.incoming.size_bytes), now=True)
        with cancel.on_cancel(self._wake), self._changed:
            while self.incoming.sha256 is None:
                cancel.check()
                if self.begun.fetch.ended and self.incoming.sha256 is None:  # all of it may be here, and wrong
                    raise Cancelled(f"the fetch of `{self.incoming.path}` ended before it was verified")
                self._changed.wait(LOOK_S)

    def _place_of(self, block: ByteRange, into: memoryview) -> _Place:
        """Where `into` is expected; expected from now on, if it is not."""
        at = address(into)
        with self._changed:
            for place in self._places:
                if place.is_at(block, at):
                    return place
            place = _Place(block, at)
            self._places.append(place)
            return place

    def _close(self, place: _Place, block: ByteRange, *, settle: bool) -> Sequence[ByteRange]:
        """Put nothing of a block there any more; what is missing of it.

        Args:
            settle: wait for what is received there just now.
        """
        with self._changed:
            place.taken.add(block)
            if place.taken.covers(place.span) and place in self._places:
                self._places.remove(place)
            while any(each is place and _overlap(part, block) for each, part in self._copying) or (settle and self._receives(block, place)):
                self._changed.wait(LOOK_S)
            return place.here.missing(block)

    def _receives(self, block: ByteRange, place: _Place | None = None) -> bool:
        """Whether a worker has memory for bytes of a block in its hands; none has when the fetch is over."""
        over = self.begun.fetch.ended and self.begun.fetch.active == 0
        return not over and any(_overlap(part, block) and place in (None, each) for each, part in self._receiving)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _overlap(a: ByteRange, b: ByteRange) -> bool:
    return a.start < b.stop and b.start < a.stop
