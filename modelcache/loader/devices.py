"""Which way tensors take to which device."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from modelcache.loader import cuda
from modelcache.loader.device import Pinning
from modelcache.loader.gds import straight_reads
from modelcache.loader.header import TensorEntry
from modelcache.loader.host import HostStaging
from modelcache.loader.landing import Landing, Staging
from modelcache.loader.memory import HostMemory
from modelcache.loader.options import DeviceOptions
from modelcache.loader.placement import HOST, Device, named
from modelcache.loader.reader import THREADS
from modelcache.loader.staging import DeviceStaging
from modelcache.loader.tensors import is_number
from modelcache.patience import Cancellation

DEVICE_THREADS = 16
"""At most, reads in flight on the way to a GPU: a thread copies 4 to 5 GiB/s out of the page cache (measured, 2 cores of an EPYC), and
PCIe 5.0 x16 takes 60."""


def expect_device(device: torch.device) -> None:
    """Raises NoSuchDevice: this machine has no such GPU. Other kinds of devices are torch's matter."""
    if device.type == "cuda":
        cuda.expect(device)


def one_device(wish: Device) -> torch.device:
    """The device that is meant, with its number where it is a GPU. Raises NoSuchDevice, DeviceFault."""
    device = named(wish)
    expect_device(device)
    return cuda.numbered(device) if device.type == "cuda" else device


def left_bytes(gpu: torch.device) -> int:
    """What this process may still take of a GPU's memory. Raises DeviceFault."""
    return cuda.left_bytes(gpu)


def open_staging(device: torch.device, memory: HostMemory, cancel: Cancellation, options: DeviceOptions) -> Staging:
    """What brings tensors to a device, for one load: through pinned memory to GPUs, through `memory` to all others, and where no memory
    can be pinned.

    Args:
        cancel: the load's own.

    Raises:
        NoSuchDevice, DeviceFault. BadConfig: GPUDirect Storage is asked for and can't be had.
    """
    if device.type == "cuda":
        cuda.ring.limit_bytes = options.pinned_bytes
        gpu = cuda.CudaDevice(device)
        straight = straight_reads(gpu, options.gds)
        if has_pinned_memory(gpu, cancel):
            return DeviceStaging(gpu, gpu.device, cuda.ring, cancel, straight)
    return HostStaging(memory, device)


def has_pinned_memory(device: Pinning, cancel: Cancellation) -> bool:
    """Whether at least one buffer can be locked: some sandboxes refuse it. Raises DeviceFault, Cancelled."""
    try:
        cuda.ring.give(cuda.ring.take(device, cancel), [])
    except MemoryError:
        return False
    return True


def threads_for(devices: Collection[torch.device]) -> int:
    """How many threads read for a load that fills these."""
    if all(device == HOST for device in devices):
        return THREADS
    return max(THREADS, min(DEVICE_THREADS, len(os.sched_getaffinity(0))))


def placed(landing: Landing, entry: TensorEntry, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    """One of a landing's tensors on its device, cast there if it is of floating point. Raises as `Landing.tensor`; NoDeviceMemory."""
    with _room_for(entry.span.size_bytes, device):
        tensor = landing.tensor(entry)
    if dtype is None or not is_number(tensor.dtype):
        return tensor
    with _room_for(tensor.numel() * dtype.itemsize, device):
        return tensor.to(dtype)


@contextmanager
def _room_for(size_bytes: int, device: torch.device) -> Iterator[None]:
    """What torch raises where a device has no room for so many bytes, as a NoDeviceMemory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if device.type != "cuda":
            raise
        raise cuda.no_memory(device, size_bytes) from error.with_traceback(None)


def release_pinned() -> int:
    """Give pinned memory that no load uses back to the machine; how many bytes. Raises DeviceFault."""
    return cuda.ring.release()
