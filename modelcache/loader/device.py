"""What the loader asks of an accelerator: memory, copies that go on by themselves, and safe hand-over. Nothing else touches one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from modelcache.loader.layout import Piece
from modelcache.loader.memory import Memory


class Pinning(Protocol):
    """Page-locks host memory, so that the devices of this machine, all of them, read it by themselves. Safe from any thread."""

    def pin(self, memory: Memory) -> None:
        """Lock pages that begin at a page's start. Raises MemoryError: no more can be locked. DeviceFault."""
        ...

    def unpin(self, memory: Memory) -> None:
        """Unlock what `pin` locked; no copy from it goes on. Raises DeviceFault."""
        ...


class Copy(Protocol):
    """A copy to a device that was begun."""

    def is_done(self) -> bool:
        """Whether its source may be written again. Doesn't wait. Raises DeviceFault."""
        ...

    def wait(self) -> None:
        """Wait until its source may be written again. Raises DeviceFault."""
        ...


@dataclass(eq=False, slots=True)
class Target:
    """Memory of a device that copies go to.

    Attributes:
        memory: bytes, one dimension; begins at a multiple of PAGE_BYTES.
        safe_on: streams that it may be used on; the device's own matter, as is
        begun: what `settle` waits for.
    """

    memory: torch.Tensor
    safe_on: list[object] = field(default_factory=list)
    begun: Any = None

    def drop(self) -> None:
        """Let go of the memory, whoever still refers to this: frames that an error came through, a thread that is about to let go."""
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")


class Device(Pinning, Protocol):
    """One device, for one load.

    Copies go on by themselves, in no order that the host sees, and the device reads their source until they are done. Several threads ask
    for `copy` and pinning at once; for the rest the thread that consumes the load, whose *current stream* is where it uses tensors.
    """

    @property
    def name(self) -> str:
        """For errors: `cuda:0`."""
        ...

    def allocate(self, size_bytes: int) -> Target:
        """Memory (over 0 bytes) for copies; nothing that the caller's earlier work still does with it is disturbed by them.

        Whoever asked keeps it until `drain` or `hand_over` was called after the last copy into it.

        Raises:
            NoDeviceMemory: there is not so much. DeviceFault.
        """
        ...

    def current(self) -> AbstractContextManager[object]:
        """The block runs with this as the calling thread's device: for packages that reach it by themselves.

        Raises:
            RuntimeError: the device failed. What the block raises stays as it is.
        """
        ...

    def settle(self, target: Target) -> None:
        """Wait until the caller's earlier work does nothing with that memory any more: for who writes to it by other means than copies.

        Raises:
            DeviceFault.
        """
        ...

    def copy(self, source: torch.Tensor, pieces: Sequence[Piece], target: Target) -> Copy:
        """Begin to copy pieces (at least one) of pinned bytes; the source stays as it is until the copy is done.

        Raises:
            DeviceFault: then nothing reads the source any more.
        """
        ...

    def hand_over(self, target: Target, copies: Sequence[Copy]) -> None:
        """From here on the memory may be read, written and dropped in the calling thread's current stream: what is put there comes after
        these copies, all that go into the target. Doesn't wait. Costs nothing when asked again on the same stream.

        Raises:
            DeviceFault.
        """
        ...

    def drain(self) -> None:
        """Wait until all copies that were begun are done. Raises DeviceFault."""
        ...
