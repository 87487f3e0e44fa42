"""What is asked of torch for a GPU, and in which order, on a torch whose GPU is a list of calls. Whether that is right a GPU alone can tell
(`tests/gpu`); that no name is wrong and no branch breaks is seen here, too."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modelcache.errors import DeviceFault, NoDeviceMemory, NoSuchDevice
from modelcache.loader import cuda, devices
from modelcache.loader.cuda import CudaDevice
from modelcache.loader.header import Dtype, TensorEntry
from modelcache.loader.host import HostStaging
from modelcache.loader.layout import PAGE_BYTES, Piece
from modelcache.loader.memory import HostMemory, Memory
from modelcache.loader.options import DeviceOptions
from modelcache.loader.pinned import PinnedRing
from modelcache.loader.staging import DeviceStaging
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

GPU = torch.device("cuda:1")


class Bytes(torch.Tensor):  # type: ignore[misc]
    """Memory of the GPU, which the host has."""

    calls: list[tuple[Any, ...]]

    def record_stream(self, stream: Any) -> None:
        Bytes.calls.append(("record_stream", stream.name))


class FakeStream:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.name = name
        self._gpu = gpu

    def wait_event(self, event: FakeEvent) -> None:
        self._gpu.calls.append(("wait", self.name, event.recorded_on))

    def synchronize(self) -> None:
        self._gpu.calls.append(("synchronize", self.name))


class FakeEvent:
    def __init__(self, gpu: Gpu) -> None:
        self.recorded_on = ""
        self._gpu = gpu

    def record(self, stream: FakeStream) -> None:
        self.recorded_on = stream.name
        self._gpu.calls.append(("record", stream.name))

    def query(self) -> bool:
        self._gpu.fails()
        return self._gpu.copies_are_done

    def synchronize(self) -> None:
        self._gpu.calls.append(("await", self.recorded_on))


class Gpu:
    """`torch.cuda`, and what it was asked for; every call must be made with the device as the current one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.current = FakeStream(self, "consumer")
        self.copies_are_done = False
        self.left_bytes = 10_000
        self.register_answers = 0
        self.error: Exception | None = None
        self.on: list[torch.device] = []
        Bytes.calls = self.calls

    def fails(self) -> None:
        assert self.on, "the thread's current device is not set"
        assert self.on[-1] == GPU
        if self.error is not None:
            raise self.error

    # -- torch.cuda

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return 1

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.on.append(device)
        try:
            yield
        finally:
            self.on.pop()

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802 - its name
        self.fails()
        return FakeStream(self, "copies")

    def Event(self, *, blocking: bool) -> FakeEvent:  # noqa: N802 - its name
        assert blocking, "who waits would burn a core"
        return FakeEvent(self)

    def current_stream(self, device: torch.device) -> FakeStream:
        self.fails()
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.left_bytes, 1_000_000

    def memory_reserved(self, device: torch.device) -> int:
        return 700

    def memory_allocated(self, device: torch.device) -> int:
        return 200

    def cudart(self) -> Any:
        self.fails()
        return SimpleNamespace(
            cudaHostRegister=self._register,
            cudaHostUnregister=self._unregister,
            cudaGetErrorString=lambda error: f"said {error}",
            cudaError=int,
        )

    def _register(self, address: int, size_bytes: int, flags: int) -> int:
        self.calls.append(("register", size_bytes, flags))
        return self.register_answers

    def _unregister(self, address: int) -> int:
        self.calls.append(("unregister",))
        return self.register_answers

    # -- torch

    def empty(self, size_bytes: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        self.fails()
        assert device == GPU
        assert not torch.is_inference_mode_enabled()
        if size_bytes > self.left_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.calls.append(("empty", self.current.name))
        return torch.zeros(size_bytes, dtype=dtype).as_subclass(Bytes)

    def ones(self, size: int, *, device: torch.device) -> torch.Tensor:
        self.calls.append(("kernel",))
        raise RuntimeError("CUDA error: the error of before")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    names = {name: getattr(torch, name) for name in ("uint8", "device", "inference_mode", "OutOfMemoryError", "backends", "Tensor")}
    assert all(hasattr(torch.cuda, name) for name in vars(Gpu) if not name.startswith(("_", "fails", "empty", "ones")))
    monkeypatch.setattr(cuda, "torch", SimpleNamespace(**names, empty=gpu.empty, ones=gpu.ones, cuda=gpu))
    return gpu


def memory_of(size_bytes: int) -> Memory:
    return (ctypes.c_ubyte * size_bytes)()


def test_copies_come_after_what_the_consumer_did_and_before_what_it_does(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    target = device.allocate(3000)
    assert target.memory.numel() == 3000
    assert target.memory.data_ptr() % PAGE_BYTES == 0
    assert gpu.calls == [("empty", "consumer"), ("record", "consumer"), ("wait", "copies", "consumer")]
    gpu.calls.clear()
    source = torch.arange(200, dtype=torch.uint8)
    copy = device.copy(source, [Piece(0, 0, 100), Piece(100, 2000, 50)], target)
    assert gpu.calls == [("record", "copies")]
    assert (not copy.is_done(), bytes(target.memory[2000:2050].tolist())) == (True, bytes(range(100, 150)))
    gpu.calls.clear()
    for _ in range(3):
        device.hand_over(target, [copy, copy])
    assert gpu.calls == [("wait", "consumer", "copies"), ("wait", "consumer", "copies"), ("record_stream", "consumer")]
    gpu.calls.clear()
    gpu.current = FakeStream(gpu, "another")
    device.hand_over(target, [copy])
    assert gpu.calls == [("wait", "another", "copies"), ("record_stream", "another")]
    gpu.calls.clear()
    device.settle(target)
    copy.wait()
    device.drain()
    assert gpu.calls == [("await", "consumer"), ("await", "copies"), ("synchronize", "copies")]
    assert gpu.on == []


def test_no_room_has_both_numbers_what_the_allocator_keeps_included(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    with torch.inference_mode():
        device.allocate(100)
        with pytest.raises(NoDeviceMemory) as caught:
            device.allocate(20_000)
    assert (caught.value.needed_bytes, caught.value.free_bytes, caught.value.address) == (20_000, 10_500, "cuda:1")


def test_a_cast_without_room_is_the_same_error(gpu: Gpu) -> None:
    class Full(torch.Tensor):  # type: ignore[misc]
        def to(self, dtype: torch.dtype) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    landing: Any = SimpleNamespace(tensor=lambda entry: torch.zeros(10).as_subclass(Full))
    entry = TensorEntry("t", Dtype.F32, (10,), ByteRange(0, 40))
    with pytest.raises(NoDeviceMemory) as caught:
        devices.placed(landing, entry, GPU, torch.float64)
    assert (caught.value.needed_bytes, caught.value.address) == (80, "cuda:1")
    with pytest.raises(torch.OutOfMemoryError):
        devices.placed(landing, entry, torch.device("xpu:0"), torch.float64)


def test_where_nothing_can_be_locked_loads_go_through_host_memory(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ring", PinnedRing(buffer_bytes=8192, limit_bytes=8192))
    arguments = HostMemory(0), Cancellation(), DeviceOptions(pinned_bytes=16384)
    gpu.register_answers = 2
    assert isinstance(devices.open_staging(GPU, *arguments), HostStaging)
    gpu.register_answers = 0
    assert isinstance(devices.open_staging(GPU, *arguments), DeviceStaging)
    assert cuda.ring.limit_bytes == 16384
    assert cuda.ring.release() == 8192


def test_pages_are_locked_for_every_device(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    memory = memory_of(8192)
    device.pin(memory)
    device.unpin(memory)
    assert gpu.calls == [("register", 8192, cuda.PORTABLE), ("unregister",)]


def test_pages_that_can_not_be_locked_are_an_error_that_is_forgotten(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    gpu.register_answers = 2
    with pytest.raises(MemoryError, match=r"said 2 \(2\)"):
        device.pin(memory_of(8192))
    assert gpu.calls[-1] == ("kernel",), "the next kernel would have stumbled over it"
    with pytest.raises(DeviceFault, match="unlocked"):
        device.unpin(memory_of(8192))


def test_a_package_that_reaches_the_device_by_itself_finds_it_current(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    with device.current():
        assert gpu.on == [GPU]
    assert gpu.on == []


def test_what_cuda_raises_is_a_device_fault_that_keeps_no_memory(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    target = device.allocate(100)
    copy = device.copy(torch.zeros(100, dtype=torch.uint8), [Piece(0, 0, 100)], target)
    gpu.error = RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")
    for failing in (copy.is_done, lambda: device.allocate(100), lambda: device.hand_over(target, [copy])):
        with pytest.raises(DeviceFault, match="illegal memory access was encountered") as caught:
            failing()
        assert "more lines" not in str(caught.value)
        assert caught.value.address == "cuda:1"
        cause = caught.value.__cause__
        assert cause is not None
        assert cause.__traceback__ is None


def test_a_copy_that_can_not_be_begun_is_waited_out(gpu: Gpu) -> None:
    device = CudaDevice(GPU)
    target = device.allocate(100)
    gpu.calls.clear()
    with pytest.raises(DeviceFault):
        device.copy(torch.zeros(10, dtype=torch.uint8), [Piece(0, 0, 10), Piece(5, 50, 20)], target)  # the second has too few bytes
    assert gpu.calls == [("synchronize", "copies")]


def test_which_devices_there_are(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CudaDevice(torch.device("cuda")).name == "cuda:1"
    built = SimpleNamespace(cuda=SimpleNamespace(is_built=lambda: True))
    monkeypatch.setattr(vars(cuda)["torch"], "backends", built)
    with pytest.raises(NoSuchDevice) as caught:
        cuda.expect(torch.device("cuda:2"))
    assert caught.value.hint == "there are 2: cuda:0 to cuda:1"
    monkeypatch.setattr(gpu, "is_available", lambda: False)
    with pytest.raises(NoSuchDevice) as caught:
        cuda.expect(torch.device("cuda:0"))
    assert "nvidia-smi" in str(caught.value.hint)
    monkeypatch.setattr(built.cuda, "is_built", lambda: False)
    with pytest.raises(NoSuchDevice) as caught:
        cuda.expect(torch.device("cuda:0"))
    assert "install a torch" in str(caught.value.hint)
