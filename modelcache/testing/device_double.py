"""A host-only double of GPUs, for machines without one: it copies as late as it may, or in threads of its own, and tells on whoever
touches memory that a copy still needs.

It stands in for real parts only where there are none; `tests/gpu` runs the same contract on those.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from modelcache.errors import DeviceFault, NoDeviceMemory
from modelcache.loader.device import Copy, Target
from modelcache.loader.layout import PAGE_BYTES, Piece
from modelcache.loader.memory import Memory

POISON = 0xA5
"""What memory holds that no copy has come to."""


class DoubleMachine:
    """Devices by name, their memory, and the host memory that they may read. Close it: its threads end.

    Attributes:
        capacity_bytes: of each device.
        pinnable_bytes: that can be locked; None: all.
        failing_copy: counted from 1 over all devices, that fails; None: none does.
        violations: what a real device would have answered with wrong bytes, or worse.
        used_bytes: by device, of memory that something refers to.
        most_pinned_bytes: at any time.
    """

    def __init__(self, *, capacity_bytes: int = 1 << 40, pinnable_bytes: int | None = None, threads: bool = False, seed: int = 0) -> None:
        """
        Args:
            threads: copies go on by themselves; else none is done before somebody waits for it.
        """
        self.capacity_bytes = capacity_bytes
        self.pinnable_bytes = pinnable_bytes
        self.failing_copy: int | None = None
        self.violations: list[str] = []
        self.used_bytes: dict[str, int] = {}
        self.most_pinned_bytes = 0
        self.copies = 0
        self._threads = threads
        self._chance = random.Random(seed)
        self._pinned: dict[int, int] = {}
        self._blocks: dict[int, int] = {}
        self._streams: list[_Stream] = []
        self._lock = threading.RLock()  # memory may be freed in the middle of anything

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._streams:
            stream.close()

    @property
    def pinned_bytes(self) -> int:
        return sum(self._pinned.values())

    @property
    def total_used_bytes(self) -> int:
        return sum(self.used_bytes.values())

    def device(self, name: str = "double:0") -> DoubleDevice:
        """For one load."""
        stream = _Stream(self._execute, self._chance if self._threads else None)
        with self._lock:
            self._streams.append(stream)
        return DoubleDevice(self, name, stream)

    def tell(self, violation: str) -> None:
        self.violations.append(violation)

    # -- for devices ----------------------------------------------------------------------------------------------------

    def pin(self, memory: Memory) -> None:
        with self._lock:
            if self.pinnable_bytes is not None and self.pinned_bytes + len(memory) > self.pinnable_bytes:
                raise MemoryError("no more can be locked")
            if ctypes.addressof(memory) % 4096:
                self.tell("locked memory that doesn't begin with a page")
            self._pinned[ctypes.addressof(memory)] = len(memory)
            weakref.finalize(memory, self._unmapped, ctypes.addressof(memory)).atexit = False
            self.most_pinned_bytes = max(self.most_pinned_bytes, self.pinned_bytes)

    def unpin(self, memory: Memory) -> None:
        with self._lock:
            if self._pinned.pop(ctypes.addressof(memory), None) is None:
                self.tell("unlocked what was not locked")
            if any(_within({ctypes.addressof(memory): len(memory)}, each.source) for stream in self._streams for each in stream.pending()):
                self.tell("unlocked memory that a copy still reads")

    def _unmapped(self, address: int) -> None:
        with self._lock:
            if self._pinned.pop(address, None) is not None:
                self.tell("let go of memory that is locked")

    def allocate(self, name: str, size_bytes: int) -> torch.Tensor:
        with self._lock:
            used_bytes = self.used_bytes.get(name, 0)
            if size_bytes <= 0:
                self.tell("asked for no memory")
            if used_bytes + size_bytes > self.capacity_bytes:
                raise NoDeviceMemory(
                    "the device is full", needed_bytes=size_bytes, free_bytes=self.capacity_bytes - used_bytes, address=name
                )
            self.used_bytes[name] = used_bytes + size_bytes
        block = (ctypes.c_ubyte * (size_bytes + 2 * PAGE_BYTES))()
        self._blocks[ctypes.addressof(block)] = len(block)
        ctypes.memset(block, POISON, len(block))
        weakref.finalize(block, self._freed, name, size_bytes, ctypes.addressof(block), len(block)).atexit = False
        skip = PAGE_BYTES - ctypes.addressof(block) % (2 * PAGE_BYTES)  # no better aligned than is promised
        return torch.frombuffer(block, dtype=torch.uint8)[skip % (2 * PAGE_BYTES) :][:size_bytes]

    def _freed(self, name: str, size_bytes: int, address: int, length: int) -> None:
        with self._lock:
            self.used_bytes[name] -= size_bytes
            del self._blocks[address]
            if any(address <= to < address + length for stream in self._streams for each in stream.pending() for _, to, _ in each.moves):
                self.tell("freed memory that a copy still goes to")

    def begins(self) -> None:
        with self._lock:
            self.copies += 1
            if self.copies == self.failing_copy:
                raise DeviceFault("the device fell off the bus", address="double")

    def _execute(self, copy: DoubleCopy) -> None:
        with self._lock:
            if not _within(self._pinned, copy.source):
                self.tell("copied from memory that is not locked")
                return
            for source, target, size_bytes in copy.moves:
                if _within(self._blocks, target):  # else it was freed, which was told
                    ctypes.memmove(target, source, size_bytes)


def _within(pieces: Mapping[int, int], address: int) -> bool:
    return any(start <= address < start + size_bytes for start, size_bytes in pieces.items())


_current = threading.local()


def current_device() -> str | None:
    """The calling thread's, where a device said so."""
    return getattr(_current, "name", None)


