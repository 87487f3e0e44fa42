"""Reads straight into a device: used where they are offered and faster, never trusted beyond that, the same bits in any case."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modelcache
from modelcache.errors import BadConfig, DeviceFault
from modelcache.loader import cuda, gds, loading, shard_file
from modelcache.loader import plan as plan_module
from modelcache.loader.files import Way
from modelcache.loader.gds import Trial, straight_reads
from modelcache.loader.host import HostStaging
from modelcache.loader.memory import HostMemory
from modelcache.loader.options import DeviceOptions, Gds
from modelcache.loader.pinned import PinnedRing
from modelcache.loader.report import LoadReport
from modelcache.loader.staging import DeviceStaging
from modelcache.patience import Cancellation
from modelcache.testing.device_double import DoubleMachine, current_device
from modelcache.units import KIB

BLOCK_BYTES = 16 * KIB


class Kvikio(ModuleType):
    """Stands in for the package, which needs a GPU: reads into the double's memory. Counts, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__("kvikio")
        self.reads = 0
        self.open = 0
        self.failing = False
        self.shows = 1.0

    def CuFile(self, path: str, flags: str) -> CuFile:  # noqa: N802 - its name
        assert flags == "r"
        self.open += 1
        return CuFile(self, os.open(path, os.O_RDONLY))


class CuFile:
    def __init__(self, kvikio: Kvikio, fd: int) -> None:
        self._kvikio = kvikio
        self._fd = fd

    def raw_read(self, buf: torch.Tensor, size: int, file_offset: int, dev_offset: int) -> int:
        assert file_offset % 4096 == 0
        assert buf.data_ptr() % 4096 == 0
        assert (size, dev_offset) == (buf.numel(), 0)
        assert current_device() == "cuda:0", "it works in the context of the thread that calls it"
        self._kvikio.reads += 1
        if self._kvikio.failing:
            raise RuntimeError("cuFileRead failed")
        data = os.pread(self._fd, int(size * self._kvikio.shows), file_offset)
        ctypes.memmove(buf.data_ptr(), data, len(data))
        return len(data)

    def close(self) -> None:
        os.close(self._fd)
        self._kvikio.open -= 1


@pytest.fixture
def kvikio(monkeypatch: pytest.MonkeyPatch) -> Kvikio:
    module = Kvikio()
    monkeypatch.setitem(sys.modules, "kvikio", module)
    monkeypatch.setattr(gds, "find_spec", lambda name: object())
    monkeypatch.setattr(gds, "KERNEL_PART", Path("/proc"))
    monkeypatch.setattr(gds, "FILE_SYSTEMS", {"ext4", "xfs", "tmpfs", "overlay", "btrfs"})
    monkeypatch.setattr(gds, "resident_share", lambda fd, span: 0.0)
    monkeypatch.setattr(shard_file, "resident_share", lambda fd, span: 0.0)
    monkeypatch.setattr(gds, "_TRIALS", {})
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One MiB, of tensors that a file aligns to 16 bytes."""
    path = tmp_path / "model.safetensors"
    source = torch.Generator().manual_seed(1)
    save_file({f"t{at}": torch.randint(0, 2**15, (8 * KIB,), dtype=torch.int16, generator=source) for at in range(64)}, path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    room = -(8 + size) % 16
    path.write_bytes((size + room).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * room + raw[8 + size :])
    return path


Loading = Callable[[Gds], tuple[bool, LoadReport]]


@pytest.fixture
def load(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loading]:
    """Load to the double's device, and compare."""
    expected = load_file(model)
    ring = PinnedRing(buffer_bytes=BLOCK_BYTES, limit_bytes=4 * BLOCK_BYTES)
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(cuda, "expect", lambda device: None)
    with DoubleMachine() as machine:

        def open_staging(device: torch.device, memory: HostMemory, cancel: Cancellation, options: DeviceOptions) -> Any:
            if device.type != "cuda":
                return HostStaging(memory, device)
            double = machine.device(str(device))
            return DeviceStaging(double, torch.device("cpu"), ring, cancel, straight_reads(double, options.gds))

        monkeypatch.setattr(loading, "open_staging", open_staging)

        def load(wish: Gds) -> tuple[bool, LoadReport]:
            monkeypatch.setenv("MODELCACHE_GPU_GDS", wish)
            report = LoadReport()
            found = modelcache.load(model, device="cuda:0", report=report)
            return all(torch.equal(found[name], expected[name]) for name in expected), report

        yield load
        ring.release()
        assert machine.violations == []
        assert machine.total_used_bytes == 0


