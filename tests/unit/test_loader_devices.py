"""Loads to devices, on the double: the same bits as safetensors, whatever copies, memory, threads and disks do in the meantime."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelcache
from modelcache.arriving import opening
from modelcache.cache import ModelCache
from modelcache.errors import Cancelled, DeviceFault, NoDeviceMemory, NoSuchDevice, StoreFault
from modelcache.loader import cuda, devices, loading
from modelcache.loader import plan as plan_module
from modelcache.loader.files import Way
from modelcache.loader.host import HostStaging
from modelcache.loader.layout import TENSOR_ALIGNMENT
from modelcache.loader.memory import HostMemory
from modelcache.loader.options import DeviceOptions
from modelcache.loader.pinned import PinnedRing
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_file import ShardFile
from modelcache.loader.staging import DeviceStaging
from modelcache.patience import Cancellation
from modelcache.testing.device_double import DoubleDevice, DoubleMachine
from modelcache.units import KIB
from tests.tensors import of_every_dtype, same, same_tensor

BLOCK_BYTES = 16 * KIB
EXTENT_BYTES = 64 * KIB
GPU = "cuda:0"


@pytest.fixture(params=[False, True], ids=["late", "threads"])
def machine(request: pytest.FixtureRequest) -> Iterator[DoubleMachine]:
    with DoubleMachine(threads=request.param) as machine:
        yield machine
        assert machine.violations == []


@pytest.fixture
def ring(machine: DoubleMachine, monkeypatch: pytest.MonkeyPatch) -> Iterator[PinnedRing]:
    """Four buffers; loads to GPUs go to the double's devices through them, in small extents of small blocks."""
    ring = PinnedRing(buffer_bytes=BLOCK_BYTES, limit_bytes=4 * BLOCK_BYTES)
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(opening, "EXTENT_BYTES", EXTENT_BYTES)
    monkeypatch.setattr(cuda, "expect", lambda device: None)
    monkeypatch.setattr(devices, "DEVICE_THREADS", 6)

    def open_staging(device: torch.device, memory: HostMemory, cancel: Cancellation, options: DeviceOptions) -> DeviceStaging | HostStaging:
        if device.type != "cuda":
            return HostStaging(memory, device)
        return DeviceStaging(machine.device(str(device)), torch.device("cpu"), ring, cancel)

    monkeypatch.setattr(loading, "open_staging", open_staging)
    yield ring
    assert ring.pinned_bytes <= ring.limit_bytes
    ring.release()
    assert (ring.pinned_bytes, machine.pinned_bytes) == (0, 0), "every buffer was given back"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Forty tensors over some twenty extents, in two shards."""
    directory = tmp_path / "model"
    directory.mkdir()
    source = torch.Generator().manual_seed(7)
    for shard in range(2):
        raw = [torch.randint(-(2**15), 2**15, (number * 997 + 3,), dtype=torch.int16, generator=source) for number in range(20)]
        tensors = {f"layer.{shard}.{number}": each.view(torch.bfloat16) for number, each in enumerate(raw)}
        save_file(tensors, directory / f"model-{shard}.safetensors")
    return directory


def expected_of(model: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for path in sorted(model.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_raw(path: Path, header: str, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


def test_every_dtype_and_no_bytes(machine: DoubleMachine, ring: PinnedRing, tmp_path: Path) -> None:
    tensors = of_every_dtype()
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = modelcache.load(tmp_path / "model.safetensors", device=GPU)
    assert same(loaded, tensors)
    assert all(tensor.data_ptr() % TENSOR_ALIGNMENT == 0 for tensor in loaded.values())


@pytest.mark.parametrize("shift", [0, 1, 2, 5])
def test_tensors_that_the_file_does_not_align(machine: DoubleMachine, ring: PinnedRing, tmp_path: Path, shift: int) -> None:
    counts = [3, 1, 5000, 7, 20_000, 1, 1, 30_000]
    data = torch.randint(0, 256, (8 * sum(counts),), dtype=torch.uint8, generator=torch.Generator().manual_seed(shift))
    fields, expected, at = [], {}, 0
    for number, count in enumerate(counts):
        dtype, name = [(torch.uint8, "U8"), (torch.float32, "F32"), (torch.float64, "F64"), (torch.bfloat16, "BF16")][number % 4]
        end = at + count * dtype.itemsize
        fields.append(f'"t{number}":{{"dtype":"{name}","shape":[{count}],"data_offsets":[{at},{end}]}}')
        expected[f"t{number}"] = data[at:end].clone().view(dtype)
        at = end
    write_raw(tmp_path / "model.safetensors", f"{{{','.join(fields)}{' ' * shift}}}", bytes(data[:at].numpy()))
    loaded = modelcache.load(tmp_path / "model.safetensors", device=GPU)
    assert same(loaded, expected)
    assert all(tensor.data_ptr() % TENSOR_ALIGNMENT == 0 for tensor in loaded.values())


def test_shards_names_patterns_orders_and_casts(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    expected = expected_of(model)
    report = LoadReport()
    assert same(modelcache.load(model, device=GPU, report=report), expected)
    assert report.tensor_bytes == sum(tensor.nbytes for tensor in expected.values())
    assert sum(report.read_bytes.values()) >= report.tensor_bytes
    names = ["layer.1.19", "layer.0.3", "layer.0.18", "layer.1.0"]
    in_turn = list(modelcache.stream(model, names=names, order="given", device=GPU))
    assert [name for name, _ in in_turn] == names
    assert same(dict(in_turn), {name: expected[name] for name in names})
    cast = modelcache.load(model, names=["layer.0.*"], device=GPU, dtype=torch.float32)
    assert same(cast, {name: tensor.float() for name, tensor in expected.items() if name.startswith("layer.0.")})


def test_two_devices_and_the_host_in_one_load(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    expected = expected_of(model)
    placement = {"layer.0.*": "cuda:0", "layer.1.*": "cuda:1", "layer.?.19": "cpu", "layer.0.7": "cuda:1"}
    loaded = modelcache.load(model, device=placement)
    assert same(loaded, expected)
    on = {name: "cpu" if name.endswith(".19") else "cuda:1" if name == "layer.0.7" or ".1." in name else "cuda:0" for name in expected}
    for device in ("cuda:0", "cuda:1"):
        bytes_there = sum(tensor.nbytes for name, tensor in expected.items() if on[name] == device)
        assert bytes_there <= machine.used_bytes[device] < bytes_there + 256 * len(expected)
    del loaded
    assert machine.total_used_bytes == 0


def test_a_ranks_parts(machine: DoubleMachine, ring: PinnedRing, tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(5)
    tensors = {f"t{number}": torch.randint(0, 2**15, (2 * number + 2, 1000), dtype=torch.int16, generator=source) for number in range(12)}
    save_file(tensors, tmp_path / "model.safetensors")
    plan = {"t*": 0, "t1?": 1, "t5": None}
    for rank in range(2):
        loaded = modelcache.load(tmp_path / "model.safetensors", device=GPU, shard=(rank, 2, plan))
        for name, tensor in tensors.items():
            expected = tensor if name == "t5" else tensor.chunk(2, 1 if len(name) == 3 else 0)[rank]
            assert torch.equal(loaded[name], expected), name


def test_a_model_that_arrives_and_then_is_here(machine: DoubleMachine, ring: PinnedRing, model: Path, tmp_path: Path) -> None:
    expected = expected_of(model)
    with ModelCache(tmp_path / "store") as cache:
        for _ in range(2):
            report = LoadReport()
            assert same(modelcache.load(f"file://{model}", device=GPU, cache=cache, report=report), expected)
            assert report.read_bytes[Way.MAPPED] == 0, "what is in the page cache goes through pinned memory, too"


def test_no_room_says_so_gives_all_back_and_the_next_load_succeeds(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    expected = expected_of(model)
    whole = sum(tensor.nbytes for tensor in expected.values())
    machine.capacity_bytes = whole // 2
    with pytest.raises(NoDeviceMemory) as caught:
        modelcache.load(model, device=GPU)
    assert 0 <= caught.value.free_bytes < caught.value.needed_bytes
    assert caught.value.address == GPU
    assert machine.total_used_bytes == 0, "though the error, and the frames that it came through, are kept"
    machine.capacity_bytes = 2 * whole
    assert same(modelcache.load(model, device=GPU), expected)


def test_a_stream_whose_consumer_drops_needs_room_for_two_extents_alone(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    expected = expected_of(model)
    machine.capacity_bytes = 2 * EXTENT_BYTES + BLOCK_BYTES
    for name, tensor in modelcache.stream(model, device=GPU):
        assert same_tensor(tensor, expected.pop(name))
        del tensor
    assert expected == {}


@pytest.mark.parametrize("nth", [1, 5, 30])
def test_a_device_that_fails_is_an_error_and_leaves_nothing(machine: DoubleMachine, ring: PinnedRing, model: Path, nth: int) -> None:
    machine.failing_copy = nth
    with pytest.raises(DeviceFault):
        modelcache.load(model, device=GPU)
    assert machine.total_used_bytes == 0
    assert same(modelcache.load(model, device=GPU), expected_of(model))


def test_a_disk_that_fails_leaves_nothing(machine: DoubleMachine, ring: PinnedRing, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    honest = ShardFile.read

    def read(file: ShardFile, *arguments: object) -> object:
        reads.append(file)
        if len(reads) == 9:
            raise OSError(5, "Input/output error")
        return honest(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardFile, "read", read)
    with pytest.raises(StoreFault):
        modelcache.load(model, device=GPU)
    assert machine.total_used_bytes == 0


@pytest.mark.parametrize("end", ["cancelled", "closed", "dropped"])
def test_whoever_stops_in_the_middle_leaves_nothing_but_what_was_handed_out(
    machine: DoubleMachine, ring: PinnedRing, model: Path, end: str
) -> None:
    cancel = Cancellation()
    expected = expected_of(model)
    tensors = modelcache.stream(model, device=GPU, cancel=cancel)
    kept = dict(next(tensors) for _ in range(7))
    if end == "cancelled":
        cancel.cancel()
        with pytest.raises(Cancelled):
            list(tensors)
    elif end == "closed":
        tensors.close()
    else:
        del tensors
    assert same(kept, {name: expected[name] for name in kept})
    assert machine.total_used_bytes < sum(tensor.nbytes for tensor in kept.values()) + EXTENT_BYTES, "the extent that was begun, at most"
    del kept
    assert machine.total_used_bytes == 0


def test_a_fork_that_lets_go_of_a_load_asks_the_device_for_nothing(
    machine: DoubleMachine, ring: PinnedRing, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expected_of(model)
    tensors = modelcache.stream(model, device=GPU)
    found = dict([next(tensors)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of a process with threads
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            monkeypatch.setattr(DoubleDevice, "drain", lambda device: os._exit(2))  # CUDA fails in a fork
            used_bytes = machine.total_used_bytes
            tensors.close()
            os._exit(0 if machine.total_used_bytes == used_bytes else 3)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found.update(tensors)
    assert same(found, expected)


def test_threads_share_a_ring_of_two_buffers(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    ring.limit_bytes = 2 * BLOCK_BYTES
    expected = expected_of(model)
    answers: list[bool] = []

    def load(device: str) -> None:
        answers.append(same(modelcache.load(model, device=device), expected))

    threads = [threading.Thread(target=load, args=(f"cuda:{number % 2}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4
    assert machine.most_pinned_bytes <= 2 * BLOCK_BYTES


def test_where_little_can_be_locked_a_load_does_with_it_and_with_none_says_so(
    machine: DoubleMachine, ring: PinnedRing, model: Path
) -> None:
    machine.pinnable_bytes = BLOCK_BYTES
    assert same(modelcache.load(model, device=GPU), expected_of(model))
    assert machine.most_pinned_bytes == BLOCK_BYTES
    assert ring.release() == BLOCK_BYTES
    machine.pinnable_bytes = 0
    with pytest.raises(MemoryError):
        modelcache.load(model, device=GPU)
    assert machine.total_used_bytes == 0


def test_a_cancelled_wait_for_a_buffer_ends(machine: DoubleMachine, ring: PinnedRing) -> None:
    cancel = Cancellation()
    device = machine.device()
    held = [ring.take(device, cancel) for _ in range(4)]
    ended: list[type[BaseException]] = []

    def take() -> None:
        try:
            ring.take(device, cancel)
        except Cancelled as error:
            ended.append(type(error))

    thread = threading.Thread(target=take)
    thread.start()
    cancel.cancel()
    thread.join()
    assert ended == [Cancelled]
    for buffer in held:
        ring.give(buffer, [])


def test_what_is_kept_for_the_next_load_is_used_by_it(machine: DoubleMachine, ring: PinnedRing, model: Path) -> None:
    modelcache.load(model, device=GPU)
    kept = ring.pinned_bytes
    assert 0 < kept <= ring.limit_bytes
    modelcache.load(model, device="cuda:1")
    assert machine.most_pinned_bytes <= ring.limit_bytes
    assert ring.release() == ring.limit_bytes or kept < ring.limit_bytes


@pytest.mark.parametrize("device", ["cuda:97", {"*": "cuda:97"}])
def test_a_device_that_is_not_there_is_refused_before_anything_is_fetched(device: str | dict[str, str]) -> None:
    with pytest.raises(NoSuchDevice) as caught:
        modelcache.load("s3://nobody/asks-for-this", device=device)
    assert caught.value.address == "cuda:97"
    assert caught.value.hint


def test_release_memory_counts_what_was_pinned(machine: DoubleMachine, ring: PinnedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "ring", ring)
    modelcache.release_memory()
    ring.give(ring.take(machine.device(), Cancellation()), [])
    assert modelcache.release_memory() == BLOCK_BYTES
