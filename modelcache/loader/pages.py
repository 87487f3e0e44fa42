"""A group whose ranks have a model's bytes from the page cache, each as soon as it is there."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.errors import GroupBroken
from modelcache.loader.division import Division
from modelcache.loader.exchange import FRAME, Exchange, OpenFile, Word
from modelcache.loader.files import Settling, TensorFile, Way
from modelcache.loader.meeting import Seat
from modelcache.loader.memory import Memory, map_file
from modelcache.patience import Cancellation, Deadline
from modelcache.ranges import ByteRange

AHEAD_BLOCKS = 64
"""512 MiB that are wanted before what nobody asks for, behind what is waited for."""
LOOK_S = 0.5
"""Longest sleep between two looks whether it is over."""
_PATIENCE_S = {Word.WAITS: 0.0, Word.DONE: 2.0, Word.LOST: 2.0}
"""For which it is waited for a rank that doesn't listen; for other words the group's timeout."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is taken of one block.

    Attributes:
        at: its place in the block.
        span: of the file.
    """

    number: int
    at: int
    span: ByteRange


class PageExchange(Exchange):
    """No memory is shared, and no block waits for a rank: who brings one says in which file it is, and hands over the descriptor of each
    such file once."""

    def __init__(
        self,
        seat: Seat,
        rank: int,
        division: Division,
        open_file: OpenFile,
        timeout_s: float,
    ) -> None:
        """As of an exchange; the seat's memory is empty."""
        super().__init__(seat, rank, division, open_file, timeout_s)
        self._naming = threading.Lock()
        self._numbers: dict[int, int] = {}
        self._wanted = 0

    def pages(self, pieces: Sequence[Piece], span: ByteRange, cancel: Cancellation) -> tuple[Memory, Way]:
        """Wait for pieces of a file, all of what is taken of a span: its pages.

        Raises:
            OSError: they can't be mapped. As `take`.
        """
        for number in (piece.number for piece in pieces):
            self._await(lambda number=number: number in self._ready, number, cancel)  # type: ignore[misc]
        files = {self._ready[piece.number] for piece in pieces}
        memory = map_file(self._files[files.pop()], span.start, span.size_bytes) if len(files) == 1 else self._copied(pieces, span)
        ways = [self._used(piece.number, piece.span.size_bytes) for piece in pieces]
        return memory, ways[0]

    def _copied(self, pieces: Sequence[Piece], span: ByteRange) -> Memory:
        """Where another fetch went on in the middle, in another file."""
        memory = (ctypes.c_ubyte * span.size_bytes).from_buffer(mmap.mmap(-1, span.size_bytes))
        with memoryview(memory) as whole, whole.cast("B") as view:
            for piece in pieces:
                start = piece.span.start - span.start
                self._copy(piece.number, piece.at, view[start : start + piece.span.size_bytes])
        return memory

    def _copy(self, number: int, at: int, into: memoryview) -> None:
        fd, start, done = self._files[self._ready[number]], self._blocks[number].span.start + at, 0
        while done < len(into):
            count = os.preadv(fd, [into[done:]], start + done)
            if count == 0:
                raise GroupBroken(f"rank {self._division.reader_of(number)} handed out a file that ends before byte {start + len(into)}")
            done += count

    # -- who brings ---------------------------------------------------------------------------------------------------

    def _bring(self, file: TensorFile, number: int) -> tuple[Way, int]:
        assert isinstance(file, Settling)  # by who made this
        self._want(number + AHEAD_BLOCKS)
        return Way.ARRIVED, self._file(file.settled(self._blocks[number].span))

    def _want(self, stop: int) -> None:
        with self._naming:
            numbers = range(self._wanted, min(stop, len(self._blocks)))
            self._wanted = max(self._wanted, numbers.stop)
        for number in numbers:
            file = self._open_file(self._blocks[number].file, self.ended)
            if isinstance(file, Settling):
                file.want(self._blocks[number].span)

    def _file(self, fd: int) -> int:
        """The number of a file, of which all were told."""
        with self._naming:
            if fd not in self._numbers:
                self._numbers[fd] = len(self._files)
                self._files.append(os.dup(fd))
                for rank in self._links:
                    self._send(rank, Word.FILE, 0, fds=[fd])
            return self._numbers[fd]

    def _say(self, rank: int, word: Word, number: int, where: int = 0) -> None:
        self._send(rank, word, number, where)

    def _send(self, rank: int, word: Word, number: int, where: int = 0, fds: Sequence[int] = ()) -> None:
        """Any number of blocks may be here before a rank listens."""
        frame, deadline = FRAME.pack(word, number, where), Deadline.after(_PATIENCE_S.get(word, self._timeout_s))
        while True:
            try:
                socket.send_fds(self._links[rank], [frame], fds, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                is_needed = word in (Word.READY, Word.FILE)
                if self._broken is not None or (self._closing if is_needed else deadline.passed):
                    return
                if deadline.passed:
                    self._break(GroupBroken(f"rank {rank} of the group stands still"))
                    return
                ready = select.poll()
                ready.register(self._links[rank], select.POLLOUT)
                ready.poll(1000 * min(deadline.remaining_s(), LOOK_S))
            except OSError:  # it is gone; whether it was done is told by its link
                return
