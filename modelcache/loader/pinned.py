"""A bounded ring of page-locked host buffers, on the way from disks to devices."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

import torch

from modelcache.errors import DeviceFault
from modelcache.loader.device import Copy, Pinning
from modelcache.loader.memory import Memory
from modelcache.patience import Cancellation, Condition

LOOK_AGAIN_S = 0.1
"""While every buffer is being filled: how late a cancellation is seen."""

LOOKED_AT = 4
"""Buffers, before another one is made or waited for: copies end about as they were begun, and each look costs microseconds."""


class Buffer:
    """One page-locked buffer of the ring.

    Attributes:
        tensor: its bytes, as devices copy from it.
        pinning: what locked it, and unlocks it.
    """

    def __init__(self, memory: Memory, pinning: Pinning) -> None:
        self.memory = memory
        self.pinning = pinning
        self.tensor = torch.frombuffer(memory, dtype=torch.uint8)
        self._copies: Sequence[Copy] = ()

    def is_free(self) -> bool:
        return all(copy.is_done() for copy in self._copies)

    def wait(self) -> None:
        """Until nothing reads it any more. Raises DeviceFault."""
        for copy in self._copies:
            copy.wait()
        self._copies = ()

    def read_by(self, copies: Sequence[Copy]) -> None:
        self._copies = copies


class PinnedRing:
    """Buffers for all loads of a process; made when they are first needed, and kept for the next load. Thread-safe.

    Whoever takes a buffer fills it, begins copies from it and gives it back at once; it is lent again when they are done. So loads never
    wait for each other longer than one read takes.

    After a fork the child starts with none: locked pages belong to the process that locked them.

    Attributes:
        buffer_bytes: size of each.
        limit_bytes: of all together; at least one is made. Less than there is: the rest stays until `release`.
    """

    def __init__(self, *, buffer_bytes: int, limit_bytes: int) -> None:
        self.buffer_bytes = buffer_bytes
        self.limit_bytes = limit_bytes
        self._begin()
        _RINGS.add(self)

    def _begin(self) -> None:
        self._changed = Condition()
        self._given: deque[Buffer] = deque()  # the one given back first is first
        self._made = 0
        self._most: int | None = None

    @property
    def pinned_bytes(self) -> int:
        """Locked, in use or not."""
        with self._changed:
            return self._made * self.buffer_bytes

    def take(self, pinning: Pinning, cancel: Cancellation) -> Buffer:
        """A buffer that nothing reads; give it back with `give`. Waits while there is none.

        Args:
            pinning: locks the memory of a new one.

        Raises:
            MemoryError: not even one can be locked. DeviceFault. Cancelled.
        """
        while True:
            cancel.check()
            with self._changed:
                buffer = self._free(LOOKED_AT)
                grows = buffer is None and self._made < self._limit()
                if grows:
                    self._made += 1
                elif buffer is None:
                    if not self._given:
                        self._changed.wait(LOOK_AGAIN_S)
                        continue
                    buffer = self._given.popleft()
            if buffer is not None:
                return self._awaited(buffer)
            if (made := self._grown(pinning)) is not None:
                return made

    def give(self, buffer: Buffer, copies: Sequence[Copy]) -> None:
        """Back, with the copies that were begun from it."""
        buffer.read_by(copies)
        with self._changed:
            self._given.append(buffer)
            self._changed.notify()

    def release(self) -> int:
        """Give buffers that nobody uses back to the machine; how many bytes. Raises DeviceFault."""
        released = 0
        while True:
            with self._changed:
                buffer = self._free(len(self._given))
                if buffer is None:
                    self._most = None  # what could not be locked before may be had now
                    return released
            self._drop(buffer)
            released += self.buffer_bytes

    def _limit(self) -> int:
        limit = max(1, self.limit_bytes // self.buffer_bytes)
        return limit if self._most is None else min(limit, self._most)

    def _free(self, looked_at: int) -> Buffer | None:
        """Taken out, if there is one that nothing reads among those that were given first."""
        for index, buffer in enumerate(islice(self._given, looked_at)):
            try:
                is_free = buffer.is_free()
            except DeviceFault:
                del self._given[index]
                self._abandon(buffer)
                raise
            if is_free:
                del self._given[index]
                return buffer
        return None

    def _awaited(self, buffer: Buffer) -> Buffer:
        try:
            buffer.wait()
        except BaseException:
            self._abandon(buffer)
            raise
        return buffer

    def _abandon(self, buffer: Buffer) -> None:
        """Never used again: whether a device that failed still reads it is not known."""
        _ABANDONED.append(buffer)
        self._forget_one()

    def _grown(self, pinning: Pinning) -> Buffer | None:
        """A new buffer; None: no more can be locked, but others can be waited for."""
        try:
            memory = _new_memory(self.buffer_bytes)
            pinning.pin(memory)
        except MemoryError:
            with self._changed:
                self._forget_one()
                if self._made == 0:
                    raise
                self._most = self._made
                return None
        except BaseException:
            self._forget_one()
            raise
        return Buffer(memory, pinning)

    def _drop(self, buffer: Buffer) -> None:
        try:
            buffer.pinning.unpin(buffer.memory)
        except BaseException:
            self._abandon(buffer)
            raise
        self._forget_one()

    def _forget_one(self) -> None:
        with self._changed:
            self._made -= 1
            self._changed.notify_all()

    def after_fork(self) -> None:
        """In the child: what the parent locked stays mapped nowhere, and is never given back from here."""
        _ABANDONED.extend(self._given)
        self._begin()


def _new_memory(size_bytes: int) -> Memory:
    """In huge pages where the kernel has them (fewer to lock), and not in a fork: there, a write would move the parent's pages away from
    under the device (madvise(2), MADV_DONTFORK). Raises MemoryError."""
    try:
        piece = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece.madvise(mmap.MADV_DONTFORK)
    except OSError as error:
        raise MemoryError(f"{size_bytes} bytes of memory can't be had ({error.strerror})") from error
    with suppress(OSError):  # a kernel without huge pages
        piece.madvise(mmap.MADV_HUGEPAGE)
    return (ctypes.c_ubyte * size_bytes).from_buffer(piece)


_RINGS: weakref.WeakSet[PinnedRing] = weakref.WeakSet()
_ABANDONED: list[Buffer] = []
"""Buffers that must not be unmapped by this process: a device may still read them, or they are a parent's."""


def _after_fork() -> None:
    for ring in list(_RINGS):
        ring.after_fork()


os.register_at_fork(after_in_child=_after_fork)
