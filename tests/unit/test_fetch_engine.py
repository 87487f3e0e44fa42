"""The engine over a dict: every byte once, in bounded memory, resumed, and ended by whatever ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import modelcache.fetch.engine
from modelcache.abc.source import Body, RemoteFile
from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.errors import Cancelled
from modelcache.fetch.concurrency import ConcurrencyBounds
from modelcache.fetch.engine import EngineLimits, FetchEngine
from modelcache.fetch.plan import SPAN_CHUNKS, Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import check_filled, counted_buffers, finish, request_for, running_engine, small_chunks
from modelcache.testing.memory_ingest import MemoryIncoming
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content

DEADLINE_S = 20.0
CHUNK = 4096


@pytest.fixture(autouse=True)
def chunk_bytes() -> Iterator[int]:
    with small_chunks(CHUNK) as size_bytes:
        yield size_bytes


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
        ("a.bin", 7, 9),
        ("c.json", 0, 1),
        ("a.bin", 0, 7),
        ("a.bin", 9, 20),
        ("b.safetensors", 1, 17),
        ("b.safetensors", 17, 20),
    ]


# -- interrupted and resumed --------------------------------------------------------------------------------------------


def interrupted(store: MemoryStore, source: MemorySource, engine: FetchEngine, path: str, chunk: int) -> None:
    """A fetch that is cancelled while it waits for this chunk."""
    gate = source.gate(path, chunk * CHUNK)
    request = request_for(store, source)
    fetch = engine.start(request)
    gate.await_readers()
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled, match="kept for the next try"):
        fetch.wait(cancel)
    request.ingest.keep()
    assert source.open_bodies == 0
    gate.open()


def test_a_cancelled_fetch_costs_at_most_the_chunk_it_was_at() -> None:
    files = {"a": content(30 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    with running_engine(1) as engine:
        interrupted(store, source, engine, "a", 11)
        assert source.books.bytes["a"] == 11 * CHUNK
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        seen = fetch.look(Phase.DONE)
    check_filled(store, request, files)
    assert source.books.bytes["a"] == 30 * CHUNK
    assert (seen.bytes_reused, seen.bytes_fetched, seen.bytes_done) == (11 * CHUNK, 19 * CHUNK, 30 * CHUNK)


@pytest.mark.parametrize("requests", [1, 4])
def test_what_the_journal_says_counts_only_if_the_disk_says_so_too(requests: int) -> None:
    files = {"a": content(30 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    with running_engine(1) as engine:
        interrupted(store, source, engine, "a", 11)
    kept = next(iter(store.shelf.kept.values())).files[0]
    kept._data[3 * CHUNK + 5] ^= 0xFF
    kept._data[8 * CHUNK] ^= 0xFF
    kept._marks[20] = b"\0" * 16  # journalled, never written
    with running_engine(requests) as engine:
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        seen = fetch.look(Phase.DONE)
    check_filled(store, request, files)
    assert (seen.bytes_reused, seen.bytes_fetched, seen.bytes_done) == (9 * CHUNK, 21 * CHUNK, 30 * CHUNK)


def test_kept_chunks_that_cannot_be_read_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that reached the disk before the data did may speak of bytes behind the end of the file."""
    files = {"a": content(30 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    with running_engine(1) as engine:
        interrupted(store, source, engine, "a", 11)
        request = request_for(store, source)
        incoming = request.ingest.files[0]
        data = incoming._data  # type: ignore[attr-defined]
        del data[5 * CHUNK :]
        real_write = incoming.write

        def write(offset: int, part: memoryview, route: object) -> None:
            if len(data) < offset + len(part):
                data.extend(bytes(offset + len(part) - len(data)))
            real_write(offset, part, request.route)

        monkeypatch.setattr(incoming, "write", write)
        fetch = engine.start(request)
        finish(fetch)
    check_filled(store, request, files)
    assert fetch.look().bytes_reused == 5 * CHUNK


def test_a_replaced_file_is_not_resumed_from_the_old_one() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(30 * CHUNK)})
    with running_engine(1) as engine:
        interrupted(store, source, engine, "a", 11)
        files = {"a": content(30 * CHUNK, seed=5)}
        source.put("a", files["a"])
        source.books.bytes.clear()
        request = request_for(store, source)
        finish(engine.start(request))
    check_filled(store, request, files)
    assert source.books.bytes["a"] == 30 * CHUNK


