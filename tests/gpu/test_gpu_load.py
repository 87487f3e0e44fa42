"""Loads to a GPU give what safetensors gives there, bit by bit, for every dtype, state of the page cache and kind of end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelcache
from modelcache.arriving import opening
from modelcache.errors import Cancelled, NoDeviceMemory
from modelcache.loader import cuda
from modelcache.loader.cuda import CudaDevice
from modelcache.loader.files import Way
from modelcache.loader.layout import TENSOR_ALIGNMENT
from modelcache.loader.options import RING_BYTES
from modelcache.loader.report import LoadReport
from modelcache.patience import Cancellation
from modelcache.units import MIB
from tests.gpu.late import late
from tests.tensors import directory_on_disk, drop_from_cache, of_every_dtype, same, same_tensor

pytestmark = pytest.mark.gpu
GPU = "cuda:0"


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(GPU)
    yield
    torch.cuda.synchronize()
    gc.collect()  # an error that a test kept refers to the test's tensors by its frames
    assert torch.cuda.memory_allocated(GPU) <= before
    assert cuda.ring.pinned_bytes <= RING_BYTES


@pytest.fixture
def disk() -> Iterator[Path]:
    with directory_on_disk("gpu") as directory:
        yield directory


@pytest.fixture
def model(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """136 MiB of bf16 in 3 shards, read in extents of 16 MiB at most."""
    monkeypatch.setattr(opening, "EXTENT_BYTES", 16 * MIB)
    source = torch.Generator().manual_seed(3)
    for shard in range(3):
        raw = [torch.randint(-(2**15), 2**15, (514 * (number + 1), 1024), dtype=torch.int16, generator=source) for number in range(9)]
        tensors = {f"layer.{shard}.{number}": each.view(torch.bfloat16) for number, each in enumerate(raw)}
        save_file(tensors, disk / f"model-{shard}.safetensors")
    return disk


def theirs(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path, device=GPU).items()}


def test_every_dtype_and_no_bytes(disk: Path) -> None:
    save_file(of_every_dtype(), disk / "model.safetensors")
    loaded = modelcache.load(disk / "model.safetensors", device=GPU)
    assert same(loaded, theirs(disk))
    assert all(tensor.data_ptr() % TENSOR_ALIGNMENT == 0 for tensor in loaded.values())


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_tensors_that_the_file_does_not_align(disk: Path, shift: int) -> None:
    data = torch.randint(0, 256, (9 * MIB,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    fields, at, expected = [], 0, {}
    for number, count in enumerate([3, 1, 500_001, 7, 600_003, 1, 90_001]):
        dtype, name = [(torch.uint8, "U8"), (torch.float32, "F32"), (torch.float64, "F64")][number % 3]
        end = at + count * dtype.itemsize
        fields.append(f'"t{number}":{{"dtype":"{name}","shape":[{count}],"data_offsets":[{at},{end}]}}')
        expected[f"t{number}"] = data[at:end].clone().view(dtype).to(GPU)
        at = end
    header = f"{{{','.join(fields)}{' ' * shift}}}"
    (disk / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(data[:at].numpy()))
    loaded = modelcache.load(disk / "model.safetensors", device=GPU)
    assert same(loaded, expected)
    assert all(tensor.data_ptr() % TENSOR_ALIGNMENT == 0 for tensor in loaded.values())


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_shards_by_each_way(model: Path, state: str) -> None:
    expected = theirs(model)
    if state == "cold":
        for path in model.glob("*.safetensors"):
            drop_from_cache(path)
    report = LoadReport()
    assert same(modelcache.load(model, device="cuda", report=report), expected)
    assert report.read_bytes[Way.MAPPED] == 0
    assert report.tensor_bytes == sum(tensor.nbytes for tensor in expected.values())


def test_names_orders_casts_and_the_host_beside_it(model: Path) -> None:
    expected = theirs(model)
    names = ["layer.2.8", "layer.0.1", "layer.1.5"]
    in_turn = list(modelcache.stream(model, names=names, order="given", device=GPU))
    assert [name for name, _ in in_turn] == names
    assert same(dict(in_turn), {name: expected[name] for name in names})
    cast = modelcache.load(model, names=["layer.1.*"], device=GPU, dtype=torch.float32)
    assert same(cast, {name: tensor.float() for name, tensor in expected.items() if name.startswith("layer.1.")})
    beside = modelcache.load(model, device={"layer.0.*": "cpu", "*": GPU})
    assert same(beside, {name: tensor.cpu() if name.startswith("layer.0.") else tensor for name, tensor in expected.items()})


def test_on_a_stream_and_in_inference_mode(model: Path) -> None:
    expected = theirs(model)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(GPU)):
        torch.cuda._sleep(100_000_000)
        loaded = modelcache.load(model, device=GPU)
        total = sum(tensor.view(torch.int16).long().sum() for tensor in loaded.values())
    torch.cuda.synchronize()
    assert int(total) == int(sum(tensor.view(torch.int16).long().sum() for tensor in expected.values()))
    assert same(loaded, expected)


def test_no_room_says_so_gives_all_back_and_the_next_load_succeeds(model: Path) -> None:
    expected = theirs(model)
    torch.cuda.empty_cache()
    used, total = torch.cuda.memory_allocated(GPU), torch.cuda.get_device_properties(GPU).total_memory
    try:  # room for three extents, and for what is left in pieces of the allocator's
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + 56 * MIB) / total, 0)
        with pytest.raises(NoDeviceMemory) as caught:
            modelcache.load(model, device=GPU)
        assert caught.value.needed_bytes > 0
        assert caught.value.address == GPU
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated(GPU) == used, "though the error is kept"
        for name, tensor in modelcache.stream(model, device=GPU):  # who drops needs no more than that
            assert same_tensor(tensor.cpu(), expected[name].cpu())
            del tensor
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert same(modelcache.load(model, device=GPU), expected)


@pytest.mark.parametrize("end", ["cancelled", "closed"])
def test_whoever_stops_in_the_middle_leaves_nothing_not_even_a_late_copy(model: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = theirs(model)
    monkeypatch.setattr(CudaDevice, "copy", late(CudaDevice.copy))
    torch.cuda.empty_cache()
    cancel = Cancellation()
    tensors = modelcache.stream(model, device=GPU, cancel=cancel)
    kept = dict(next(tensors) for _ in range(4))
    if end == "closed":
        tensors.close()
    else:
        cancel.cancel()
        with pytest.raises(Cancelled):
            list(tensors)
    others = [torch.full((16 * MIB,), 9, dtype=torch.uint8, device=GPU) for _ in range(8)]  # in memory that was given back
    torch.cuda.synchronize()
    assert same(kept, {name: expected[name] for name in kept})
    assert all(bool((other.cpu() == 9).all()) for other in others)


def test_who_uses_a_tensor_at_once_gets_its_bytes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "copy", late(CudaDevice.copy))
    expected = theirs(model)
    assert same({name: tensor.clone() for name, tensor in modelcache.stream(model, device=GPU)}, expected)


def test_several_threads_load_at_once(model: Path) -> None:
    expected = theirs(model)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(same(modelcache.load(model, device=GPU), expected))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4


def test_loads_again_and_again_take_no_more_and_give_all_back(model: Path) -> None:
    expected = theirs(model)
    for _ in range(10):
        assert same(modelcache.load(model, device=GPU), expected)
    assert 0 < cuda.ring.pinned_bytes <= RING_BYTES
    pinned = cuda.ring.pinned_bytes
    assert modelcache.release_memory() >= pinned
    assert cuda.ring.pinned_bytes == 0
    assert same(modelcache.load(model, device=GPU), expected)
