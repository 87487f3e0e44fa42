"""A load of a model that arrives ends: its origin changes or fails, who asked for it stops, the disk is full."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from safetensors.torch import save

import modelcache
from modelcache.errors import Cancelled, DigestMismatch, NoSpace, OriginUnreachable, SourceChanged
from modelcache.patience import Cancellation
from modelcache.store.incoming import LocalIncoming
from modelcache.testing.memory_source import DEADLINE_S, MemorySource
from tests.unit.arriving_model import (
    CHUNK,
    ONE,
    THREADS,
    TWO,
    URI,
    A,
    B,
    cache_of,
    check,
    in_background,
    shards_of,
    tensors_of,
)
from tests.unit.instants import Instants

pytestmark = pytest.mark.usefixtures("chunk_bytes")


# -- an origin that changes or fails ------------------------------------------------------------------------------------


def test_a_model_that_changes_under_the_load_is_never_mixed(tmp_path: Path) -> None:
    source = MemorySource(shards_of(A, B))
    gate = source.gate(TWO, CHUNK * 5)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache)
        check(dict(next(tensors) for _ in A), A)
        for name, data in shards_of(tensors_of([10 * CHUNK, 5, 3 * CHUNK], seed=1), tensors_of([7 * CHUNK, 0, 9], seed=2)).items():
            source.put(name, data if name != ONE else data[:-2] + b"!!")
        gate.open()
        with pytest.raises(DigestMismatch, match="handed out"):
            dict(tensors)
        assert len(cache.list()) == 1


def test_a_model_that_changes_its_size_under_the_load_is_an_error(tmp_path: Path) -> None:
    source = MemorySource(shards_of(A, B))
    gate = source.gate(ONE, CHUNK * 5)
    with cache_of(tmp_path / "root", source) as cache, in_background(lambda: modelcache.load(URI, cache=cache)) as loading:
        gate.await_readers()
        source.put(ONE, save(tensors_of([CHUNK], seed=1)))
        gate.open()
        with pytest.raises(SourceChanged, match=f"`{ONE}` changed while it was loaded"):
            loading.result(DEADLINE_S)


def test_an_error_of_the_origin_ends_the_load_with_it_and_what_came_is_kept(tmp_path: Path) -> None:
    files = shards_of(A, B)
    source = MemorySource(files)
    source.cut(TWO, 5 * CHUNK, error=OriginUnreachable("the wire is cut", address=URI))
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(OriginUnreachable, match="the wire is cut"):
            modelcache.load(URI, cache=cache)
        assert cache.list() == []
        check(modelcache.load(URI, cache=cache), A, B)
        assert sum(source.books.bytes.values()) < sum(map(len, files.values())) * 3 // 2


# -- ends in the middle -------------------------------------------------------------------------------------------------


def test_who_stops_iterating_ends_the_fetch_and_what_came_is_kept(tmp_path: Path) -> None:
    files = shards_of(A, B)
    source = MemorySource(files)
    gate = source.gate(TWO, CHUNK * 5)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache)
        first = dict(next(tensors) for _ in A)
        gate.await_readers()
        tensors.close()
        check(first, A)  # what was given back of the file behind them took nothing from them
        assert (cache.list(), source.open_bodies) == ([], 0)
        source.books.bytes.clear()
        gate.open()
        check(modelcache.load(URI, cache=cache), A, B)
        assert source.books.bytes[ONE] == 0


@pytest.mark.parametrize("verified_only", [False, True])
def test_a_cancelled_load_ends_while_it_waits(tmp_path: Path, verified_only: bool) -> None:
    source = MemorySource(shards_of(A, B))
    gate, cancel = source.gate(ONE, CHUNK * 5), Cancellation()
    with cache_of(tmp_path / "root", source) as cache:
        with in_background(lambda: modelcache.load(URI, cache=cache, cancel=cancel, verified_only=verified_only)) as loading:
            gate.await_readers()
            cancel.cancel()
            with pytest.raises(Cancelled):
                loading.result(DEADLINE_S)
        assert cache.list() == []


def test_ctrl_c_can_leave_no_lock_taken(tmp_path: Path) -> None:
    with cache_of(tmp_path / "root", MemorySource(shards_of(A, B))) as cache, (instants := Instants()):
        modelcache.load(URI, cache=cache)
    assert instants.locks == []
    assert instants.count > 0


@pytest.mark.parametrize("runs", [True, False])
def test_ctrl_c_while_the_thread_of_a_load_begins_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    source = MemorySource(shards_of(A, B))
    gate, start = source.gate(ONE), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != "arrival":
            return start(thread)
        vars(thread)["_started"].wait = lambda *timeout: None  # whoever starts a thread waits until it runs
        start(thread)
        if runs:
            gate.await_readers()
        raise KeyboardInterrupt

    with cache_of(tmp_path / "root", source) as cache:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                modelcache.load(URI, cache=cache)
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)] == []
        assert cache.list() == []


def test_a_disk_that_fills_up_ends_the_load_with_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalIncoming.write

    def full(file: LocalIncoming, offset: int, *rest: object) -> None:
        if file.path == TWO and offset:
            raise NoSpace("the disk is full", needed_bytes=1, available_bytes=0, held_bytes=0, evictable_bytes=0)
        write(file, offset, *rest)  # type: ignore[arg-type]

    source = MemorySource(shards_of(A, B))
    with cache_of(tmp_path / "root", source) as cache:
        with monkeypatch.context() as patched:
            patched.setattr(LocalIncoming, "write", full)
            with pytest.raises(NoSpace, match="the disk is full"):
                modelcache.load(URI, cache=cache)
        check(modelcache.load(URI, cache=cache), A, B)
