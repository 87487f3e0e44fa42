"""To devices: blocks of files into pinned buffers, and from there by copies that go on while the next blocks are read."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence

import torch

from modelcache.loader.device import Copy, Device, Target
from modelcache.loader.files import TensorFile, Way
from modelcache.loader.gds import StraightReads
from modelcache.loader.header import TensorEntry
from modelcache.loader.layout import Piece, layout
from modelcache.loader.pinned import PinnedRing
from modelcache.loader.plan import Extent
from modelcache.loader.tensors import torch_form
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


class DeviceStaging:
    """Lands extents in the memory of one device (a `Staging`), each in one allocation."""

    def __init__(
        self, device: Device, to: torch.device, ring: PinnedRing, cancel: Cancellation, straight: StraightReads | None = None
    ) -> None:
        """
        Args:
            to: what torch calls the device.
            cancel: the load's own; ends waits for a buffer.
            straight: reads blocks without the ring, where it can.
        """
        self.device = device
        self.to = to
        self.ring = ring
        self.cancel = cancel
        self.straight = straight
        self._owner_pid = os.getpid()
        self._landings: weakref.WeakSet[DeviceLanding] = weakref.WeakSet()

    def land(self, extent: Extent, file: TensorFile) -> DeviceLanding:
        landing = DeviceLanding(extent, file, self)
        self._landings.add(landing)
        return landing

    def close(self) -> None:
        if os.getpid() != self._owner_pid:
            _OF_A_PARENT.extend(self._landings)
            return
        if self.straight is not None:
            self.straight.close()
        try:
            self.device.drain()  # before memory that copies go to is dropped
        finally:
            for landing in list(self._landings):
                landing.drop()


class DeviceLanding:
    """One extent on its way to a device (a `Landing`)."""

    def __init__(self, extent: Extent, file: TensorFile, staging: DeviceStaging) -> None:
        """Raises NoDeviceMemory, DeviceFault."""
        self._layout = layout(extent.tensors, by_pages=staging.straight is not None)
        self.missing: Sequence[ByteRange] = tuple(extent.blocks())
        self.lent_bytes = extent.span.size_bytes
        self._address = str(file.path)
        self._staging = staging
        self._copies: list[Copy] = []  # several threads add to it
        self._left = sum(entry.span.size_bytes > 0 for entry in extent.tensors)
        size_bytes = self._layout.size_bytes
        self._target: Target | None = staging.device.allocate(size_bytes) if size_bytes else None

    def fill(self, file: TensorFile, block: ByteRange) -> Way:
        assert self._target is not None  # dropped only when no `fill` runs any more
        pieces = tuple(self._layout.pieces(block))
        straight = self._staging.straight
        if straight is None:
            return self._staged(file, block, pieces, self._target)
        if straight.read(file, block, pieces, self._target):
            return Way.STRAIGHT
        started_s = time.monotonic()
        way = self._staged(file, block, pieces, self._target)
        straight.took(file, block, pieces, way, time.monotonic() - started_s)
        return way

    def _staged(self, file: TensorFile, block: ByteRange, pieces: Sequence[Piece], target: Target) -> Way:
        """By the ring."""
        device, ring = self._staging.device, self._staging.ring
        buffer = ring.take(device, self._staging.cancel)
        copies: list[Copy] = []
        try:
            with memoryview(buffer.memory) as whole, whole.cast("B") as view:
                way = file.read(block, view)
            if pieces:
                copies.append(device.copy(buffer.tensor, pieces, target))
        finally:
            ring.give(buffer, copies)
        self._copies += copies
        return way

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        """Begins at a multiple of TENSOR_ALIGNMENT bytes, whatever its place in the file; shares its storage with the extent's others.

        Asked once for each: after the last, nothing here keeps the memory.
        """
        dtype, shape = torch_form(entry, self._address)
        if not entry.span.size_bytes:
            return torch.empty(shape, dtype=dtype, device=self._staging.to)
        assert self._target is not None
        self._staging.device.hand_over(self._target, self._copies)
        at = self._layout.place_of(entry)
        found = self._target.memory[at : at + entry.span.size_bytes].view(dtype).view(shape)
        self._left -= 1
        if not self._left:
            self.drop()
        return found

    def drop(self) -> None:
        """Let go of what was not handed out."""
        if self._target is not None:
            self._target.drop()
        self._target = None
        self._copies = []


_OF_A_PARENT: list[DeviceLanding] = []
"""In a fork, which can ask the device for nothing: what the load of its parent had there is not given back from here."""
