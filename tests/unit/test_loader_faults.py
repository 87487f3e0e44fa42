"""What goes wrong while tensors are read is an error, and leaves nothing behind: no thread, no open file, no memory."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import torch

from modelcache.errors import BadCheckpoint, Cancelled, StoreFault
from modelcache.loader import host, loading, plan
from modelcache.loader.checkpoint import Shard, open_checkpoint
from modelcache.loader.files import Opener, Way
from modelcache.loader.loading import Wishes, stream_tensors
from modelcache.loader.memory import HostMemory, Memory
from modelcache.loader.shard_file import ShardFile, open_shard
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import GIB, KIB
from tests.unit.instants import Instants
from tests.unit.two_shards import SHARDS, TENSOR_BYTES, TENSORS, save_model

EXTENT_BYTES = 64 * KIB
TIMEOUT_S = 100


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files that `tensors_of` reads in many small pieces, few of them ahead."""
    monkeypatch.setattr(plan, "BLOCK_BYTES", 16 * KIB)
    monkeypatch.setattr(loading, "AHEAD_BYTES", 2 * EXTENT_BYTES)
    save_model(tmp_path)
    return tmp_path


def tensors_of(
    model: Path, open_file: Opener = open_shard, cancel: Cancellation | None = None
) -> Generator[tuple[str, torch.Tensor], None, None]:
    checkpoint = open_checkpoint(model)
    names = checkpoint.select(None)
    extents = plan.plan(checkpoint, names, extent_bytes=EXTENT_BYTES)
    assert len(extents) == SHARDS * TENSORS * TENSOR_BYTES // EXTENT_BYTES
    yield from stream_tensors(checkpoint, names, Wishes(), extents=extents, open_file=open_file, cancel=cancel)


@pytest.fixture
def memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMemory]:
    """Of these loads alone. At the end it is all back, and there are as many threads and open files as before."""
    found = HostMemory(idle_limit_bytes=GIB)
    monkeypatch.setattr(loading, "memory", found)
    gc.collect()  # what an earlier test left
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield found
    gc.collect()
    assert (found.lent_bytes, len(os.listdir("/proc/self/fd")), threading.active_count()) == (0, *before)


class Spoilt(ShardFile):
    """A file with which something happens at one of its blocks."""

    def __init__(self, shard: Shard, happen: Callable[[], object], blocks: Iterator[int], at: int) -> None:
        super().__init__(shard.path, shard.header.file_bytes, stays_whole=False)
        self._happen, self._blocks, self._at = happen, blocks, at

    def read(self, block: ByteRange, into: memoryview) -> Way:
        if next(self._blocks) == self._at:
            self._happen()
        return super().read(block, into)


def load_spoilt(model: Path, happen: Callable[[], object], at: int, cancel: Cancellation | None = None) -> dict[str, torch.Tensor]:
    blocks = count()
    return dict(tensors_of(model, lambda shard, own: Spoilt(shard, happen, blocks, at), cancel))


def failing(code: int) -> Callable[[], object]:
    def fail() -> object:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("at", [0, 7, 40])
def test_a_disk_that_fails(model: Path, memory: HostMemory, at: int) -> None:
    with pytest.raises(StoreFault, match=r"Input/output error.*\.safetensors"):
        load_spoilt(model, failing(errno.EIO), at)
    assert len(load_spoilt(model, failing(errno.EIO), 1000)) == SHARDS * TENSORS


@pytest.mark.parametrize("at", [0, 7, 40])
def test_a_file_that_is_cut_short_while_it_is_read(model: Path, memory: HostMemory, at: int) -> None:
    def cut() -> None:
        for path in model.iterdir():
            os.truncate(path, 9 * KIB)

    with pytest.raises(BadCheckpoint, match="shrank while it was read"):
        load_spoilt(model, cut, at)


def test_names_that_go_away_while_files_are_read(model: Path, memory: HostMemory) -> None:
    assert len(load_spoilt(model, lambda: shutil.rmtree(model), 0)) == SHARDS * TENSORS


def rename_over(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes())
    new.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": os.unlink,
    "another in its place": rename_over,
    "written": lambda path: os.utime(path, (1, 1)),
    "cut short": lambda path: os.truncate(path, 5000),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_after_its_header_was_read(model: Path, change: Callable[[Path], object]) -> None:
    checkpoint = open_checkpoint(model)
    change(model / "1.safetensors")
    with pytest.raises(BadCheckpoint, match="after its header was read"):
        dict(stream_tensors(checkpoint, checkpoint.select(None), Wishes()))


def test_cancelled_in_the_middle(model: Path, memory: HostMemory) -> None:
    cancel = Cancellation()
    with pytest.raises(Cancelled):
        load_spoilt(model, cancel.cancel, 20, cancel)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that comes while Python collects garbage is lost
