"""Tensors of a model while it arrives: the right bits, before the last byte is served, from bytes that are fetched once; and what was
handed out too early is told. Over an origin that is a dict and a store on a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

import modelcache
from modelcache.abc.ingest import Route
from modelcache.abc.source import Source
from modelcache.arriving import opening
from modelcache.arriving.file import ArrivingFile
from modelcache.arriving.passing import Passing
from modelcache.config import Config
from modelcache.errors import BadCheckpoint, Cancelled, DigestMismatch, NoSpace, NotFound, OriginUnreachable, SourceChanged
from modelcache.loader import loading
from modelcache.loader.files import Way
from modelcache.loader.memory import Memory
from modelcache.loader.report import LoadReport
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.store.incoming import LocalIncoming
from modelcache.testing.fetching import small_chunks
from modelcache.testing.memory_source import DEADLINE_S, MemorySource, state_sha256
from modelcache.testing.store_fixtures import NO_LIMITS

URI = "s3://models/llama"
WITH_SECRET = "https://who:hunter2@models.example/llama"
CHUNK = 4096
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Tensors = Mapping[str, torch.Tensor]
THREADS = ("arrival", "load", "ensure")


@pytest.fixture(autouse=True)
def chunk_bytes() -> Iterator[int]:
    with small_chunks(CHUNK) as size_bytes:
        yield size_bytes


@contextmanager
def cache_of(root: Path, source: MemorySource, route: Route | None = None) -> Iterator[modelcache.ModelCache]:
    """A cache whose every URI is of this source; nothing of a load is left when the block ends."""

    @contextmanager
    def sources(*asked: object) -> Iterator[list[Source]]:
        yield [source]

    with (
        modelcache.ModelCache(config=Config.load({}, root=root, limits=NO_LIMITS, write_route=route)) as cache,
        patch.object(cache._registry, "sources", sources),
    ):
        yield cache
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREADS)] == []
        assert all(info.leases == () for info in cache.list())
    assert source.open_bodies == 0


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def tensors_of(sizes: Sequence[int], *, seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    random = [torch.randint(-(2**15), 2**15, (size,), dtype=torch.int16, generator=source) for size in sizes]
    return {f"layers.{seed}.{number}": tensor for number, tensor in enumerate(random)}


def shards_of(*shards: Tensors) -> dict[str, bytes]:
    files = {f"model-{number:05d}-of-{len(shards):05d}.safetensors": save(dict(shard)) for number, shard in enumerate(shards, 1)}
    return {"config.json": b"{}", **files}


def check(loaded: Tensors, *shards: Tensors) -> None:
    wanted = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert set(loaded) == set(wanted)
    for name, tensor in wanted.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(loaded[name]) == raw(tensor)


A, B = tensors_of([10 * CHUNK, 5, 3 * CHUNK], seed=1), tensors_of([7 * CHUNK, 0, 9], seed=2)


@contextmanager
def in_background(do: Callable[[], dict[str, torch.Tensor]]) -> Iterator[Future[dict[str, torch.Tensor]]]:
    with ThreadPoolExecutor(1, thread_name_prefix="caller") as thread:
        yield thread.submit(do)


# -- the same tensors, from bytes that come once ----------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    shards=st.lists(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 12 * CHUNK)), max_size=5), min_size=1, max_size=4),
    resumable=st.booleans(),
    stated=st.booleans(),
    verified_only=st.booleans(),
    one_by_one=st.booleans(),
    piece_bytes=st.integers(700, 3 * CHUNK),
    route=st.sampled_from(Route),
)
def test_bits_are_the_same_and_every_byte_comes_once(
    shards: list[list[int]], resumable: bool, stated: bool, verified_only: bool, one_by_one: bool, piece_bytes: int, route: Route
) -> None:
    tensors = [tensors_of([*sizes, seed + 1], seed=seed) for seed, sizes in enumerate(shards)]  # no two files alike
    files = shards_of(*tensors)
    source = MemorySource(files, resumable=resumable, piece_bytes=piece_bytes)
    if stated:
        source.state = state_sha256
    with TemporaryDirectory() as directory, cache_of(Path(directory) / "root", source, route) as cache:
        if one_by_one:
            check(dict(modelcache.stream(URI, cache=cache, verified_only=verified_only)), *tensors)
        else:
            check(modelcache.load(URI, cache=cache, verified_only=verified_only), *tensors)
        assert source.books.bytes == {path: len(data) for path, data in files.items()}
        snapshot = cache.ensure(URI).path
        assert {path: (snapshot / path).read_bytes() for path in files} == files
        report = LoadReport()
        check(modelcache.load(URI, cache=cache, report=report), *tensors)
        assert (source.books.listings, report.verified_s) == (1, 0.0)
        assert source.books.bytes == {path: len(data) for path, data in files.items()}


def test_what_the_store_has_is_not_fetched_and_comes_first(tmp_path: Path) -> None:
    files = shards_of(A, B)
    source = MemorySource(files, state=state_sha256)
    with cache_of(tmp_path / "root", source) as cache:
        source.remove(TWO)
        cache.ensure("s3://models/older")
        source.put(TWO, files[TWO])
        source.books.bytes.clear()
        gate = source.gate(TWO, len(files[TWO]) - 1)
        tensors = modelcache.stream(URI, cache=cache)
        first = dict(next(tensors) for _ in A)
        check(first, A)
        gate.open()
        check(dict(tensors), B)
        assert source.books.bytes == {TWO: len(files[TWO])}


@pytest.mark.parametrize("verified_only", [False, True])
def test_a_tensor_comes_before_the_last_byte_is_served(tmp_path: Path, verified_only: bool) -> None:
    source = MemorySource(shards_of(A, B))
    gate = source.gate(TWO, CHUNK * 5)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache, verified_only=verified_only)
        check(dict(next(tensors) for _ in A), A)
        assert cache.list() == []  # nothing is published
        gate.open()
        check(dict(tensors), B)
        assert len(cache.list()) == 1


def test_what_is_asked_for_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is otherwise fetched last: no request goes past chunk 30 of another."""
    shards = [tensors_of([20 * CHUNK, 20 * CHUNK], seed=seed) for seed in range(6)]
    source = MemorySource(shards_of(*shards))
    others = [f"model-0000{number}-of-00006.safetensors" for number in range(1, 6)]
    until_asked = [source.gate(name, CHUNK) for name in others]
    ends = [source.gate(name, 30 * CHUNK) for name in others]
    want = Passing.want

    def asked(passing: Passing, span: ByteRange, *, now: bool = False) -> None:
        want(passing, span, now=now)
        if span.start >= 20 * CHUNK:  # not a header
            for gate in until_asked:
                gate.open()

    monkeypatch.setattr(Passing, "want", asked)
    with cache_of(tmp_path / "root", source) as cache:
        [(name, tensor)] = [next(modelcache.stream(URI, cache=cache, names=["layers.5.1"]))]
        assert raw(tensor) == raw(shards[5][name])
        assert not any(gate._is_open for gate in ends)


