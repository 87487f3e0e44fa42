"""Tensors of a model while it arrives: the right bits, before the last byte is served, from bytes that are fetched once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from safetensors.torch import save

import modelcache
from modelcache.abc.ingest import Route
from modelcache.arriving import opening
from modelcache.arriving.passing import Passing
from modelcache.errors import BadCheckpoint, NotFound
from modelcache.fetch import plan
from modelcache.loader import loading
from modelcache.loader.memory import Memory
from modelcache.loader.report import LoadReport
from modelcache.ranges import ByteRange
from modelcache.testing.memory_source import DEADLINE_S, MemorySource, state_sha256
from tests.unit.arriving_model import (
    CHUNK,
    TWO,
    URI,
    A,
    B,
    cache_of,
    check,
    in_background,
    raw,
    shards_of,
    tensors_of,
)

pytestmark = pytest.mark.usefixtures("chunk_bytes")


# -- the same tensors, from bytes that come once ------------------------------------------------------------------------


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


def test_a_chunk_that_is_hashed_later_is_hashed_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of a file is here, handed out and overwritten before its first half arrives."""
    monkeypatch.setattr(plan, "SPAN_CHUNKS", 1)  # no request for the first half has anything of the second
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


# -- several at once ----------------------------------------------------------------------------------------------------


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
