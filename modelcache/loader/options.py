"""How tensors are brought to devices: what settings say about it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelcache.units import MIB

RING_BYTES = 256 * MIB
"""32 blocks: 16 reads in flight, and as many on the bus. At 64 GB/s (PCIe 5.0 x16) 128 MiB take 2 ms, and a thread that waits for a
copy is woken within tenths of one."""


class Gds(StrEnum):
    """Whether files are read straight into a GPU's memory (GPUDirect Storage)."""

    AUTO = "auto"
    """Where kvikio, the kernel's part and a file system for it are there, and the first blocks come faster so."""
    ALWAYS = "always"
    """Wherever kvikio takes it."""
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Settings of loads to GPUs.

    Attributes:
        pinned_bytes: of page-locked host memory, for all loads of a process; of several loads that differ the last one's counts.
    """

    pinned_bytes: int = RING_BYTES
    gds: Gds = Gds.AUTO


DEFAULT_OPTIONS = DeviceOptions()
