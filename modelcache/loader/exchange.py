"""One rank's side of a group that reads each block once: it reads its own, takes all, and says what it took."""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import IntEnum
from types import TracebackType
from typing import Self

from modelcache.errors import GroupBroken, StoreFault
from modelcache.loader.division import Division
from modelcache.loader.files import Expecting, TensorFile, Way
from modelcache.loader.meeting import Seat
from modelcache.loader.segment import Segment
from modelcache.patience import Cancellation, Condition, begin, end_of

WAITS_S = 5.0
"""How often a rank that waits for bytes of a patient division says so, at least; four times in the timeout, if that is more often."""


class Word(IntEnum):
    """What ranks say to each other about a block, or a rank."""

    READY = 1
    """It is in its slot: to every other rank."""
    TAKEN = 2
    """This rank needs it no more: to the one that reads the block which comes into that slot next."""
    DONE = 3
    """This rank has taken all that it needs, and all blocks are read: to every other one. The link ends then."""
    LOST = 4
    """The rank of this number is gone, and so this one will be: to every other one, which may hear of that one's end later."""
    WAITS = 5
    """This rank waits for bytes of a block and will have them: to every other one."""
    FILE = 6
    """With a descriptor, the next of those that READY counts from 0."""


FRAME = struct.Struct("<III")
"""A word, a number, and of READY in which file the block is, where it is in one."""

OpenFile = Callable[[int, Cancellation], TensorFile]
"""A file by its number; its reads wait for what still arrives until they are cancelled."""


