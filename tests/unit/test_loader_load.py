"""Tensors equal the `safetensors` package's bit by bit, by whatever way the bytes come; what makes no sense is an error."""

from __future__ import annotations

import gc
import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelcache
from modelcache.errors import BadCheckpoint, BadShard, FileFault, InvalidUri, NoSuchTensor, NotFound
from modelcache.loader import residency, shard_file
from modelcache.loader.checkpoint import open_checkpoint
from modelcache.loader.files import Way
from modelcache.loader.header import Dtype
from modelcache.loader.memory import HostMemory
from modelcache.loader.plan import ALIGNMENT, GAP_BYTES, plan
from modelcache.loader.report import LoadReport
from modelcache.loader.shard_file import ShardFile
from modelcache.loader.tensors import TORCH_DTYPES
from modelcache.ranges import ByteRange
from modelcache.units import KIB, MIB
from tests.tensors import Tensors, directory_on_disk, drop_from_cache, same


def of_every_dtype(seed: int = 0) -> dict[str, torch.Tensor]:
    """A tensor of each dtype that torch has, one without dimensions, one of no bytes, and one of some MiB."""
    source = torch.Generator().manual_seed(seed)
    found = {}
    for number, dtype in enumerate(TORCH_DTYPES.values()):
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (6, dtype.itemsize * (5 + number)), dtype=torch.uint8, generator=source)
        found[f"of.{number}"] = raw.view(dtype) if dtype is not torch.bool else raw.bool()
        found[f"nothing.{number}"] = torch.empty(3, 0, 4, dtype=dtype)
    found["scalar"] = torch.tensor(3.5)
    found["large"] = torch.randint(0, 2**15, (5 * MIB // 2 + 13,), dtype=torch.int16, generator=source)
    return found


def share_of(path: Path) -> float | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return residency.resident_share(fd, ByteRange(0, path.stat().st_size))
    finally:
        os.close(fd)


def mapped_whole(path: Path, tensors: Tensors) -> bool:
    """Whether a file that is in memory is mapped and nothing of it read; asked again where others drive pages out meanwhile."""
    for _ in range(20):
        path.read_bytes()
        report = LoadReport()
        assert same(modelcache.load(path, report=report, may_map=True), tensors)
        if set(report.read_bytes) == {Way.MAPPED}:
            return True
    return False


@pytest.fixture
def disk() -> Iterator[Path]:
    with directory_on_disk("load") as directory:
        yield directory


def test_every_dtype_mapped_cold_and_half_resident(disk: Path) -> None:
    path = disk / "model.safetensors"
    tensors = of_every_dtype()
    save_file(tensors, path)
    expected = load_file(path)
    assert same(expected, tensors)
    del expected
    gc.collect()

    drop_from_cache(path)
    report = LoadReport()
    assert same(modelcache.load(path, report=report), tensors)
    if share_of(path) is not None:  # else the kernel doesn't say, and the first block went through the cache
        assert report.read_bytes[Way.DIRECT] > 0
        assert report.read_bytes[Way.MAPPED] == 0
    assert report.tensor_bytes == sum(each.nbytes for each in tensors.values())
    assert report.tensors == len(tensors)

    if share_of(path) is not None:
        assert mapped_whole(path, tensors)
    report = LoadReport()
    assert same(modelcache.load(path, report=report), tensors)
    assert report.read_bytes[Way.MAPPED] == 0  # its owner may make it shorter


def test_blocks_in_the_cache_are_copied_from_there_and_the_others_come_from_the_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk / "model.safetensors"
    tensors = {f"t{number}": torch.randint(0, 2**15, (MIB,), dtype=torch.int16) for number in range(20)}
    save_file(tensors, path)
    half = path.stat().st_size // 2
    monkeypatch.setattr(residency, "resident_share", None)
    monkeypatch.setattr(shard_file, "resident_share", lambda fd, span: 1.0 if span.stop < half else 0.0)
    report = LoadReport()
    assert same(modelcache.load(path, report=report), tensors)
    assert report.read_bytes[Way.CACHED] > half // 2
    assert report.read_bytes[Way.DIRECT] > half // 2


def test_where_the_kernel_does_not_tell_single_pages_do(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk / "model.safetensors"
    tensors = {f"t{number}": torch.randint(0, 2**15, (2 * MIB,), dtype=torch.int16) for number in range(10)}
    save_file(tensors, path)
    monkeypatch.setattr(shard_file, "resident_share", lambda fd, span: None)
    drop_from_cache(path)
    report = LoadReport()
    assert same(modelcache.load(path, may_map=True, report=report), tensors)
    # but for the file's last bytes: less than a sample's distance, so that the page may be the one that was looked at before
    assert report.read_bytes[Way.DIRECT] >= report.tensor_bytes - MIB
    assert report.read_bytes[Way.MAPPED] == 0
    assert mapped_whole(path, tensors)


@pytest.mark.parametrize("warm", [True, False])
def test_where_the_kernel_does_not_tell_the_first_block_is_timed(disk: Path, monkeypatch: pytest.MonkeyPatch, warm: bool) -> None:
    path = disk / "model.safetensors"
    tensors = {f"t{number}": torch.randint(0, 2**15, (2 * MIB,), dtype=torch.int16) for number in range(10)}
    save_file(tensors, path)
    monkeypatch.setattr(shard_file, "resident_share", lambda fd, span: None)
    monkeypatch.setattr(shard_file, "sampled_share", lambda fd, span: None)
    monkeypatch.setattr(shard_file, "WARM_BYTES_PER_S", 0.0 if warm else float("inf"))
    report = LoadReport()
    assert same(modelcache.load(path, report=report), tensors)
    assert report.read_bytes[Way.MAPPED] == 0
    assert (report.read_bytes[Way.DIRECT] == 0) == warm
    assert report.read_bytes[Way.BUFFERED] > 0


def test_a_file_system_without_direct_reads() -> None:
    path = Path("/dev/shm") / f"modelcache-test-{os.getpid()}.safetensors"
    tensors = of_every_dtype(seed=1)
    try:
        save_file(tensors, path)
        assert same(modelcache.load(path), tensors)
    finally:
        path.unlink()


def test_tensors_that_lie_across_their_alignment(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    numbers = torch.arange(5, dtype=torch.float64)
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "numbers": {"dtype": "F64", "shape": [5], "data_offsets": [1, 41]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + numbers.numpy().tobytes())
    loaded = modelcache.load(path)
    assert same(loaded, {"byte": torch.tensor([7], dtype=torch.uint8), "numbers": numbers})
    assert loaded["numbers"].data_ptr() % 8 == 0


def test_a_loaded_tensor_may_be_written_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000), "b": torch.ones(1000)}, path)
    before = path.read_bytes()
    loaded = modelcache.load(path)
    loaded["a"].fill_(5)
    assert path.read_bytes() == before
    assert loaded["b"].eq(1).all()
    assert loaded["a"].untyped_storage().nbytes() == 4000  # its own, so that it can be saved alone


# -- several files --------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards with an index."""
    save_file({"a": torch.zeros(3), "layers.0.w": torch.ones(4)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"layers.1.w": torch.full((4,), 2.0), "b": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": 1, "layers.0.w": 1, "layers.1.w": 2, "b": 2})
    return tmp_path


def write_index(directory: Path, shard_of: Mapping[str, int]) -> None:
    weight_map = {name: f"model-{shard:05d}-of-00002.safetensors" for name, shard in shard_of.items()}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_with_and_without_an_index(sharded: Path) -> None:
    expected = {"a", "b", "layers.0.w", "layers.1.w"}
    assert set(modelcache.load(sharded)) == expected
    (sharded / "model.safetensors.index.json").unlink()
    assert set(modelcache.load(sharded)) == expected
    assert [name for name, _ in modelcache.stream(sharded, names=["layers.*.w"])] == ["layers.0.w", "layers.1.w"]
    with pytest.raises(NoSuchTensor, match=r"no tensor is named `layers\.9`"):
        modelcache.load(sharded, names=["a", "layers.9"])
    assert set(modelcache.load(sharded, names="layers.*")) == {"layers.0.w", "layers.1.w"}  # one text is one pattern


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"dtype": "float16"}, TypeError, "one of torch's .* not 'float16'"),
        ({"dtype": torch.int8}, TypeError, "not to torch.int8"),
        ({"order": "size"}, ValueError, "not `size`"),
        ({"shard": (0, 2)}, BadShard, "a rank, the number of ranks and a plan"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(sharded: Path, wrong: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        modelcache.load(sharded, **wrong)
    with pytest.raises(InvalidUri, match="nothing"):
        modelcache.load("")


SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def indexed(**shard_of: int) -> Callable[[Path], object]:
    return lambda at: write_index(at, {"a": 1, "layers.0.w": 1, "layers.1.w": 2, **shard_of})


def index_text(text: str) -> Callable[[Path], object]:
    return lambda at: (at / INDEX).write_text(text)


def another_second(at: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(1), "layers.1.w": torch.ones(4)}, at / SECOND)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda at: (at / SECOND).unlink(), "names a shard that is missing"),
    "a tensor twice": (another_second, "two shards have a tensor `a`"),
    "a tensor elsewhere": (indexed(a=2, b=2), "is not where the index has it"),
    "a tensor nowhere": (indexed(b=2, c=2), "is not where the index has it"),
    "an unknown tensor": (indexed(), "doesn't know tensor `b`"),
    "a path in the index": (index_text('{"weight_map":{"a":"../x.safetensors"}}'), "no shard beside it"),
    "half a surrogate pair in the index": (index_text('{"weight_map":{"a":"\\ud800.safetensors"}}'), "no shard beside it"),
    "no index": (index_text('{"weight_map":[]}'), "the index is not one"),
    "an index of nothing": (index_text('{"weight_map":{}}'), "names no shard"),
    "a name twice in the index": (index_text('{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}'), "twice"),
    "two indexes": (lambda at: (at / "other.safetensors.index.json").write_text("{}"), "several checkpoints"),
    "a shard cut short": (lambda at: os.truncate(at / SECOND, 100), "header"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_shards_that_make_no_sense(sharded: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(sharded)
    with pytest.raises(BadCheckpoint) as caught:
        modelcache.load(sharded)
    assert said in caught.value.message


@pytest.mark.parametrize("spoil", ["a directory", "a loop", "a long name", "an index that leads nowhere"])
def test_files_that_can_not_be_read(sharded: Path, spoil: str) -> None:
    if spoil != "a long name":
        (sharded / SECOND).unlink()
    if spoil == "a directory":
        (sharded / SECOND).mkdir()
    elif spoil == "a loop":
        (sharded / SECOND).symlink_to(sharded / SECOND)
    elif spoil == "a long name":
        index_text(json.dumps({"weight_map": {"a": "x" * 300 + ".safetensors"}}))(sharded)
    else:
        (sharded / INDEX).unlink()
        (sharded / INDEX).symlink_to(sharded / "none")
    with pytest.raises(FileFault, match=rf"can't be read.*: {sharded}/"):
        modelcache.load(sharded)


def test_nothing_there(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(NotFound):
            modelcache.load(missing)


# -- the plan -------------------------------------------------------------------------------------------------------


def test_no_byte_is_planned_twice_and_no_wide_gap_is_read(tmp_path: Path) -> None:
    chance = random.Random(4)
    sizes = {f"t{number:03}": chance.choice([1, 5000, 100_000, GAP_BYTES, GAP_BYTES * 3]) for number in range(60)}
    save_file({name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for wanted in ([*sizes], chance.sample(sorted(sizes), 20), ["t000"]):
        extents = plan(checkpoint, wanted)
        assert sorted(entry.name for extent in extents for entry in extent.tensors) == sorted(wanted)
        for extent in extents:
            assert extent.span.start % ALIGNMENT == 0
            assert next(block.start for block in extent.blocks()) == extent.span.start
            assert sum(block.size_bytes for block in extent.blocks()) == extent.span.size_bytes
            gaps = [after.span.start - before.span.stop for before, after in zip(extent.tensors, extent.tensors[1:], strict=False)]
            assert all(0 <= gap <= GAP_BYTES for gap in gaps)
            assert all(extent.span.start <= entry.span.start and entry.span.stop <= extent.span.stop for entry in extent.tensors)
        ends = [(entry.span.start, entry.span.stop) for extent in extents for entry in extent.tensors]
        assert ends == sorted(ends)


# -- while it is read -----------------------------------------------------------------------------------------------


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(MIB)}, path)
    checkpoint = open_checkpoint(path)
    os.truncate(path, 5000)
    with pytest.raises(BadCheckpoint, match="changed after its header was read"):
        ShardFile(path, checkpoint.shards[0].header.file_bytes, stays_whole=False)
    file = ShardFile(path, 5000, stays_whole=False)
    try:
        with pytest.raises(BadCheckpoint, match="shrank while it was read"):
            file.read(ByteRange(4096, 12288), memoryview(bytearray(8192)))
    finally:
        file.close()


def test_a_stream_that_is_left_leaves_no_thread_and_no_open_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(MIB), "b": torch.ones(MIB)}, path)
    gc.collect()  # what an earlier test left
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    stream = modelcache.stream(path)
    name, tensor = next(stream)
    stream.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)
    assert tensor.shape == (MIB,)
    assert name in "ab"


def test_floating_point_tensors_are_cast_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = of_every_dtype()
    save_file(tensors, path)
    packed = torch.float4_e2m1fn_x2  # two numbers in a byte, which torch casts to nothing
    expected = {
        name: tensor.to(torch.float32) if tensor.dtype.is_floating_point and tensor.dtype is not packed else tensor
        for name, tensor in tensors.items()
    }
    assert same(modelcache.load(path, dtype=torch.float32, device="cpu"), expected)
    assert {each.device.type for each in modelcache.load(path, device="meta").values()} == {"meta"}
    for dtype in (torch.int8, packed):
        with pytest.raises(TypeError, match="floating-point"):
            modelcache.load(path, dtype=dtype)


def test_a_dtype_that_torch_lacks(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({"a": {"dtype": Dtype.F6_E2M3.label, "shape": [4], "data_offsets": [0, 3]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    assert [entry.dtype for _, entry in open_checkpoint(path).place.values()] == [Dtype.F6_E2M3]
    with pytest.raises(BadCheckpoint, match="torch has no dtype"):
        modelcache.load(path)


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**63 - 1, 2**63 - 1], [2**64 - 1, 0]], ids=str)
def test_a_shape_that_torch_has_no_numbers_for(tmp_path: Path, shape: list[int]) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({"a": {"dtype": "I8", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert [entry.shape for _, entry in open_checkpoint(path).place.values()] == [tuple(shape)]
    with pytest.raises(BadCheckpoint, match="torch has no tensor of such a shape"):
        modelcache.load(path)


# -- memory ---------------------------------------------------------------------------------------------------------


def test_memory_comes_back_with_its_last_tensor_and_is_lent_again() -> None:
    memory = HostMemory(idle_limit_bytes=MIB)
    lent = memory.lend(MIB)
    tensor = torch.frombuffer(lent, dtype=torch.uint8, count=10)
    del lent
    gc.collect()
    assert memory.idle_bytes == 0
    del tensor
    gc.collect()
    assert memory.idle_bytes == MIB
    again = memory.lend(MIB - 100)
    assert (len(again), memory.idle_bytes) == (MIB, 0)
    other = memory.lend(KIB)
    assert len(other) == KIB
    del again, other
    gc.collect()
    assert memory.idle_bytes == MIB  # and what is beyond the bound went back to the machine
    assert memory.release() == MIB
    assert memory.idle_bytes == 0


def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError, match="can't be had"):
        HostMemory(0).lend(1 << 60)