# -- cancelled, whatever it is doing --------------------------------------------------------------------------------------


def test_cancelled_while_a_source_opens() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(3 * CHUNK)})
    opening, released = threading.Event(), threading.Event()
    cancel = Cancellation()

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        opening.set()
        assert released.wait(DEADLINE_S)

    source.on_open = on_open
    with running_engine(1) as engine, ThreadPoolExecutor(1) as threads:
        fetch = engine.start(request_for(store, source))
        waiting = threads.submit(fetch.wait, cancel)
        assert opening.wait(DEADLINE_S)
        cancel.cancel()
        released.set()
        with pytest.raises(Cancelled):
            waiting.result(DEADLINE_S)
    assert source.books.opened == {}


def test_cancelled_between_the_opening_of_a_body_and_its_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nobody breaks that body: it must not be read at all, since a read could wait for long."""
    store, source = MemoryStore(), MemorySource({"a": content(3 * CHUNK)})
    source.gate("a")
    request = request_for(store, source)
    started = threading.Event()
    opened: list[Body] = []
    real = source.open

    def open_and_cancel(file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        opened.append(real(file, span, cancel))
        assert started.wait(DEADLINE_S)
        fetches[0].cancel()
        return opened[0]

    monkeypatch.setattr(source, "open", open_and_cancel)
    with running_engine(1) as engine:
        fetches = [engine.start(request)]
        started.set()
        with pytest.raises(Cancelled):
            finish(fetches[0])
    assert source.open_bodies == 0


def test_buffers_that_wait_for_the_hash_come_back_when_the_fetch_ends() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(40 * CHUNK)})
    gate, ahead = source.gate("a"), source.gate("a", 23 * CHUNK)
    with running_engine(2, spare_buffers=4) as engine:
        fetch = engine.start(request_for(store, source))
        gate.await_readers()
        ahead.await_readers()
        assert engine._pool.try_take() is None  # chunks 16 to 23 have come before the first
        fetch.cancel()
        with pytest.raises(Cancelled):
            finish(fetch)
        buffers = [engine._pool.try_take() for _ in range(5)]
        assert [buffer is None for buffer in buffers] == [False] * 4 + [True]
        for buffer in buffers[:4]:
            assert buffer is not None
            engine._pool.give_back(buffer)


def test_the_wait_is_not_over_while_a_worker_touches_the_ingest() -> None:
    files = {"a": content(3 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    request = request_for(store, source)
    incoming = request.ingest.files[0]
    completing, released = threading.Event(), threading.Event()

    def complete(*arguments: object) -> None:
        completing.set()
        assert released.wait(DEADLINE_S)

    with running_engine(1) as engine, ThreadPoolExecutor(1) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(incoming, "complete", complete)
        fetch = engine.start(request)
        waiting = threads.submit(finish, fetch)
        assert completing.wait(DEADLINE_S)
        fetch.cancel()
        assert fetch.ended
        assert not waiting.done()
        released.set()
        with pytest.raises(Cancelled):
            waiting.result(DEADLINE_S)


def test_cancelled_while_it_checks_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    store, source = MemoryStore(), MemorySource({"a": content(30 * CHUNK)})
    with running_engine(1) as engine:
        interrupted(store, source, engine, "a", 11)
        request = request_for(store, source)
        incoming = request.ingest.files[0]
        read, reads = incoming.read, []
        started = threading.Event()

        def read_and_cancel(offset: int, buffer: memoryview) -> None:
            read(offset, buffer)
            reads.append(offset)
            assert started.wait(DEADLINE_S)
            fetches[0].cancel()

        monkeypatch.setattr(incoming, "read", read_and_cancel)
        fetches = [engine.start(request)]
        started.set()
        with pytest.raises(Cancelled):
            finish(fetches[0])
    assert reads == [0]


def test_cancelled_before_it_is_waited_for() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(3 * CHUNK)})
    gate = source.gate("a")
    with running_engine(2) as engine:
        fetch = engine.start(request_for(store, source))
        gate.await_readers()
        fetch.cancel()
        fetch.cancel()
        with pytest.raises(Cancelled):
            finish(fetch)
    assert source.open_bodies == 0


def test_a_cancellation_after_the_end_changes_nothing() -> None:
    files = {"a": content(3 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    with running_engine(2) as engine:
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        fetch.cancel()
        finish(fetch)
    check_filled(store, request, files)


def test_closing_the_engine_cancels_and_ends_every_thread() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(30 * CHUNK), "b": content(30 * CHUNK)})
    gates = [source.gate("a"), source.gate("b")]
    with running_engine(4) as engine:
        fetches = [engine.start(request_for(store, source, name)) for name in ("one", "two")]
        for gate in gates:
            gate.await_readers()
        engine.close()
        engine.close()
        for fetch in fetches:
            with pytest.raises(Cancelled):
                finish(fetch)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch-")]
        assert source.open_bodies == 0
        with pytest.raises(RuntimeError, match="closed"):
            engine.start(request_for(store, source))


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


# -- who goes first -------------------------------------------------------------------------------------------------------


def opens_of(*sources: MemorySource) -> list[str]:
    """Endpoints in the order in which bodies were opened."""
    order: list[str] = []

    def writing(name: str) -> Callable[[RemoteFile, ByteRange], None]:
        return lambda file, span: order.append(name)

    for source in sources:
        source.on_open = writing(source.origin.endpoint)
    return order


@pytest.mark.parametrize("requests", [1, 3])
def test_who_waits_has_the_bandwidth_after_one_chunk(requests: int) -> None:
    prewarmed = MemorySource({"a": content(60 * CHUNK, 1)})
    awaited = MemorySource({"b": content(60 * CHUNK, 2)})
    store = MemoryStore()
    with running_engine(requests) as engine:
        gates = [prewarmed.gate("a", chunk * CHUNK) for chunk in (3, 18, 26)[:requests]]
        early = engine.start(request_for(store, prewarmed, "early", priority=Priority.PREWARM))
        for gate in gates:
            gate.await_readers()
        before = sum(prewarmed.books.bytes.values())
        late_gates = [awaited.gate("b", chunk * CHUNK) for chunk in (0, 16, 24)[:requests]]
        late = engine.start(request_for(store, awaited, "late", priority=Priority.WAITING))
        opened_again: list[bool] = []

        def on_open(file: RemoteFile, span: ByteRange) -> None:
            opened_again.append(late.left)

        prewarmed.on_open = on_open
        for gate in gates:
            gate.open()
        for gate in late_gates:
            gate.await_readers()  # every worker has come over
        assert sum(prewarmed.books.bytes.values()) - before == requests * CHUNK  # having finished the chunk it was at
        for gate in late_gates:
            gate.open()
        finish(late)
        finish(early)
    assert opened_again
    assert not any(opened_again)  # only when nothing waited for the pod any more
    assert prewarmed.books.bytes["a"] == 60 * CHUNK  # and what it left was given back, not fetched again


def test_who_waits_but_has_nothing_to_be_fetched_disturbs_nobody() -> None:
    """Its last request is on its way: others go on with long requests and don't leave theirs after each chunk."""
    store, prewarmed, awaited = MemoryStore(), MemorySource({"a": content(64 * CHUNK, 1)}), MemorySource({"b": content(CHUNK, 2)})
    gate = awaited.gate("b")
    with running_engine(2) as engine:
        late = engine.start(request_for(store, awaited, "late", priority=Priority.WAITING))
        gate.await_readers()
        finish(engine.start(request_for(store, prewarmed, "early", priority=Priority.PREWARM)))
        assert prewarmed.books.opened["a"] == 4
        gate.open()
        finish(late)


