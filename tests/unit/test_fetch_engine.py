"""The engine over a dict: every byte once, in order and in bounded memory, by threads that come and go."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import modelcache.fetch.engine
from modelcache.abc.source import RemoteFile
from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.errors import Cancelled
from modelcache.fetch.progress import Phase
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, counted_buffers, finish, request_for, running_engine
from modelcache.testing.memory_ingest import MemoryIncoming
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0


@st.composite
def models(draw: st.DrawFn) -> dict[str, bytes]:
    sizes = draw(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 30 * CHUNK)), min_size=1, max_size=6))
    ends = draw(st.lists(st.sampled_from([".json", ".safetensors"]), min_size=len(sizes), max_size=len(sizes)))
    return {f"file-{at}{end}": content(size, seed=at) for at, (size, end) in enumerate(zip(sizes, ends, strict=True))}


@settings(max_examples=60, deadline=None)
@given(
    files=models(),
    resumable=st.booleans(),
    stated=st.booleans(),
    requests=st.integers(1, 6),
    spare=st.integers(0, 6),
    piece_bytes=st.integers(700, 3 * CHUNK),
)
def test_every_byte_comes_once_and_every_file_is_right(
    files: dict[str, bytes], resumable: bool, stated: bool, requests: int, spare: int, piece_bytes: int
) -> None:
    store = MemoryStore()
    source = MemorySource(files, resumable=resumable, piece_bytes=piece_bytes)
    if stated:
        source.state = state_sha256
    with running_engine(requests, spare_buffers=spare) as engine, counted_buffers() as most_buffers:
        request = request_for(store, source)
        compared = {at: request.remote[at].digests for at, file in enumerate(request.ingest.files) if file.sha256 is None}
        fetch = engine.start(request)
        finish(fetch)
        seen = fetch.look(Phase.DONE)
        assert engine._fetches == []
    check_filled(store, request, files)
    assert source.books.bytes == {path: len(data) for path, data in files.items() if data}
    assert source.open_bodies == 0
    assert most_buffers() <= requests + spare
    total = sum(map(len, files.values()))
    assert (seen.bytes_total, seen.bytes_done, seen.bytes_fetched, seen.bytes_reused) == (total, total, total, 0)
    assert (seen.files_done, seen.files_total) == (len(files), len(files))
    assert fetch.compared == compared


def test_bytes_count_as_they_arrive_and_no_more_when_their_chunk_breaks_off() -> None:
    files = {"a": content(3 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files, piece_bytes=100)
    gate = source.gate("a", CHUNK + 700)
    with running_engine(1) as engine:
        fetch = engine.start(request_for(store, source))
        gate.await_readers()
        arrived = fetch.look()
        fetch.cancel()
        with pytest.raises(Cancelled):
            finish(fetch)
        ended = fetch.look()
    assert (arrived.bytes_done, arrived.bytes_fetched) == (CHUNK + 700, CHUNK + 700)
    assert (ended.bytes_done, ended.bytes_fetched) == (CHUNK, CHUNK + 700)


def test_what_is_here_is_not_fetched() -> None:
    files = {"a": content(5 * CHUNK, 1), "b": content(5 * CHUNK, 2)}
    store = MemoryStore()
    with running_engine() as engine:
        finish(engine.start(request_for(store, MemorySource({"x": files["a"]}, state=state_sha256), "other")))
        source = MemorySource(files, state=state_sha256)
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        assert source.books.bytes == {"b": 5 * CHUNK}
        seen = fetch.look(Phase.DONE)
        assert (seen.bytes_reused, seen.bytes_fetched, seen.bytes_done) == (5 * CHUNK, 5 * CHUNK, 10 * CHUNK)
        assert seen.files_done == 2
        request = request_for(store, source, "again")
        finish(engine.start(request))
        check_filled(store, request, files)
        assert engine._fetches == []
    assert sum(source.books.bytes.values()) == 5 * CHUNK


def test_small_files_are_made_durable_together_and_before_they_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number:04}": content(40 + number % 7, number) for number in range(600)}
    store, source = MemoryStore(), MemorySource(files)
    request = request_for(store, source)
    flushed: list[int] = []

    def flush(group: list[object]) -> None:
        assert all(incoming.sha256 is None for incoming in request.ingest.files if incoming in group)
        flushed.append(len(group))

    monkeypatch.setattr(request.ingest, "flush", flush)
    with running_engine(3) as engine:
        finish(engine.start(request))
    check_filled(store, request, files)
    assert sum(flushed) == 600
    assert len(flushed) <= 600 / 256 + 3  # in full batches, and what three workers had begun when one was full
    assert max(flushed) <= 256 + 3


def test_small_files_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config must be readable, and be linked by others, long before the weights have come."""
    files = {"a-weights": content(40 * CHUNK), "config.json": b"{}", "empty": b"", "tokenizer.json": b"[]"}
    store, source = MemoryStore(), MemorySource(files)
    gate = source.gate("a-weights")
    request = request_for(store, source)
    done: dict[str, threading.Event] = {path: threading.Event() for path in files}
    complete = MemoryIncoming.complete

    def told(incoming: MemoryIncoming, sha256: Digest, table: ChunkTable) -> None:
        complete(incoming, sha256, table)
        done[incoming.path].set()

    monkeypatch.setattr(MemoryIncoming, "complete", told)
    with running_engine(2) as engine:
        fetch = engine.start(request)
        gate.await_readers()
        for path in ("config.json", "empty", "tokenizer.json"):
            assert done[path].wait(DEADLINE_S), path
        assert not done["a-weights"].is_set()
        gate.open()
        finish(fetch)
    check_filled(store, request, files)


