"""The double of devices keeps the contract that GPUs keep, and tells on whoever breaks the rules of asynchronous copies."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from modelcache.errors import DeviceFault
from modelcache.loader.device import Device
from modelcache.loader.layout import Piece
from modelcache.loader.pinned import PinnedRing
from modelcache.testing.device_contract import BUFFER_BYTES, DeviceContract, filled
from modelcache.testing.device_double import POISON, DoubleMachine
from modelcache.units import GIB


@pytest.mark.parametrize("machine", [False, True], ids=["late", "threads"], indirect=True)
class TestDouble(DeviceContract):
    machine: DoubleMachine

    @pytest.fixture(name="machine")
    def of_kind(self, request: pytest.FixtureRequest) -> Iterator[DoubleMachine]:
        with DoubleMachine(capacity_bytes=GIB, threads=request.param) as machine:
            self.machine = machine
            yield machine
            assert machine.violations == []

    @pytest.fixture
    def device(self, machine: DoubleMachine) -> Device:
        return machine.device()

    def used_bytes(self) -> int:
        return self.machine.total_used_bytes

    def capacity_bytes(self) -> int:
        return 2 * GIB


class TestTheDoubleTellsOn:
    """Each of these is what a loader could do wrong."""

    @pytest.fixture
    def machine(self) -> Iterator[DoubleMachine]:
        with DoubleMachine() as machine:
            yield machine

    @pytest.fixture
    def ring(self) -> PinnedRing:
        return PinnedRing(buffer_bytes=BUFFER_BYTES, limit_bytes=BUFFER_BYTES)

    def test_who_reads_before_the_hand_over(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        device = machine.device()
        target = device.allocate(BUFFER_BYTES)
        buffer = filled(ring, device, seed=1)
        device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
        assert bool((target.memory == POISON).all())
        device.hand_over(target, [])
        assert machine.violations == ["handed over before a copy into it was waited for"]
        device.drain()

    def test_who_writes_to_a_source_too_early(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        device = machine.device()
        target = device.allocate(BUFFER_BYTES)
        buffer = filled(ring, device, seed=1)
        copy = device.copy(buffer.tensor, [Piece(0, 0, BUFFER_BYTES)], target)
        assert not copy.is_done()
        buffer.tensor.zero_()
        device.hand_over(target, [copy])
        assert not target.memory.any()

    def test_who_drops_memory_that_a_copy_still_goes_to(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        device = machine.device()
        buffer = filled(ring, device, seed=1)
        device.copy(buffer.tensor, [Piece(0, 0, 100)], device.allocate(100))
        gc.collect()
        assert machine.violations == ["freed memory that a copy still goes to"]

    def test_who_unlocks_what_a_copy_still_reads(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        device = machine.device()
        target = device.allocate(100)
        buffer = filled(ring, device, seed=1)
        device.copy(buffer.tensor, [Piece(0, 0, 100)], target)
        device.unpin(buffer.memory)
        assert machine.violations == ["unlocked memory that a copy still reads"]

    def test_who_unmaps_what_is_locked(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        buffer = filled(ring, machine.device(), seed=1)
        del buffer
        gc.collect()
        assert machine.violations == ["let go of memory that is locked"]

    def test_who_copies_from_pageable_memory(self, machine: DoubleMachine) -> None:
        device = machine.device()
        target = device.allocate(100)
        pageable = torch.zeros(100, dtype=torch.uint8)
        device.hand_over(target, [device.copy(pageable, [Piece(0, 0, 100)], target)])
        assert machine.violations == ["copied from memory that is not locked"]

    def test_and_fails_when_it_is_told_to(self, machine: DoubleMachine, ring: PinnedRing) -> None:
        machine.failing_copy = 2
        device = machine.device()
        target = device.allocate(100)
        buffer = filled(ring, device, seed=1)
        copy = device.copy(buffer.tensor, [Piece(0, 0, 100)], target)
        with pytest.raises(DeviceFault):
            device.copy(buffer.tensor, [Piece(0, 0, 100)], target)
        device.hand_over(target, [copy])
