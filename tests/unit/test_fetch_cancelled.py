"""A fetch ends when it is cancelled, whatever it is doing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.abc.source import Body, RemoteFile
from modelcache.errors import Cancelled
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, finish, request_for, running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content

pytestmark = pytest.mark.usefixtures("chunk_bytes")
DEADLINE_S = 20.0


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
