"""Where bytes land: what a load asks of the memory of a device, host memory among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from modelcache.loader.files import TensorFile, Way
from modelcache.loader.header import TensorEntry
from modelcache.loader.plan import Extent
from modelcache.ranges import ByteRange

if TYPE_CHECKING:
    import torch


class Landing(Protocol):
    """One extent on its way to where its tensors stay.

    Life: `fill` once for each missing block, by several threads at once and in any order; then `tensor` for its tensors, by the thread
    that consumes the load. Dropped by the load when all are handed out, so what a tensor needs must hang on the tensor.
    """

    @property
    def missing(self) -> Sequence[ByteRange]:
        """The blocks that have to be filled; none: it has no bytes."""
        ...

    @property
    def lent_bytes(self) -> int:
        """Of memory that it takes until its tensors are handed out; a file's own pages take none."""
        ...

    def fill(self, file: TensorFile, block: ByteRange) -> Way:
        """Bring one block of the file. May wait for memory that earlier blocks still use, and return before the device has it.

        Raises: as `TensorFile.read`; MemoryError. Nothing stays borrowed then.
        """
        ...

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        """One of the extent's tensors, on its device, as it lies in the file; safe to use on the device's current stream.

        Raises:
            BadCheckpoint: torch has no such dtype. MemoryError.
        """
        ...


class Staging(Protocol):
    """Brings extents to one device, for one load."""

    def land(self, extent: Extent, file: TensorFile) -> Landing:
        """Memory for an extent; asked for in the order in which extents are read, some ahead of the one that is handed out.

        Raises:
            MemoryError: the device or the host has no more.
        """
        ...

    def close(self) -> None:
        """End of the load, early or not: no `fill` runs any more. What was not handed out is given back, after copies in progress."""
        ...
