"""Errors of accelerators: no room on one, or one that failed."""

from __future__ import annotations

from modelcache.errors.base import ModelCacheError
from modelcache.errors.code import ErrorCode


class NoDeviceMemory(ModelCacheError):
    """The device has no memory for the next piece of a model; everything that was not handed out was given back.

    Attributes:
        needed_bytes: of the piece that found no room.
        free_bytes: that the device and this process's allocator had left. It may lie in parts that are too small.
    """

    code = ErrorCode.NO_DEVICE_MEMORY
    default_hint = (
        "drop tensors that are not needed, load fewer `names`, a smaller `dtype` or parts for several devices, or end who else uses it"
    )

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int, address: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, address=address, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {"needed_bytes": self.needed_bytes, "free_bytes": self.free_bytes}


class DeviceFault(ModelCacheError):
    """A device, or its driver, failed in the middle of a load; what it holds can't be trusted."""

    code = ErrorCode.DEVICE_FAULT
    default_hint = "end this process, and look at the device: `nvidia-smi`, `dmesg`"