def test_heads_come_first_then_file_order_and_what_a_reader_wants_before_all() -> None:
    files = {"a.bin": content(20 * CHUNK, 1), "b.safetensors": content(20 * CHUNK, 2), "c.json": content(10, 3)}
    store, source = MemoryStore(), MemorySource(files)
    gate = source.gate("b.safetensors")
    request = request_for(store, source)
    with running_engine(1) as engine:
        fetch = engine.start(request)
        gate.await_readers()
        fetch.want(0, 7, 9)
        gate.open()
        finish(fetch)
    spans = [(path, span.start // CHUNK, -(-span.stop // CHUNK)) for path, span in source.books.spans]
    assert spans == [
        ("b.safetensors", 0, 1),
        ("a.bin", 7, 8),
        ("a.bin", 8, 9),
        ("c.json", 0, 1),
        ("a.bin", 0, 7),
        ("a.bin", 9, 20),
        ("b.safetensors", 1, 17),
        ("b.safetensors", 17, 20),
    ]


# -- threads --------------------------------------------------------------------------------------------------------------


def test_workers_come_back_after_they_have_ended_for_want_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcache.fetch.engine, "IDLE_S", 0.0)
    files = {f"{number}": content(6 * CHUNK, number) for number in range(12)}
    with running_engine(4) as engine:
        for round_number in range(30):
            store, source = MemoryStore(), MemorySource(files)
            request = request_for(store, source, f"model-{round_number}")
            finish(engine.start(request))
            check_filled(store, request, files)


def test_workers_that_ended_are_hired_again_when_work_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files: the second can't be resumed, breaks when all other workers have gone, and then still gets one."""
    monkeypatch.setattr(modelcache.fetch.engine, "IDLE_S", 0.0)
    files = {"a": content(40 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files, state=state_sha256)
    source.spoil("a", 39 * CHUNK)
    last = source.gate("a", 39 * CHUNK)
    again: list[int] = []
    enough = threading.Event()
    with running_engine(4) as engine:
        request = request_for(store, source)

        def on_open(file: RemoteFile, span: ByteRange) -> None:
            if source.books.closes:  # the second time
                again.append(threading.get_ident())
                if len(set(again)) >= 2:
                    enough.set()
                assert enough.wait(DEADLINE_S), "one worker alone fetches all of it again"

        source.on_open = on_open
        fetch = engine.start(request)
        last.await_readers()
        last.open()
        finish(fetch)
    check_filled(store, request, files)


def test_no_thread_to_be_had_ends_the_fetch_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a": content(3 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    with running_engine(2) as engine:

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            request = request_for(store, source)
            fetch = engine.start(request)
            with pytest.raises(RuntimeError, match="new thread"):
                finish(fetch)
            request.ingest.keep()
        request = request_for(store, source)
        finish(engine.start(request))
    check_filled(store, request, files)