def test_fetches_of_one_priority_take_turns() -> None:
    sources = [MemorySource({"a": content(64 * CHUNK, number)}, endpoint=str(number)) for number in range(3)]
    store = MemoryStore()
    order = opens_of(*sources)
    gate = sources[0].gate("a")
    with running_engine(1) as engine:
        fetches = [engine.start(request_for(store, sources[0], "0"))]
        gate.await_readers()
        fetches += [engine.start(request_for(store, source, str(number))) for number, source in enumerate(sources) if number]
        gate.open()
        for fetch in fetches:
            finish(fetch)
    assert "".join(order) == "012012012012"


def test_an_origin_that_throttles_has_fewer_requests_at_once() -> None:
    files = {"a": content(200 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    gates = [source.gate("a", chunk * CHUNK) for chunk in (0, 16, 24, 29)]
    most = [0]

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        most[0] = max(most[0], source.open_bodies + 1)

    engine = FetchEngine(EngineLimits(ConcurrencyBounds(4, 1, 4), spare_buffers=4))
    try:
        request = request_for(store, source)
        fetch = engine.start(request)
        for gate in gates:
            gate.await_readers()
        engine.throttled(source.origin)
        assert engine.requests_limit(source.origin) == 2
        source.on_open = on_open
        for gate in gates:
            gate.open()
        finish(fetch)
    finally:
        engine.close()
    check_filled(store, request, files)
    assert most[0] <= 2


def test_an_origin_that_throttles_slows_nobody_else() -> None:
    """Its own requests go down to one; the other origin still has as many as it may, at once."""
    store = MemoryStore()
    slow, quick = (MemorySource({"a": content(200 * CHUNK, number)}, endpoint=f"memory://origin-{number}:1") for number in range(2))
    offsets = [chunk * CHUNK for chunk in (0, 16, 24, 29)]
    engine = FetchEngine(EngineLimits(ConcurrencyBounds(4, 1, 8), spare_buffers=4))
    try:
        for now_s in (0.0, 10.0):
            engine._concurrency.throttled(str(slow.origin), now_s)
        held = slow.gate("a", 0)
        gates = [quick.gate("a", offset) for offset in offsets]
        fetches = [engine.start(request_for(store, source, str(number))) for number, source in enumerate((slow, quick))]
        held.await_readers()
        for gate in gates:
            gate.await_readers()  # four at once: none of them waits for the other origin's turn
        assert (engine.requests_limit(slow.origin), slow.open_bodies) == (1, 1)
        for gate in (held, *gates):
            gate.open()
        for fetch in fetches:
            finish(fetch)
    finally:
        engine.close()


def test_a_request_is_not_left_for_a_fetch_whose_own_origin_lets_it_have_no_more() -> None:
    """Else a prewarming worker would give its connection up at every chunk, and take it again."""
    store = MemoryStore()
    prewarmed = MemorySource({"a": content(40 * CHUNK, 1)}, endpoint="memory://prewarmed:1")
    waited = MemorySource({"a": content(40 * CHUNK, 2)}, endpoint="memory://waited:1")
    held = waited.gate("a", 0)
    engine = FetchEngine(EngineLimits(ConcurrencyBounds(1, 1, 2), spare_buffers=2))
    try:
        first = engine.start(request_for(store, waited, "waited"))
        held.await_readers()
        finish(engine.start(request_for(store, prewarmed, "prewarmed", priority=Priority.PREWARM)))
        assert prewarmed.books.opened["a"] <= 1 + 40 // SPAN_CHUNKS + 1
        held.open()
        finish(first)
    finally:
        engine.close()


def test_a_hurried_fetch_goes_before_those_it_was_equal_to() -> None:
    slow, hurried = (MemorySource({"a": content(64 * CHUNK, number)}, endpoint=f"origin-{number}") for number in range(2))
    store = MemoryStore()
    order = opens_of(slow, hurried)
    gate = slow.gate("a", CHUNK)
    with running_engine(1) as engine:
        first = engine.start(request_for(store, slow, "0", priority=Priority.PREWARM))
        gate.await_readers()
        second = engine.start(request_for(store, hurried, "1", priority=Priority.PREWARM))
        engine.hurry(second, Priority.WAITING)
        engine.hurry(second, Priority.REPAIR)  # never slower
        gate.open()
        finish(second)
        finish(first)
    assert order[:5] == ["origin-0", *["origin-1"] * 4]