def test_a_model_without_tensors_or_with_a_bad_header_is_refused_as_one_that_is_here(tmp_path: Path) -> None:
    source = MemorySource({"config.json": b"{}"})
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(NotFound, match="no safetensors"):
            modelcache.load(URI, cache=cache)
        for name, data in (("model.safetensors", b"\x08"), ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}')):
            source.put(name, data)
            with pytest.raises(BadCheckpoint):
                modelcache.load(f"{URI}-{len(name)}", cache=cache)


def test_chunks_are_received_where_their_tensors_lie_and_hashed_before_anybody_may_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which they come: each tensor is overwritten as soon as it is handed out, and what is kept is what came."""
    sizes = [6 * CHUNK] * 3
    shards = [tensors_of(sizes, seed=seed) for seed in (1, 2)]
    rooms: list[ByteRange] = []
    room = Passing.room

    def noted(passing: Passing, at: ByteRange) -> memoryview | None:
        found = room(passing, at)
        if found is not None:
            rooms.append(at)
        return found

    monkeypatch.setattr(Passing, "room", noted)
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", 8 * CHUNK)
    source = MemorySource(shards_of(*shards), state=state_sha256)
    gates = [source.gate(TWO, chunk * CHUNK) for chunk in range(1, 18)]
    expect = Passing.expect

    def expected(passing: Passing, span: ByteRange, memory: Memory) -> None:
        expect(passing, span, memory)
        for gate in gates if passing.incoming.path == TWO else ():
            gate.open()

    monkeypatch.setattr(Passing, "expect", expected)
    with cache_of(tmp_path / "root", source) as cache:
        for name, tensor in modelcache.stream(URI, cache=cache):
            assert raw(tensor) == raw({**shards[0], **shards[1]}[name])
            tensor.fill_(-1)
        assert len(rooms) >= len(shards[1])
        check(modelcache.load(URI, cache=cache), *shards)
        assert source.books.bytes == {path: len(data) for path, data in shards_of(*shards).items()}


def test_a_chunk_that_is_hashed_later_is_hashed_as_it_came(tmp_path: Path) -> None:
    """The second half of a file is here, handed out and overwritten before its first half arrives."""
    shard = tensors_of([8 * CHUNK, 8 * CHUNK], seed=1)
    source = MemorySource({"model.safetensors": save(dict(shard))}, state=state_sha256)
    gate = source.gate("model.safetensors", 2 * CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache, names=["layers.1.1", "layers.1.0"], order="given")
        name, tensor = next(tensors)
        assert (name, raw(tensor)) == ("layers.1.1", raw(shard["layers.1.1"]))
        tensor.fill_(-1)
        gate.open()
        check(dict(tensors), {"layers.1.0": shard["layers.1.0"]})
        check(modelcache.load(URI, cache=cache), shard)


def test_a_load_has_all_files_come_at_the_same_time_and_a_stream_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [tensors_of([4 * CHUNK], seed=seed) for seed in range(4)]
    expected: set[str] = set()
    all_are = threading.Event()
    expect = Passing.expect

    def noted(passing: Passing, span: ByteRange, memory: Memory) -> None:
        expect(passing, span, memory)
        expected.add(passing.incoming.path)
        if len(expected) == len(shards):
            all_are.set()

    monkeypatch.setattr(Passing, "expect", noted)
    monkeypatch.setattr(loading, "AHEAD_BYTES", 1)
    source = MemorySource(shards_of(*shards))
    with cache_of(tmp_path / "one", source) as cache:
        tensors = modelcache.stream(URI, cache=cache)
        first = dict([next(tensors)])
        assert len(expected) == 1
        check({**first, **dict(tensors)}, *shards)
    expected.clear()
    all_are.clear()
    gates = [source.gate(f"model-0000{number}-of-00004.safetensors", 2 * CHUNK) for number in range(1, 5)]
    with cache_of(tmp_path / "two", source) as cache, in_background(lambda: modelcache.load(URI, cache=cache)) as loaded:
        assert all_are.wait(DEADLINE_S)
        for gate in gates:
            gate.open()
        check(loaded.result(DEADLINE_S), *shards)


# -- wrong bytes ----------------------------------------------------------------------------------------------------------


def test_tensors_of_bytes_that_stay_wrong_are_handed_out_and_the_call_fails(tmp_path: Path) -> None:
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(TWO, 5 * CHUNK, times=None)
    gate = source.gate(TWO, 6 * CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        tensors = modelcache.stream(URI, cache=cache)
        first = dict(next(tensors) for _ in A)
        gate.open()
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            dict(tensors)
        check(first, A)
        assert cache.list() == []
        with pytest.raises(DigestMismatch):
            modelcache.load(URI, cache=cache)
        assert cache.list() == []


def test_verified_only_hands_out_nothing_of_a_file_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last byte. That byte is let through when the load waits for the verdict, or when a tensor of the file came out without."""
    second = tensors_of([7 * CHUNK, 3 * CHUNK], seed=2)
    files = shards_of(A, second)
    source = MemorySource(files, state=state_sha256, piece_bytes=CHUNK)
    source.spoil(TWO, len(files[TWO]) - 1, times=None)
    gate = source.gate(TWO, len(files[TWO]) - 1)
    got: list[str] = []
    waited: list[bool] = []
    wait_complete = Passing.wait_complete

    def waiting(passing: Passing, cancel: Cancellation) -> None:
        if passing.incoming.path == TWO:
            gate.await_readers()
            waited.append(set(got) <= set(A))
            gate.open()
        wait_complete(passing, cancel)

    def take(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, _ in tensors:
            got.append(name)
            if name in second:
                gate.open()

    monkeypatch.setattr(Passing, "wait_complete", waiting)
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            take(modelcache.stream(URI, cache=cache, verified_only=True))
        assert set(got) <= set(A)
        assert waited
        assert all(waited)


@pytest.mark.parametrize("route", Route)
def test_a_tensor_of_the_pass_that_was_wrong_is_told_of_when_the_second_pass_was_right(tmp_path: Path, route: Route) -> None:
    files = shards_of(A, B)
    source = MemorySource(files, state=state_sha256)
    source.spoil(ONE, 5 * CHUNK)
    gate = source.gate(ONE, len(files[ONE]) - 1)
    with cache_of(tmp_path / "root", source, route) as cache:
        tensors = modelcache.stream(WITH_SECRET, cache=cache)
        with patch.object(opening, "ARRIVING_EXTENT_BYTES", CHUNK):
            name, tensor = next(tensors)
        assert raw(tensor) != raw(A[name])
        gate.open()
        with pytest.raises(DigestMismatch, match=f"of `{ONE}` were handed out while they arrived, and proved wrong") as caught:
            dict(tensors)
        assert caught.value.address == "https://models.example/llama"
        assert len(cache.list()) == 1  # which is right
        check(modelcache.load(WITH_SECRET, cache=cache), A, B)


def test_memory_that_was_meant_for_bytes_of_a_file_comes_back_when_they_are_read_of_the_verified_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource(shards_of(A, B))
    gate, verified = source.gate(TWO, 13 * CHUNK), threading.Event()
    completed, read = Passing.completed, ArrivingFile.read

    def tell(passing: Passing) -> None:
        completed(passing)
        if passing.incoming.path == TWO:
            verified.set()

    def late(file: ArrivingFile, block: ByteRange, into: memoryview) -> Way:
        if file.path.name == TWO and threading.current_thread().name.startswith("load"):  # and not to know its header
            gate.open()
            assert verified.wait(DEADLINE_S)
        return read(file, block, into)

    monkeypatch.setattr(Passing, "completed", tell)
    monkeypatch.setattr(ArrivingFile, "read", late)
    monkeypatch.setattr(opening, "ARRIVING_EXTENT_BYTES", CHUNK)
    with cache_of(tmp_path / "root", source) as cache:
        before_bytes = loading.memory.lent_bytes
        for name, tensor in modelcache.stream(URI, cache=cache, may_map=False):
            assert raw(tensor) == raw({**A, **B}[name])
            del tensor
            if name == "layers.2.2":  # of the last page: what was meant for all others is back
                assert loading.memory.lent_bytes - before_bytes <= CHUNK


def test_what_was_taken_just_before_the_second_pass_begins_is_not_taken_for_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a reader's last look at the memory and its look at the pass."""
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(ONE, 12 * CHUNK)
    close, restart, restarted = Passing._close, LocalIncoming.restart, Passing.restarted
    taken, again = threading.Event(), threading.Event()

    def restart_late(file: LocalIncoming) -> None:
        assert taken.wait(DEADLINE_S)
        restart(file)

    def tell(passing: Passing) -> None:
        restarted(passing)
        again.set()

    def close_early(passing: Passing, place: Any, block: ByteRange, *, settle: bool) -> Sequence[ByteRange]:
        gaps = close(passing, place, block, settle=settle)
        if passing.incoming.path == ONE and block.stop > 12 * CHUNK:
            taken.set()
            assert again.wait(DEADLINE_S)
        return gaps

    monkeypatch.setattr(LocalIncoming, "restart", restart_late)
    monkeypatch.setattr(Passing, "restarted", tell)
    monkeypatch.setattr(Passing, "_close", close_early)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache), A, B)