class Exchange:
    """Block n is read by reader n mod readers into slot n mod slots, when every rank has taken block n - slots. A context manager.

    All ranks have the same blocks, and each takes what it needs of all of them, nearly in order (some at a time). So the first block that
    somebody still waits for can always be read, however slow the others are, and no more than the slots are in memory.

    Attributes:
        ended: what the files that it reads are cancelled by: when it ends, at the latest.
    """

    def __init__(self, seat: Seat, rank: int, division: Division, open_file: OpenFile, timeout_s: float) -> None:
        """Takes the seat over.

        Args:
            open_file: opened by the threads that read, and closed by them.
            timeout_s: for which a block is waited for when none at all comes, and of a patient division nobody waits for bytes.

        Raises:
            GroupBroken: the memory can't be used.
        """
        self._links = seat.links
        self._files: list[int] = []
        self._owner_pid = os.getpid()
        try:
            self._segment = Segment(seat.segment_fd)
        except BaseException:
            self._close_links()
            raise
        self._rank = rank
        self._ranks = sorted([rank, *seat.links])
        self._division = division
        self._blocks = division.blocks
        self._needs = list(division.needs)
        self._open_file = open_file
        self.ended = Cancellation()
        self._timeout_s = timeout_s
        self._changed = Condition()  # with a lock that is reentrant, so that a signal handler may cancel
        self._own = deque(number for number in range(len(self._blocks)) if division.reader_of(number) == rank)
        self._reading = 0
        self._ready: dict[int, int] = {}
        self._slots = self._segment.slots or len(self._blocks)
        self._moved_at_s = time.monotonic()
        self._taken_by: Counter[int] = Counter()
        self._taken = 0
        self._ways: dict[int, Way] = {}
        self._done: set[int] = set()
        self._broken: BaseException | None = None
        self._lost: int | None = None
        self._closing = False
        self._placed: deque[int] = deque()
        self._places = division.patient and self._segment.slots > 0
        self._placing = self._places
        count = min(-(-division.reads // len(division.readers)), len(self._own))
        self._threads = [threading.Thread(target=self._read_own, name=f"load-group-{number}") for number in range(count)]
        if count and self._places:
            self._threads.append(threading.Thread(target=self._place_own, name="load-group-places"))
        self._listener = threading.Thread(target=self._listen, name="load-group-links")

    def __enter__(self) -> Self:
        """Raises GroupBroken: this machine has no more threads; nothing is left then, and the others see this rank go."""
        try:
            begin((*self._threads, self._listener), self._end)
        except RuntimeError as error:
            raise GroupBroken(f"rank {self._rank} can't read for its group ({error})", hint="give this process more threads") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Tell the others whether this rank was done, and end. What others still need of it is in the memory and on the links."""
        if os.getpid() != self._owner_pid:
            self._close_links()
            return  # it goes on in the process that began it, and what threads of that one had locked stays locked in a fork
        with self._changed:
            self._closing = True
            if self._taken == len(self._blocks):
                self._say_all(Word.DONE, 0)
            elif self._lost is not None:
                self._say_all(Word.LOST, self._lost)
            self._changed.notify_all()
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.ended.cancel()
        for thread in self._threads:
            end_of(thread)
        for link in self._links.values():
            with suppress(OSError):  # it may have ended already
                link.shutdown(socket.SHUT_RDWR)
        end_of(self._listener)
        self._close_links()
        self._segment.close()

    def take(self, number: int, at: int, into: memoryview, cancel: Cancellation) -> Way:
        """Fill `into` with what is `at` a place of a block: of each block what this rank needs of it, and each byte once. How it came: as
        this rank read it, or SHARED.

        Raises:
            GroupBroken: a rank died or left, or no block came in time.
            Cancelled. What reading it raised, where this rank did.
        """
        self._await(lambda: number in self._ready, number, cancel)
        self._copy(number, at, into)
        return self._used(number, len(into))

    def _copy(self, number: int, at: int, into: memoryview) -> None:
        self._segment.copy(number % self._slots, at, into)

    def _used(self, number: int, size_bytes: int) -> Way:
        """This rank needs so much less of a block; how that came."""
        with self._changed:
            self._needs[number] -= size_bytes
            way = self._ways.get(number, Way.SHARED)
            if not self._needs[number]:
                self._took(number)
        return way

    def finish(self, cancel: Cancellation) -> None:
        """Wait until all blocks are read, of which this rank has taken what it needs: others may still take theirs. Raises as `take`."""
        self._await(lambda: self._taken == len(self._blocks), len(self._blocks) - 1, cancel)

    def _took(self, number: int) -> None:
        """This rank needs no more of a block."""
        self._taken += 1
        self._ways.pop(number, None)
        following = number + self._slots
        if following < len(self._blocks):
            if (reader := self._division.reader_of(following)) == self._rank:
                self._hear(self._rank, Word.TAKEN, number)
            else:
                self._say(reader, Word.TAKEN, number)

    def _await(self, is_so: Callable[[], bool], number: int, cancel: Cancellation) -> None:
        started_s = time.monotonic()
        with cancel.on_cancel(self._wake), self._changed:
            while not is_so():
                cancel.check()
                if self._broken is not None:
                    raise self._broken
                remaining_s = max(started_s, self._moved_at_s) + self._timeout_s - time.monotonic()
                if remaining_s <= 0:
                    raise GroupBroken(
                        f"no block came within {self._timeout_s:g} s: rank {self._division.reader_of(number)}, which reads the next one, "
                        "or one that it waits for stands still"
                    )
                self._changed.wait(remaining_s)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_own(self) -> None:
        with self._telling():
            self._read_blocks()

    def _place_own(self) -> None:
        """Have bytes put into slots as they arrive, long before somebody waits for them."""
        with self._telling():
            while (number := self._next_own()) is not None:
                with closing(self._open_file(self._blocks[number].file, self.ended)) as file:
                    if isinstance(file, Expecting):
                        file.expect(self._blocks[number].span, self._segment.memory(number % self._slots))
                with self._changed:
                    self._placed.append(number)
                    self._changed.notify_all()
        with self._changed:
            self._placing = False
            self._changed.notify_all()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Whatever ends it early, all who take blocks are told."""
        try:
            yield
        except OSError as error:
            self._break(StoreFault(f"a file of the checkpoint can't be read ({error.strerror})"))
        except BaseException as error:  # whatever it was, ranks wait for these blocks
            self._break(error)

    def _read_blocks(self) -> None:
        file: tuple[int, TensorFile] | None = None
        try:
            following = self._next_placed if self._places else self._next_own
            while (number := following()) is not None:
                block = self._blocks[number]
                if file is None or file[0] != block.file:
                    if file is not None:
                        file[1].close()
                    file = None
                    file = block.file, self._open_file(block.file, self.ended)
                with self._counted():
                    way, where = self._bring(file[1], number)
                if self._needs[number]:
                    self._ways[number] = way
                self._hear(self._rank, Word.READY, number, where)
                self._say_all(Word.READY, number, where)
        finally:
            if file is not None:
                file[1].close()

    def _bring(self, file: TensorFile, number: int) -> tuple[Way, int]:
        """Have a block where all can take it; how it came, and in which file it is, if in one."""
        with self._segment.slot(number % self._slots) as slot:
            return file.read(self._blocks[number].span, slot), 0

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A read that goes on."""
        with self._changed:
            self._reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading -= 1

    def _next_own(self) -> int | None:
        """The next block that this rank reads, when its slot is free; None: there is none, or the others have no use for it."""
        with self._changed:
            if not self._own:
                return None
            number = self._own.popleft()
            before = number - self._slots
            while before >= 0 and self._taken_by[before] < len(self._ranks):
                if self._closing or self._broken is not None:
                    return None
                self._changed.wait()
            self._taken_by.pop(before, None)
            return None if self._closing or self._broken is not None else number

    def _next_placed(self) -> int | None:
        """The next block whose slot bytes are put into; None as of `_next_own`."""
        with self._changed:
            while not self._placed:
                if not self._placing or self._closing or self._broken is not None:
                    return None
                self._changed.wait()
            return None if self._closing or self._broken is not None else self._placed.popleft()

    def _break(self, error: BaseException) -> None:
        with self._changed:
            if self._broken is None:
                self._broken = error
            self._changed.notify_all()

    # -- the others ---------------------------------------------------------------------------------------------------

    def _say_all(self, word: Word, number: int, where: int = 0) -> None:
        for rank in self._links:
            self._say(rank, word, number, where)

    def _say(self, rank: int, word: Word, number: int, where: int = 0) -> None:
        try:
            self._links[rank].send(FRAME.pack(word, number, where), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:  # it has not listened since before the last slots were filled
            self._break(GroupBroken(f"rank {rank} of the group stands still"))
        except OSError:  # it is gone; whether it was done is told by its link
            pass

    def _listen(self) -> None:
        waits_s = min(WAITS_S, self._timeout_s / 4) if self._division.patient else None
        told_at_s = time.monotonic()
        with closing(selectors.DefaultSelector()) as links:
            for rank, link in self._links.items():
                links.register(link, selectors.EVENT_READ, rank)
            while links.get_map():
                for key, _ in links.select(waits_s):
                    if not self._read_words(key.data):
                        links.unregister(key.fileobj)
                if waits_s is not None and time.monotonic() >= told_at_s + waits_s:
                    told_at_s = time.monotonic()
                    self._tell_of_waiting()

    def _tell_of_waiting(self) -> None:
        with self._changed:
            if self._reading and not self._closing:
                self._hear(self._rank, Word.WAITS, 0)
                self._say_all(Word.WAITS, 0)

    def _read_words(self, rank: int) -> bool:
        """Hear what a rank said; False: its link has ended."""
        try:
            data, fds, _, _ = socket.recv_fds(self._links[rank], FRAME.size, 1, socket.MSG_CMSG_CLOEXEC)  # frames come one by one
        except OSError:
            data, fds = b"", []
        self._files += fds
        if data[:4] == FRAME.pack(Word.FILE, 0, 0)[:4] and not fds:
            self._break(GroupBroken(f"rank {self._rank} can't have more files open", hint="allow this process more of them (ulimit -n)"))
        for word, number, where in FRAME.iter_unpack(data):
            self._hear(rank, word, number, where)
        if not data:
            self._hear(rank, Word.LOST, rank)
        return bool(data)

    def _hear(self, rank: int, word: int, number: int, where: int = 0) -> None:
        with self._changed:
            if word == Word.READY:
                self._ready[number] = where
                self._moved_at_s = time.monotonic()
                if not self._needs[number]:
                    self._took(number)
            elif word == Word.WAITS:
                self._moved_at_s = time.monotonic()
            elif word == Word.TAKEN:
                self._taken_by[number] += 1
            elif word == Word.DONE:
                self._done.add(rank)
            elif word == Word.LOST and number not in self._done and self._lost is None and not self._closing:
                self._lost = number
                self._break(GroupBroken(f"rank {number} of the group ended before its load did"))
            self._changed.notify_all()

    def _close_links(self) -> None:
        for link in self._links.values():
            link.close()
        for fd in self._files:
            os.close(fd)
        self._files.clear()
