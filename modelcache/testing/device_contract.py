"""What every `Device` promises, checked from outside: of the double wherever tests run, of real GPUs where there are some."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest
import torch

from modelcache.errors import NoDeviceMemory
from modelcache.loader.device import Copy, Device
from modelcache.loader.layout import PAGE_BYTES, Piece
from modelcache.loader.pinned import Buffer, PinnedRing
from modelcache.patience import Cancellation
from modelcache.units import KIB

BUFFER_BYTES = 64 * KIB


class DeviceContract(ABC):
    """Subclassed once for each kind of device."""

    @pytest.fixture
    @abstractmethod
    def device(self) -> Device:
        """One device, for one load."""
        raise NotImplementedError

    @abstractmethod
    def used_bytes(self) -> int:
        """Of the device's memory, by tensors that are referred to."""
        raise NotImplementedError

    @abstractmethod
    def capacity_bytes(self) -> int:
        """More than the device could ever give."""
        raise NotImplementedError

    @pytest.fixture
    def ring(self) -> Iterator[PinnedRing]:
        ring = PinnedRing(buffer_bytes=BUFFER_BYTES, limit_bytes=4 * BUFFER_BYTES)
        yield ring
        ring.release()
        assert ring.pinned_bytes == 0

    def test_memory_begins_aligned_and_comes_back_with_its_last_tensor(self, device: Device) -> None:
        before = self.used_bytes()
        targets = [device.allocate(size_bytes) for size_bytes in (1, 4095, 100_000)]
        assert [target.memory.numel() for target in targets] == [1, 4095, 100_000]
        assert all(target.memory.data_ptr() % PAGE_BYTES == 0 for target in targets)
        assert all(target.memory.dtype is torch.uint8 for target in targets)
        view = targets[2].memory[512:].view(torch.float32)
        assert self.used_bytes() >= before + 104_096
        del targets
        gc.collect()
        assert before + 100_000 <= self.used_bytes()
        del view
        gc.collect()
        assert self.used_bytes() == before

    def test_pieces_are_where_they_were_sent_once_handed_over(self, device: Device, ring: PinnedRing) -> None:
        buffer = filled(ring, device, seed=1)
        expected = torch.zeros(BUFFER_BYTES, dtype=torch.uint8)
        target = device.allocate(BUFFER_BYTES)
        pieces = [Piece(0, 4096, 1), Piece(1, 256, 1000), Piece(5000, 8192, 40_001), Piece(BUFFER_BYTES - 7, 60_000, 7)]
        copy = device.copy(buffer.tensor, pieces, target)
        for piece in pieces:
            expected[piece.at : piece.at + piece.size_bytes] = buffer.tensor[piece.offset : piece.offset + piece.size_bytes]
        device.hand_over(target, [copy])
        device.hand_over(target, [copy])
        got = target.memory.cpu()
        for piece in pieces:
            assert torch.equal(got[piece.at : piece.at + piece.size_bytes], expected[piece.at : piece.at + piece.size_bytes])
        ring.give(buffer, [copy])

    def test_a_source_may_be_written_again_when_its_copy_is_done_and_not_before(self, device: Device, ring: PinnedRing) -> None:
        rounds = 32
        target = device.allocate(rounds * BUFFER_BYTES)
        expected, copies = [], []
        for number in range(rounds):
            buffer = filled(ring, device, seed=number)  # taken again and again: the ring has four
            expected.append(buffer.tensor.clone())
            copies.append(device.copy(buffer.tensor, [Piece(0, number * BUFFER_BYTES, BUFFER_BYTES)], target))
            ring.give(buffer, copies[-1:])
        device.hand_over(target, copies)
        assert torch.equal(target.memory.cpu(), torch.cat(expected))
        for copy in copies:
            copy.wait()
            assert copy.is_done()

    def test_one_source_goes_to_several_targets(self, device: Device, ring: PinnedRing) -> None:
        buffer = filled(ring, device, seed=3)
        targets = [device.allocate(BUFFER_BYTES) for _ in range(3)]
        copies = [device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target) for target in targets]
        expected = buffer.tensor.clone()
        ring.give(buffer, copies)
        for target, copy in zip(targets, copies, strict=True):
            device.hand_over(target, [copy])
            assert torch.equal(target.memory.cpu(), expected)

    def test_after_a_drain_memory_may_be_dropped_that_was_not_handed_over(self, device: Device, ring: PinnedRing) -> None:
        before = self.used_bytes()
        buffer = filled(ring, device, seed=4)
        target = device.allocate(BUFFER_BYTES)
        copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
        ring.give(buffer, [copy])
        device.drain()
        assert copy.is_done()
        del target
        gc.collect()
        assert self.used_bytes() == before

    def test_no_room_is_an_error_with_both_numbers_and_leaves_the_device_usable(self, device: Device, ring: PinnedRing) -> None:
        before = self.used_bytes()
        with pytest.raises(NoDeviceMemory) as caught:
            device.allocate(self.capacity_bytes())
        assert caught.value.needed_bytes == self.capacity_bytes() > caught.value.free_bytes >= 0
        assert caught.value.address == device.name
        assert self.used_bytes() == before
        self.test_one_source_goes_to_several_targets(device, ring)

    def test_threads_copy_at_once(self, device: Device, ring: PinnedRing) -> None:
        blocks = 48
        target = device.allocate(blocks * BUFFER_BYTES)
        copies: list[Copy] = []

        def some(first: int) -> None:
            for number in range(first, blocks, 6):
                buffer = filled(ring, device, seed=number)
                copies.append(copy := device.copy(buffer.tensor, [Piece(0, number * BUFFER_BYTES, BUFFER_BYTES)], target))
                ring.give(buffer, [copy])

        threads = [threading.Thread(target=some, args=(first,)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ring.pinned_bytes <= 4 * BUFFER_BYTES
        device.hand_over(target, copies)
        assert torch.equal(target.memory.cpu(), torch.cat([content(number) for number in range(blocks)]))

    def test_in_a_fork_the_ring_is_empty_and_the_parent_keeps_its_own(self, device: Device, ring: PinnedRing) -> None:
        buffer = filled(ring, device, seed=5)
        ring.give(buffer, [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of a process with threads: the child ends at once
            child = os.fork()
        if child == 0:
            os._exit(0 if ring.pinned_bytes == 0 and ring.release() == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ring.pinned_bytes == BUFFER_BYTES
        assert torch.equal(buffer.tensor, content(5))


def filled(ring: PinnedRing, device: Device, *, seed: int) -> Buffer:
    buffer = ring.take(device, Cancellation())
    buffer.tensor.copy_(content(seed))
    return buffer


def content(seed: int) -> torch.Tensor:
    """A buffer's worth of bytes."""
    return torch.randint(0, 256, (BUFFER_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
