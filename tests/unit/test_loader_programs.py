"""Programs that load: interrupted, forked, whose file is cut short afterwards, and who may only read what root wrote."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelcache.store.layout import FIXED_MTIME_S
from modelcache.units import MIB
from tests.unit.two_shards import save_model

TIMEOUT_S = 100


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


def test_ctrl_c_ends_reads_and_threads(tmp_path: Path) -> None:
    save_model(tmp_path)
    with program(INTERRUPTED, str(tmp_path)) as started:
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


FORKED_WHILE_BYTES_ARRIVE = """
import ctypes, os, queue, signal, sys, threading
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch
import torch
from safetensors.torch import save
import modelcache
from modelcache.arriving import opening, passing
from modelcache.config import Config
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.store_fixtures import NO_LIMITS

CHUNK = 4096
files = {f"{number}.safetensors": save({f"t{number}": torch.full((9 * CHUNK + 5,), number, dtype=torch.uint8)}) for number in (1, 2)}
source = MemorySource(files)
copying, go = threading.Event(), threading.Event()

def slowly(*what):
    copying.set()
    go.wait(60)
    return ctypes.memmove(*what)

@contextmanager
def sources(*asked):
    yield [source]

config = Config.load({}, root=sys.argv[1], limits=NO_LIMITS)
with small_chunks(CHUNK), modelcache.ModelCache(config=config) as cache, patch.object(cache._registry, "sources", sources):
    opening.ARRIVING_EXTENT_BYTES = CHUNK
    gate = source.gate("2.safetensors", len(files["2.safetensors"]) - 1)
    awaited, expect = queue.SimpleQueue(), passing.Passing.expect

    def expecting(self, span, memory):
        expect(self, span, memory)
        awaited.put((self.incoming.path, span.stop))

    passing.Passing.expect = expecting
    passing.Passing.room = lambda self, at: None  # nothing is received in its place: all is copied
    tensors = modelcache.stream("s3://models/two", cache=cache)
    next(tensors)
    while awaited.get(timeout=60) != ("2.safetensors", len(files["2.safetensors"])):
        pass  # else it may come before anybody wants it in memory
    passing.ctypes = SimpleNamespace(memmove=slowly, addressof=ctypes.addressof)
    gate.open()
    assert copying.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        tensors.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "who let go of the load in the child waited for its parent's threads"
    go.set()
    assert [(name, bool(tensor.eq(2).all())) for name, tensor in tensors] == [("t2", True)]
print("forked")
"""


def test_a_fork_that_lets_go_of_a_load_whose_bytes_arrive_waits_for_none_of_its_threads(tmp_path: Path) -> None:
    assert said_by(FORKED_WHILE_BYTES_ARRIVE, str(tmp_path)) == "forked\n"


LEFT_OPEN = """
import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch
import torch
from safetensors.torch import save
import modelcache
from modelcache.arriving import opening
from modelcache.config import Config
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.store_fixtures import NO_LIMITS

CHUNK = 4096
files = {f"{number}.safetensors": save({f"t{number}": torch.zeros(9 * CHUNK + 5, dtype=torch.uint8)}) for number in (1, 2)}
source = MemorySource(files)
source.gate("2.safetensors", len(files["2.safetensors"]) - 1)

@contextmanager
def sources(*asked):
    yield [source]

held = ExitStack()
held.enter_context(small_chunks(CHUNK))
cache = modelcache.ModelCache(config=Config.load({}, root=sys.argv[1], limits=NO_LIMITS))
held.enter_context(patch.object(cache._registry, "sources", sources))
opening.ARRIVING_EXTENT_BYTES = CHUNK
tensors = modelcache.stream("s3://models/two", cache=cache)
print(next(tensors)[0])
"""


def test_a_program_may_end_while_it_loads_what_does_not_come(tmp_path: Path) -> None:
    assert said_by(LEFT_OPEN, str(tmp_path)) == "t1\n"


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
