"""What goes wrong while tensors are read is an error, and leaves nothing behind: no thread, no open file, no memory."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelcache.errors import BadCheckpoint, Cancelled, StoreFault
from modelcache.loader import loading, plan
from modelcache.loader.checkpoint import Shard, open_checkpoint
from modelcache.loader.files import Opener, Way
from modelcache.loader.loading import Wishes, stream_tensors
from modelcache.loader.memory import HostMemory, Memory
from modelcache.loader.shard_file import ShardFile, open_shard
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.store.layout import FIXED_MTIME_S
from modelcache.units import GIB, KIB, MIB

SHARDS = 2
TENSORS = 12
TENSOR_BYTES = 32 * KIB
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


def save_model(directory: Path) -> None:
    for shard in range(SHARDS):
        numbers = range(shard * TENSORS, (shard + 1) * TENSORS)
        tensors = {f"t{number:02}": torch.full((TENSOR_BYTES,), number, dtype=torch.uint8) for number in numbers}
        save_file(tensors, directory / f"{shard}.safetensors")


@pytest.fixture
def memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMemory]:
    """Of these loads alone. At the end it is all back, and there are as many threads and open files as before."""
    found = HostMemory(idle_limit_bytes=GIB)
    monkeypatch.setattr(loading, "memory", found)
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


# -- programs of their own ------------------------------------------------------------------------------------------


@contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Killed when the block ends before it does."""
    argv = [sys.executable, "-W", "error", "-c", text, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def ended(started: subprocess.Popen[str]) -> str:
    out, err = started.communicate(timeout=TIMEOUT_S)
    assert started.returncode == 0, err
    return out


def said_by(text: str, *arguments: str) -> str:
    with program(text, *arguments) as started:
        return ended(started)


INTERRUPTED = """
import os, sys, threading
from pathlib import Path
from itertools import count
from modelcache.loader import loading, plan
from modelcache.loader.checkpoint import open_checkpoint
from modelcache.loader.reader import THREADS
from modelcache.loader.shard_file import ShardFile

plan.BLOCK_BYTES = 1 << 14
reads = count(1)

class Waiting(ShardFile):
    def __init__(self, shard, cancel):
        super().__init__(shard.path, shard.header.file_bytes, stays_whole=False)
        self.cancel = cancel
    def read(self, block, into):
        if next(reads) == THREADS:  # all threads run
            print("reading", flush=True)
        self.cancel.wait(100)

checkpoint = open_checkpoint(Path(sys.argv[1]))
before = len(os.listdir("/proc/self/fd"))
try:
    dict(loading.stream_tensors(checkpoint, checkpoint.select(None), loading.Wishes(), open_file=Waiting))
except KeyboardInterrupt:
    pass
assert threading.active_count() == 1, threading.enumerate()
assert len(os.listdir("/proc/self/fd")) == before
assert loading.memory.lent_bytes == 0
print("clean")
"""


def test_ctrl_c_ends_reads_and_threads(model: Path) -> None:
    with program(INTERRUPTED, str(model)) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "reading\n"
        started.send_signal(signal.SIGINT)
        assert ended(started) == "clean\n"


FORKED = """
import os, sys, threading
import modelcache
from modelcache.loader import loading

loading.AHEAD_BYTES = 1 << 16
begun = modelcache.stream(sys.argv[1])
next(begun)
stop = threading.Event()
def load_on():
    while not stop.is_set():
        modelcache.load(sys.argv[1])
thread = threading.Thread(target=load_on)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        try:
            loaded = modelcache.load(sys.argv[1])
            assert all(bool(tensor.eq(int(name[1:])).all()) for name, tensor in loaded.items()), loaded
            del loaded
            assert loading.memory.idle_bytes > 0, "memory is lent again in the child, too"
            try:
                list(begun)
            except RuntimeError as error:
                assert "a load goes on in the process that began it" in str(error), error
            else:
                raise AssertionError("the parent's load went on in its child")
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
assert len(list(begun)) > 0
print("forked")
"""


def test_loads_work_in_both_processes_after_a_fork(tmp_path: Path) -> None:
    save_model(tmp_path)
    assert said_by(FORKED, str(tmp_path)) == "forked\n"


CUT_UNDER_TENSORS = """
import os, sys
import modelcache
path = sys.argv[1]
open(path, "rb").read()
loaded = modelcache.load(path)
os.truncate(path, 100)
assert all(float(tensor.min()) == float(tensor.max()) for tensor in loaded.values())
print("whole")
"""


def test_tensors_of_a_file_that_is_cut_short_afterwards_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"t{number}": torch.full((MIB,), float(number)) for number in range(3)}, path)
    assert said_by(CUT_UNDER_TENSORS, str(path)) == "whole\n"


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


AS_ROOT_THEN_NOBODY = """
import os, sys
import modelcache.loading, modelcache.loader.loading
from modelcache.loader.report import LoadReport
for uid in (0, 65534):
    if uid:
        os.setgroups([]); os.setgid(uid); os.setuid(uid)
    for directory in sys.argv[1:]:
        for _ in range(20):  # another process may drive pages out meanwhile
            open(os.path.join(directory, "model.safetensors"), "rb").read()
            report = LoadReport()
            loaded = modelcache.load(directory, report=report)
            assert sorted(loaded) == ["t0", "t1", "t2", "t3"]
            assert all(float(each.min()) == float(each.max()) == float(name[1]) for name, each in loaded.items())
            if set(report.read_bytes) == {"mapped"} or directory.endswith("other"):
                break
        print(*sorted(report.read_bytes))
"""


def tells_what_is_in_memory(path: Path) -> bool:
    """Whether this file system can be asked for a byte without waiting for the disk, by anybody (RWF_NOWAIT); tmpfs can't."""
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
    return True


@pytest.mark.root
def test_root_and_who_may_only_read_roots_files() -> None:
    """cachestat tells the latter nothing about such files (EPERM). A published file that is in memory is mapped for both."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        published, other = Path(directory, "published"), Path(directory, "other")
        for place in (published, other):
            place.mkdir()
            save_file({f"t{number}": torch.full((MIB,), float(number)) for number in range(4)}, place / "model.safetensors")
            (place / "model.safetensors").chmod(0o444)
        os.utime(published / "model.safetensors", (FIXED_MTIME_S, FIXED_MTIME_S))
        is_told = tells_what_is_in_memory(published / "model.safetensors")
        said = said_by(AS_ROOT_THEN_NOBODY, str(published), str(other)).splitlines()
    roots, roots_other, nobodys, nobodys_other = said
    assert nobodys == ("mapped" if is_told else "buffered")
    assert roots in ({"mapped"} if is_told else {"mapped", "buffered"})
    assert "mapped" not in roots_other + nobodys_other