def test_ctrl_c_at_any_instant_leaves_no_thread_and_no_open_file(model: Path) -> None:
    def load() -> None:
        assert len(dict(tensors_of(model))) == SHARDS * TENSORS

    load()
    gc.collect()  # what an earlier test left
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    with (all_of_it := Instants()):
        load()
    assert all_of_it.locks == []
    for instant in range(1, all_of_it.count, max(1, all_of_it.count // 100)):
        with suppress(KeyboardInterrupt), Instants(stop_at=instant):
            load()
        if more := set(threading.enumerate()) - threads:
            gc.collect()  # Ctrl-C came before their end was begun
        for thread in more:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), instant
        assert set(os.listdir("/proc/self/fd")) == files, instant


class Waiting(ShardFile):
    """As a file that arrives: what is behind the first extent doesn't come."""

    waits = threading.Event()

    def __init__(self, shard: Shard, cancel: Cancellation) -> None:
        super().__init__(shard.path, shard.header.file_bytes, stays_whole=False)
        self._cancel = cancel

    def read(self, block: ByteRange, into: memoryview) -> Way:
        if block.start >= EXTENT_BYTES + 8 * KIB:  # and the header's length
            self.waits.set()
            self._cancel.wait(TIMEOUT_S)
        return super().read(block, into)


@pytest.mark.parametrize("cancelled", [False, True])
def test_reads_that_wait_end_with_the_load(model: Path, memory: HostMemory, cancelled: bool) -> None:
    cancel = Cancellation()
    Waiting.waits.clear()
    tensors = tensors_of(model, Waiting, cancel)
    next(tensors)
    assert Waiting.waits.wait(TIMEOUT_S)
    if cancelled:
        cancel.cancel()
        with pytest.raises(Cancelled):
            list(tensors)
    tensors.close()


@pytest.mark.parametrize("at", [0, 3])
def test_memory_that_runs_out(model: Path, memory: HostMemory, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    lend, lendings = memory.lend, count()

    def scarce(size_bytes: int) -> object:
        if next(lendings) >= at:
            raise MemoryError("no more")
        return lend(size_bytes)

    monkeypatch.setattr(memory, "lend", scarce)
    with pytest.raises(MemoryError, match="no more"):
        dict(tensors_of(model))


@pytest.mark.parametrize("most", [0, 1, 2])
def test_threads_that_run_out(model: Path, memory: HostMemory, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    start, starts = threading.Thread.start, count()

    def scarce(thread: threading.Thread) -> None:
        if next(starts) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    if most:
        assert len(dict(tensors_of(model))) == SHARDS * TENSORS
    else:
        with pytest.raises(MemoryError, match="can't start new thread"):
            dict(tensors_of(model))


def test_a_stream_holds_no_more_than_what_is_ahead(model: Path, memory: HostMemory) -> None:
    most = 0
    for _, tensor in tensors_of(model):
        most = max(most, memory.lent_bytes)
        del tensor
    assert 0 < most <= loading.AHEAD_BYTES + 3 * EXTENT_BYTES
    assert memory.idle_bytes + memory.lent_bytes <= most + EXTENT_BYTES  # lent again and again


def test_several_threads_load_at_once(model: Path, memory: HostMemory) -> None:
    with ThreadPoolExecutor(4) as threads:
        for loaded in threads.map(lambda _: dict(tensors_of(model)), range(8)):
            assert all(tensor.eq(int(name[1:])).all() for name, tensor in loaded.items())
            assert len(loaded) == SHARDS * TENSORS
            loaded.clear()


class CutWhenMapped(ShardFile):
    """A file that its owner has said nobody cuts, and that is cut short between its mapping and its first use."""

    def may_map(self, span: ByteRange) -> bool:
        return True

    def mapped(self, span: ByteRange) -> Memory:
        memory = super().mapped(span)
        os.truncate(self.path, span.start + 1)
        return memory


def test_a_page_of_a_mapping_that_cant_be_read_is_an_error_of_the_load(model: Path, memory: HostMemory) -> None:
    """And not the end of the process, when somebody uses the tensor."""
    with pytest.raises(StoreFault, match="the file can't be read"):
        dict(tensors_of(model, lambda shard, own: CutWhenMapped(shard.path, shard.header.file_bytes, stays_whole=True)))


class Mapped(ShardFile):
    """A file that is in memory."""

    def may_map(self, span: ByteRange) -> bool:
        return True


def test_who_waits_for_a_mapped_piece_does_others_and_ctrl_c_there_ends_the_load(
    model: Path, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    helped = threading.Event()

    def populate(piece: Memory) -> None:
        if threading.current_thread() is threading.main_thread():
            helped.set()
            raise KeyboardInterrupt
        assert helped.wait(TIMEOUT_S), "the piece after this one is left to the thread"

    monkeypatch.setattr(host, "populate", populate)
    with pytest.raises(KeyboardInterrupt):
        dict(tensors_of(model, lambda shard, own: Mapped(shard.path, shard.header.file_bytes, stays_whole=True)))
    assert helped.is_set()
