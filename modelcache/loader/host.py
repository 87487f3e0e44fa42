"""Host memory as a destination, and as the way to devices that have no staging of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modelcache.loader.files import Expecting, Paged, TensorFile, Way
from modelcache.loader.header import TensorEntry
from modelcache.loader.memory import HostMemory, Memory
from modelcache.loader.page_tables import populate
from modelcache.loader.placement import HOST
from modelcache.loader.plan import Extent
from modelcache.loader.tensors import empty_tensor, tensor_in
from modelcache.ranges import ByteRange


class HostStaging:
    """Lands extents in host memory: a file's own pages where it may be mapped, else memory that is lent (a `Staging`)."""

    def __init__(self, memory: HostMemory, device: torch.device = HOST) -> None:
        """
        Args:
            device: that each tensor is copied to by torch when it is handed out.
        """
        self._memory = memory
        self._device = device

    def land(self, extent: Extent, file: TensorFile) -> HostLanding:
        if extent.span.size_bytes == 0:
            return HostLanding(extent, file, None, self._device)
        if file.may_map(extent.span):
            pages = None if isinstance(file, Paged) else file.mapped(extent.span)
            return HostLanding(extent, file, pages, self._device, is_mapped=True)
        memory = self._memory.lend(extent.memory_bytes)
        if isinstance(file, Expecting):
            file.expect(extent.span, memory)
        return HostLanding(extent, file, memory, self._device)

    def close(self) -> None:
        """Memory comes back with its last tensor."""


class HostLanding:
    """One extent in host memory (a `Landing`)."""

    def __init__(self, extent: Extent, file: TensorFile, memory: Memory | None, device: torch.device, *, is_mapped: bool = False) -> None:
        self.missing: Sequence[ByteRange] = (extent.span,) if is_mapped else tuple(extent.blocks())
        self.lent_bytes = 0 if is_mapped and memory is not None else extent.span.size_bytes  # who waits for pages keeps no other back
        self._is_mapped = is_mapped
        self._start = extent.span.start
        self._address = str(file.path)
        self._memory = memory
        self._device = device

    def fill(self, file: TensorFile, block: ByteRange) -> Way:
        if self._is_mapped:
            way = Way.MAPPED
            if isinstance(file, Paged):
                self._memory, way = file.pages(block)
            assert self._memory is not None  # an extent of no bytes misses none
            populate(self._memory)
            return way
        assert self._memory is not None
        with memoryview(self._memory) as whole, whole.cast("B") as view, view[block.start - self._start :] as into:
            return file.read(block, into)

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        if self._memory is None:
            return empty_tensor(entry, self._address).to(self._device)
        return tensor_in(self._memory, entry.span.start - self._start, entry, self._address).to(self._device)