def test_a_second_pass_is_no_error_where_nothing_wrong_was_handed_out(tmp_path: Path) -> None:
    """What was, was right already in the first pass; or it waited for the verdict."""
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(ONE, len(save(A)) - 1)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache, names=["layers.1.0"]), {"layers.1.0": A["layers.1.0"]})
    source.spoil(TWO, 5 * CHUNK)
    with cache_of(tmp_path / "another", source) as cache:
        check(modelcache.load(URI, cache=cache, verified_only=True), A, B)


@pytest.mark.parametrize("offset", [0, 1, 9])
def test_a_header_that_comes_wrong_once_is_read_again_when_it_is_verified(tmp_path: Path, offset: int) -> None:
    source = MemorySource(shards_of(A, B), state=state_sha256)
    source.spoil(TWO, offset)
    with cache_of(tmp_path / "root", source) as cache:
        check(modelcache.load(URI, cache=cache), A, B)


# -- an origin that changes or fails ----------------------------------------------------------------------------------------


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


# -- ends in the middle -----------------------------------------------------------------------------------------------------


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


# -- several at once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caches", [1, 3])
def test_several_who_load_it_at_the_same_time_share_one_fetch(tmp_path: Path, caches: int) -> None:
    """In one process, or as several that have the store: those have what another one brings when it is published."""
    files = shards_of(A, B)
    source = MemorySource(files)
    gate = source.gate(TWO, CHUNK * 5)
    with ThreadPoolExecutor(6, thread_name_prefix="caller") as callers:
        opened = [cache_of(tmp_path / "root", source) for _ in range(caches)]
        found = [each.__enter__() for each in opened]
        loads = [callers.submit(modelcache.load, URI, cache=found[number % caches], verified_only=number > 3) for number in range(6)]
        gate.await_readers()
        gate.open()
        for load in loads:
            check(load.result(DEADLINE_S), A, B)
        assert source.books.bytes == {path: len(data) for path, data in files.items()}
        for each in opened:
            each.__exit__(None, None, None)


def test_who_comes_to_a_pull_that_is_under_way_takes_its_bytes_as_they_arrive(tmp_path: Path) -> None:
    files = shards_of(A, B)
    source = MemorySource(files)
    gate = source.gate(TWO, CHUNK * 5)
    with cache_of(tmp_path / "root", source) as cache, ThreadPoolExecutor(1, thread_name_prefix="caller") as callers:
        pull = callers.submit(cache.ensure, URI)
        gate.await_readers()
        tensors = modelcache.stream(URI, cache=cache)
        check(dict(next(tensors) for _ in A), A)
        assert not pull.done()
        gate.open()
        check(dict(tensors), B)
        pull.result(DEADLINE_S)
        assert source.books.bytes == {path: len(data) for path, data in files.items()}