def test_asked_for_it_brings_all_but_the_ends(load: Loading, kvikio: Kvikio) -> None:
    is_same, report = load(Gds.ALWAYS)
    assert is_same
    assert report.read_bytes[Way.STRAIGHT] == kvikio.reads * BLOCK_BYTES > 1_000_000 - 3 * BLOCK_BYTES
    assert kvikio.open == 0, "files are closed with the load"


def test_forbidden_it_is_not_imported(load: Loading, kvikio: Kvikio) -> None:
    is_same, report = load(Gds.NEVER)
    assert is_same
    assert (kvikio.reads, report.read_bytes[Way.STRAIGHT]) == (0, 0)


@pytest.mark.parametrize("lacks", ["kernel", "file system", "cold blocks"])
def test_left_alone_it_is_not_imported_where_it_can_not_help(
    load: Loading, kvikio: Kvikio, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "kernel":
        monkeypatch.setattr(gds, "KERNEL_PART", Path("/no/such/module"))
    elif lacks == "file system":
        monkeypatch.setattr(gds, "FILE_SYSTEMS", frozenset[str]())
    else:
        monkeypatch.setattr(gds, "resident_share", lambda fd, span: 1.0)
    monkeypatch.setitem(sys.modules, "kvikio", None)  # an import would fail
    is_same, report = load(Gds.AUTO)
    assert is_same
    assert report.read_bytes[Way.STRAIGHT] == 0


@pytest.mark.parametrize("is_faster", [True, False])
def test_left_alone_the_faster_way_wins(load: Loading, kvikio: Kvikio, monkeypatch: pytest.MonkeyPatch, is_faster: bool) -> None:
    monkeypatch.setattr(gds, "GAIN", float("inf") if is_faster else 0.0)
    assert load(Gds.AUTO)[0]
    first = kvikio.reads
    assert first >= 1, "both were tried"
    assert load(Gds.AUTO)[0]
    ways = load(Gds.AUTO)[1].read_bytes
    blocks = kvikio.reads - first
    assert (ways[Way.STRAIGHT] > 0) == is_faster
    assert (blocks > 100) == is_faster


def test_a_failure_is_told_where_it_was_asked_for_and_else_the_other_way_is_taken(load: Loading, kvikio: Kvikio) -> None:
    kvikio.failing = True
    assert load(Gds.AUTO)[0]
    reads = kvikio.reads
    assert load(Gds.AUTO)[0]
    assert kvikio.reads == reads, "never again in this process"
    with pytest.raises(DeviceFault, match="GPUDirect"):
        load(Gds.ALWAYS)
    assert kvikio.open == 0


def test_a_short_read_is_read_again_the_other_way(load: Loading, kvikio: Kvikio) -> None:
    kvikio.shows = 0.5
    is_same, report = load(Gds.ALWAYS)
    assert is_same
    assert report.read_bytes[Way.STRAIGHT] == 0


def test_asked_for_and_not_installed_is_an_error(load: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gds, "find_spec", lambda name: None)
    assert load(Gds.AUTO)[0]
    with pytest.raises(BadConfig, match="kvikio"):
        load(Gds.ALWAYS)


def test_a_trial_takes_turns_and_then_the_faster() -> None:
    for mine, other, expected in ((1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False)):
        trial = Trial()
        for _ in range(gds.TRIED_BLOCKS):
            assert [trial.is_next(), trial.is_next()] == [True, False]
            trial.took(True, mine)
            trial.took(False, other)
        assert trial.verdict is expected
        assert trial.is_next() is expected