class DoubleDevice:
    """One device, for one load (a `Device`)."""

    def __init__(self, machine: DoubleMachine, name: str, stream: _Stream) -> None:
        self.name = name
        self._machine = machine
        self._stream = stream

    def pin(self, memory: Memory) -> None:
        self._machine.pin(memory)

    def unpin(self, memory: Memory) -> None:
        self._machine.unpin(memory)

    def allocate(self, size_bytes: int) -> Target:
        return Target(self._machine.allocate(self.name, size_bytes))

    @contextmanager
    def current(self) -> Iterator[None]:
        before = current_device()
        _current.name = self.name
        try:
            yield
        finally:
            _current.name = before

    def settle(self, target: Target) -> None:
        """There is no earlier work."""

    def copy(self, source: torch.Tensor, pieces: Sequence[Piece], target: Target) -> Copy:
        self._machine.begins()
        for piece in pieces:
            if not (piece.offset >= 0 and piece.offset + piece.size_bytes <= source.numel()):
                self._machine.tell("copied from beyond the source")
            if not (piece.at >= 0 and piece.at + piece.size_bytes <= target.memory.numel()):
                self._machine.tell("copied to beyond the target")
        moves = [(source.data_ptr() + piece.offset, target.memory.data_ptr() + piece.at, piece.size_bytes) for piece in pieces]
        return self._stream.put(DoubleCopy(self._stream, source.data_ptr(), moves))

    def hand_over(self, target: Target, copies: Sequence[Copy]) -> None:
        for copy in copies:
            copy.wait()
        first, size_bytes = target.memory.data_ptr(), target.memory.numel()
        if any(first <= to < first + size_bytes for each in self._stream.pending() for _, to, _ in each.moves):
            self._machine.tell("handed over before a copy into it was waited for")

    def drain(self) -> None:
        self._stream.drain()


class DoubleCopy:
    """A `Copy`. It knows addresses alone, as a device does, and keeps nothing alive."""

    def __init__(self, stream: _Stream, source: int, moves: Sequence[tuple[int, int, int]]) -> None:
        self.source = source
        self.moves = moves
        self.is_executed = False
        self._stream = stream

    def is_done(self) -> bool:
        return self.is_executed

    def wait(self) -> None:
        self._stream.run_until(self)


class _Stream:
    """Copies in the order in which they were begun; late, or by a thread of its own that takes its time."""

    def __init__(self, execute: Callable[[DoubleCopy], None], chance: random.Random | None) -> None:
        self._execute = execute
        self._chance = chance
        self._pending: deque[DoubleCopy] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._thread = None if chance is None else threading.Thread(target=self._go_on, name="double-stream", daemon=True)
        if self._thread is not None:
            self._thread.start()

    def put(self, copy: DoubleCopy) -> DoubleCopy:
        with self._changed:
            self._pending.append(copy)
            self._changed.notify_all()
        return copy

    def pending(self) -> Sequence[DoubleCopy]:
        return tuple(self._pending)

    def run_until(self, copy: DoubleCopy) -> None:
        with self._changed:
            while not copy.is_executed:
                self._one()

    def drain(self) -> None:
        with self._changed:
            while self._pending:
                self._one()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _one(self) -> None:
        copy = self._pending[0]
        self._execute(copy)
        copy.is_executed = True
        self._pending.popleft()

    def _go_on(self) -> None:
        assert self._chance is not None
        with self._changed:
            while not self._closed:
                if self._pending and self._chance.random() < 0.5:
                    self._one()
                else:
                    self._changed.wait(0.001)
