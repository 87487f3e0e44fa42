"""A file of a checkpoint that may still be on its way, as the loader takes it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import xxhash

from modelcache.arriving.arrival import Arrival, HandedOut, mark_of
from modelcache.arriving.passing import Passing
from modelcache.errors import BadCheckpoint, Cancelled, StoreFault
from modelcache.fetch.begun import Begun
from modelcache.loader.files import Way
from modelcache.loader.memory import Memory
from modelcache.loader.shard_file import ShardFile
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


class ArrivingFile:
    """One file that is read while it arrives (a `TensorFile`, `Expecting`, `Settling`): each block as soon as it is here; when the file is
    verified, as what it is then. If its fetch ends and another takes its place, reads go on with that one.
    """

    def __init__(
        self,
        arrival: Arrival,
        begun: Begun,
        path: Path,
        size_bytes: int,
        cancel: Cancellation,
        *,
        verified_only: bool = False,
        may_map: bool = True,
    ) -> None:
        """
        Args:
            path: where it was to be when the fetch began; its last part is its name in the model.
            verified_only: no block before the whole file is verified. So it is in any case for a file that can't be resumed: the
                next try of it may bring another version.
            may_map: its own pages, once it is verified.
        """
        self.path = path
        self._arrival = arrival
        self._size_bytes = size_bytes
        self._cancel = cancel
        self._verified_only = verified_only
        self._may_map = may_map
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._whole: ShardFile | None = None
        self._arriving: dict[Passing, int] = {}
        self._passing = arrival.passage(begun).file(path.name, size_bytes)

    # -- as a TensorFile --------------------------------------------------------------------------------------------

    def may_map(self, span: ByteRange) -> bool:
        found = self._now()
        return isinstance(found, ShardFile) and found.may_map(span)

    def mapped(self, span: ByteRange) -> Memory:
        assert self._whole is not None  # by `may_map`
        return self._whole.mapped(span)

    def expect(self, span: ByteRange, memory: Memory) -> None:
        found = self._now()
        if isinstance(found, Passing) and not self._waits(found):
            found.expect(span, memory)

    def read(self, block: ByteRange, into: memoryview) -> Way:
        while True:
            found = self._now()
            passing = self._passing
            if isinstance(found, ShardFile) and not passing.holds(block, into):
                passing.leave(block, into)
                return found.read(block, into)
            try:
                if not self._waits(passing):
                    return self._take(passing, block, into)
                passing.wait_complete(self._cancel)
                continue
            except Cancelled:
                self._cancel.check()  # else its fetch has ended without this file
            except StoreFault:
                if passing.incoming.sha256 is None:
                    raise
                # else the whole model was published just then, and this file moved
            self._follow(passing)

    def want(self, span: ByteRange) -> None:
        found = self._now()
        if isinstance(found, Passing):
            found.want(span)

    def settled(self, block: ByteRange) -> int:
        while True:
            found, passing = self._now(), self._passing
            if isinstance(found, ShardFile):
                return found.fd
            try:
                if self._waits(passing):
                    passing.wait_complete(self._cancel)
                    continue
                fd = self._opened(passing)
                if fd is not None:
                    self._note(passing, block, passing.settle(block, self._cancel), fd)
                    return fd
            except Cancelled:
                self._cancel.check()  # else its fetch has ended without this file
            self._follow(passing)

    def close(self) -> None:
        if os.getpid() != self._owner_pid:
            return  # a fork has none of the threads that it would wait for
        with self._lock:
            self._passing.forget()
            if self._whole is not None:
                self._whole.close()
            for fd in self._arriving.values():
                os.close(fd)
            self._arriving.clear()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _waits(self, passing: Passing) -> bool:
        return (self._verified_only or not passing.is_resumable) and passing.incoming.sha256 is None

    def _take(self, passing: Passing, block: ByteRange, into: memoryview) -> Way:
        passed, pass_number = passing.take(block, into, self._cancel)
        marks = passing.marks(block, pass_number) if passed else None
        if marks is None:
            marks = {block: xxhash.xxh3_128_digest(into[: block.size_bytes])}
        self._arrival.handed_out(HandedOut(self.path.name, marks, passing, pass_number))
        return Way.ARRIVED if passed else Way.BUFFERED

    def _note(self, passing: Passing, block: ByteRange, pass_number: int, fd: int) -> None:
        """A block is handed out as it is in this file."""
        marks = passing.marks(block, pass_number)
        if marks is None:
            marks = {block: mark_of(fd, block)}
        self._arrival.handed_out(HandedOut(self.path.name, marks, passing, pass_number))

    def _opened(self, passing: Passing) -> int | None:
        """The file that its bytes arrive in; None: it moved, because the model is published, or is gone."""
        with self._lock:
            place = passing.incoming.place
            if passing not in self._arriving and place is not None:
                try:
                    self._arriving[passing] = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return None
            return self._arriving.get(passing)

    def _now(self) -> Passing | ShardFile:
        """The file itself once it is verified, else its way here."""
        with self._lock:
            if self._whole is None and self._passing.incoming.sha256 is not None:
                self._whole = self._open_verified(self._passing)
            return self._whole or self._passing

    def _follow(self, ended: Passing) -> None:
        """Go on with what takes the place of a way that has ended; waits for it."""
        found = self._arrival.later(ended.begun.number, self._cancel)
        with self._lock:
            if self._passing is ended and self._whole is None:  # no other thread was faster
                ended.forget(settle=True)
                if isinstance(found, Path):
                    self._whole = ShardFile(found / self.path.name, self._size_bytes, stays_whole=self._may_map)
                else:
                    self._passing = self._arrival.passage(found).file(self.path.name, self._size_bytes)

    def _open_verified(self, passing: Passing) -> ShardFile | None:
        """None: it is in no file system, or moves just now, because the model is published."""
        digest, place = passing.incoming.sha256, passing.incoming.place
        assert digest is not None
        if place is None:
            return None
        try:
            whole = ShardFile(place, self._size_bytes, stays_whole=self._may_map)
        except BadCheckpoint:
            return None
        self._arrival.read_of(self.path.name, digest)
        return whole
