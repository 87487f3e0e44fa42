"""CUDA devices (and ROCm's, which torch calls the same), through torch: the one place that asks a GPU for anything."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import torch

from modelcache.errors import DeviceFault, NoDeviceMemory, NoSuchDevice
from modelcache.loader.device import Copy, Target
from modelcache.loader.layout import PAGE_BYTES, Piece
from modelcache.loader.memory import Memory
from modelcache.loader.options import RING_BYTES
from modelcache.loader.pinned import PinnedRing
from modelcache.loader.plan import BLOCK_BYTES

PORTABLE = 1
"""cudaHostRegisterPortable: locked for every device of the process (CUDA runtime API, cudaHostRegister)."""


class CudaCopy:
    """Done when an event behind it is (a `Copy`)."""

    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self.event = event
        self._device = device

    def is_done(self) -> bool:
        with _on(self._device):
            return bool(self.event.query())

    def wait(self) -> None:
        with _on(self._device):
            self.event.synchronize()


class CudaDevice:
    """One GPU, with a stream for the copies of one load (a `Device`).

    Memory comes from torch's allocator on the stream that is current where it is asked for, so that it is used again there as any other
    tensor's. The copying stream waits for what that stream had to do until then; the stream that tensors are handed over on waits for
    the copies.
    """

    def __init__(self, device: torch.device) -> None:
        """Raises NoSuchDevice, DeviceFault."""
        expect(device)
        self.device = numbered(device)
        self.name = str(self.device)
        with _on(self.device):
            self._stream = torch.cuda.Stream(device=self.device)

    def pin(self, memory: Memory) -> None:
        with _on(self.device):
            code = int(torch.cuda.cudart().cudaHostRegister(ctypes.addressof(memory), len(memory), PORTABLE))
            if code:
                self._forget_last_error()
                raise MemoryError(f"{len(memory)} bytes can't be page-locked: {_said(code)}")

    def unpin(self, memory: Memory) -> None:
        with _on(self.device):
            code = int(torch.cuda.cudart().cudaHostUnregister(ctypes.addressof(memory)))
            if code:
                self._forget_last_error()
                raise DeviceFault(f"memory can't be unlocked: {_said(code)}", address=self.name)

    def allocate(self, size_bytes: int) -> Target:
        with _on(self.device):
            try:
                # not a tensor of inference mode, which other threads could not write to
                with torch.inference_mode(False):
                    memory = torch.empty(size_bytes + PAGE_BYTES, dtype=torch.uint8, device=self.device)
            except torch.OutOfMemoryError as error:
                raise no_memory(self.device, size_bytes) from error
            begun = torch.cuda.Event(blocking=True)
            begun.record(torch.cuda.current_stream(self.device))
            self._stream.wait_event(begun)
        skip = -memory.data_ptr() % PAGE_BYTES  # torch's own alignment is 512
        return Target(memory[skip : skip + size_bytes], begun=begun)

    def current(self) -> AbstractContextManager[object]:
        chosen: AbstractContextManager[object] = torch.cuda.device(self.device)
        return chosen

    def settle(self, target: Target) -> None:
        with _on(self.device):
            target.begun.synchronize()

    def copy(self, source: torch.Tensor, pieces: Sequence[Piece], target: Target) -> Copy:
        with _on(self.device):
            try:
                with torch.cuda.stream(self._stream):
                    for piece in pieces:
                        part = source[piece.offset : piece.offset + piece.size_bytes]
                        target.memory[piece.at : piece.at + piece.size_bytes].copy_(part, non_blocking=True)
                    event = torch.cuda.Event(blocking=True)  # a thread that waits sleeps
                    event.record(self._stream)
            except BaseException:
                with suppress(RuntimeError):  # one of a device that is lost: nothing reads the source any more then
                    self._stream.synchronize()
                raise
        return CudaCopy(event, self.device)

    def hand_over(self, target: Target, copies: Sequence[Copy]) -> None:
        with _on(self.device):
            stream = torch.cuda.current_stream(self.device)
            if stream in target.safe_on:
                return
            for copy in copies:
                assert isinstance(copy, CudaCopy)
                stream.wait_event(copy.event)
            target.memory.record_stream(stream)  # it may be another than the one it was allocated on
            target.safe_on.append(stream)

    def drain(self) -> None:
        with _on(self.device):
            self._stream.synchronize()

    def _forget_last_error(self) -> None:
        """CUDA keeps a thread's last error for the next kernel launch to stumble over, and torch has no other way to take it from there."""
        with suppress(RuntimeError):
            torch.ones(1, device=self.device)


ring = PinnedRing(buffer_bytes=BLOCK_BYTES, limit_bytes=RING_BYTES)
"""Of this process; `limit_bytes` follows the settings of the last load."""


def expect(device: torch.device) -> None:
    """Raises NoSuchDevice: torch or this machine has no such GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) < count:
        return
    hint = f"there are {count}: cuda:0 to cuda:{count - 1}" if count else "see what `nvidia-smi` says, and CUDA_VISIBLE_DEVICES"
    if not torch.backends.cuda.is_built():
        hint = "install a torch that is built for GPUs"
    raise NoSuchDevice("there is no such device", address=str(device), hint=hint)


def numbered(device: torch.device) -> torch.device:
    """`cuda` is the device that is current where it is asked for. Raises DeviceFault."""
    if device.index is not None:
        return device
    with _translated(str(device)):
        return torch.device("cuda", torch.cuda.current_device())


def no_memory(device: torch.device, size_bytes: int) -> NoDeviceMemory:
    """The error of a device that has no room for so many bytes, with what it has."""
    free_bytes, total_bytes = left_bytes(device), torch.cuda.mem_get_info(device)[1]
    message = f"the device has no memory for {size_bytes} more bytes: {free_bytes} of {total_bytes} are left"
    return NoDeviceMemory(message, needed_bytes=size_bytes, free_bytes=free_bytes, address=str(device))


def left_bytes(device: torch.device) -> int:
    """What this process may still take of a device's memory, pieces that are too small for what is wanted included. Raises DeviceFault."""
    with _translated(str(device)):
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    used_bytes = torch.cuda.memory_allocated(device)
    kept_bytes = torch.cuda.memory_reserved(device) - used_bytes
    allowed_share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)  # since torch 2.8
    allowed_bytes = total_bytes * allowed_share(device) - used_bytes
    return int(min(free_bytes + kept_bytes, allowed_bytes))


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """With the device as the thread's current one: CUDA sets up whichever device a thread first asks for something, and takes hundreds of
    MiB of it for that. Raises DeviceFault."""
    with _translated(str(device)), torch.cuda.device(device):
        yield


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """What torch raises where CUDA failed, as a DeviceFault; in a fork of a process that has used it, too."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise DeviceFault(f"the device failed ({first})", address=name) from error.with_traceback(None)  # its frames keep memory


def _said(code: int) -> str:
    runtime = torch.cuda.cudart()
    return f"{runtime.cudaGetErrorString(runtime.cudaError(code))} ({code})"
