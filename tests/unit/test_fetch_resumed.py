"""Fetches that were interrupted go on with what the journal and the disk agree on."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import xxhash

from modelcache.abc.ingest import Route
from modelcache.errors import Cancelled
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, finish, request_for, running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content

pytestmark = pytest.mark.usefixtures("chunk_bytes")
DEADLINE_S = 20.0


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


def test_what_could_not_be_compared_is_not_gone_on_with() -> None:
    """Killed between the journal and the comparison with what the answer stated: only another answer can state it again."""
    files = {"a": content(CHUNK - 1)}
    store, source = MemoryStore(), MemorySource(files)
    request = request_for(store, source)
    damaged = bytearray(files["a"])
    damaged[5] ^= 1
    left = request.ingest.files[0]
    left.write(0, memoryview(damaged), Route.BUFFERED)
    left.mark(0, xxhash.xxh3_128_digest(damaged))
    request.ingest.keep()
    request = request_for(store, source)
    assert request.ingest.files[0].hints()
    request = replace(request, remote=tuple(replace(file, stated_later=True) for file in request.remote))
    with running_engine(1) as engine:
        finish(engine.start(request))
    check_filled(store, request, files)
    assert source.books.bytes["a"] == CHUNK - 1


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
