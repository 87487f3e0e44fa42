"""A GPU keeps the contract of devices, and its streams what only they can break."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator

import pytest
import torch

from modelcache.errors import NoSuchDevice
from modelcache.loader.cuda import CudaDevice
from modelcache.loader.device import Device
from modelcache.loader.layout import PAGE_BYTES, Piece
from modelcache.loader.pinned import PinnedRing
from modelcache.patience import Cancellation
from modelcache.testing.device_contract import BUFFER_BYTES, DeviceContract, content, filled

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda:0")
LONG = 200_000_000
"""Clock cycles: a tenth of a second of a busy stream."""


class TestCuda(DeviceContract):
    @pytest.fixture
    def device(self) -> Device:
        return CudaDevice(GPU)

    def used_bytes(self) -> int:
        return int(torch.cuda.memory_allocated(GPU))

    def capacity_bytes(self) -> int:
        return int(2 * torch.cuda.get_device_properties(GPU).total_memory)


@pytest.fixture
def ring() -> Iterator[PinnedRing]:
    ring = PinnedRing(buffer_bytes=BUFFER_BYTES, limit_bytes=4 * BUFFER_BYTES)
    yield ring
    ring.release()


def test_what_the_stream_still_does_with_freed_memory_does_not_reach_the_tensors(ring: PinnedRing) -> None:
    device = CudaDevice(GPU)
    buffer = filled(ring, device, seed=1)
    old = torch.empty(BUFFER_BYTES + PAGE_BYTES, dtype=torch.uint8, device=GPU)
    address = old.data_ptr()
    torch.cuda._sleep(LONG)
    old.fill_(7)
    del old
    target = device.allocate(BUFFER_BYTES)
    assert target.memory.untyped_storage().data_ptr() == address, "the allocator gives again what was freed: else this test shows nothing"
    copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
    device.hand_over(target, [copy])
    assert torch.equal(target.memory.cpu(), content(1))
    ring.give(buffer, [copy])


def test_any_stream_that_is_current_waits_for_the_copies(ring: PinnedRing) -> None:
    device = CudaDevice(GPU)
    target = device.allocate(BUFFER_BYTES)
    buffer = filled(ring, device, seed=2)
    with torch.cuda.stream(device._stream):
        torch.cuda._sleep(LONG)  # the copy is late
    copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
    assert not copy.is_done()
    answers: list[torch.Tensor] = []
    for stream in (torch.cuda.Stream(GPU), torch.cuda.current_stream(GPU)):
        with torch.cuda.stream(stream):
            device.hand_over(target, [copy])
            if not answers:
                torch.cuda._sleep(2 * LONG)  # it reads when the other stream has long let go
            answers.append(target.memory.clone())
    del target
    gc.collect()
    again = torch.full((BUFFER_BYTES + PAGE_BYTES,), 9, dtype=torch.uint8, device=GPU)  # in the same place, if it may be
    torch.cuda.synchronize(GPU)
    assert [torch.equal(answer.cpu(), content(2)) for answer in answers] == [True, True]
    assert bool((again.cpu() == 9).all())
    ring.give(buffer, [copy])


def test_a_copy_from_pinned_memory_does_not_wait(ring: PinnedRing) -> None:
    device = CudaDevice(GPU)
    target = device.allocate(BUFFER_BYTES)
    buffer = filled(ring, device, seed=3)
    assert buffer.tensor.is_pinned()
    with torch.cuda.stream(device._stream):
        torch.cuda._sleep(LONG)
    copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
    assert not copy.is_done(), "the call came back before the copy was done"
    copy.wait()
    assert copy.is_done()
    ring.give(buffer, [copy])


def test_memory_that_can_not_be_locked_is_an_error_that_no_later_kernel_stumbles_over(ring: PinnedRing) -> None:
    device = CudaDevice(GPU)
    buffer = ring.take(device, Cancellation())
    with pytest.raises(MemoryError):
        device.pin(buffer.memory)  # it is locked already
    with pytest.raises(MemoryError):
        device.pin((ctypes.c_ubyte * 4096).from_address(8192))  # no such pages
    assert int(torch.ones(4, device=GPU).sum()) == 4
    ring.give(buffer, [])


def test_memory_of_inference_mode_can_be_written_by_other_threads(ring: PinnedRing) -> None:
    device = CudaDevice(GPU)
    buffer = filled(ring, device, seed=4)
    with torch.inference_mode():
        target = device.allocate(BUFFER_BYTES)
    copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
    device.hand_over(target, [copy])
    target.memory.add_(0)
    assert torch.equal(target.memory.cpu(), content(4))
    ring.give(buffer, [copy])


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(NoSuchDevice, match="no such device") as caught:
        CudaDevice(torch.device("cuda", torch.cuda.device_count()))
    assert caught.value.hint is not None
    assert "cuda:0" in caught.value.hint
