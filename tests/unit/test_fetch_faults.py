"""What goes wrong under the engine: the origin breaks off or gives wrong bytes, the store fails inside a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from modelcache.abc.source import RemoteFile
from modelcache.errors import BodyCut, Cancelled, DigestMismatch, NoSpace, SourceChanged, StoreFault
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.fetch import DIGEST_TRIES, WHOLE_TRIES
from modelcache.fetch.progress import Phase
from modelcache.fetch.request import FetchRequest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, counted_buffers, finish, request_for, running_engine
from modelcache.testing.memory_ingest import MemoryIncoming, MemoryIngest
from modelcache.testing.memory_source import MemorySource, state_md5, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0


# -- wrong bytes ----------------------------------------------------------------------------------------------------------


def fresh_connection(source: MemorySource) -> Callable[[], None]:
    """Makes `source.close` note what was open then; gives the check that nothing was."""
    open_then: list[int] = []
    close = source.close

    def told() -> None:
        open_then.append(source.open_bodies)
        close()

    source.close = told  # type: ignore[method-assign]

    def check() -> None:
        assert open_then == [0], "the connection that gave wrong bytes was not among the idle ones that were closed"

    return check


@pytest.mark.parametrize("size_bytes", [17, CHUNK, 20 * CHUNK + 1])
@pytest.mark.parametrize("resumable", [True, False])
def test_wrong_bytes_once_are_fetched_again_over_a_fresh_connection(size_bytes: int, resumable: bool) -> None:
    files = {"a": content(size_bytes)}
    store, source = MemoryStore(), MemorySource(files, state=state_md5, resumable=resumable)
    source.spoil("a", size_bytes // 2)
    check_fresh = fresh_connection(source)
    with running_engine(3) as engine:
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        seen = fetch.look(Phase.DONE)
    check_filled(store, request, files)
    check_fresh()
    assert source.books.bytes["a"] == 2 * size_bytes
    assert (seen.bytes_done, seen.bytes_fetched, seen.bytes_reused, seen.files_done) == (size_bytes, 2 * size_bytes, 0, 1)


@pytest.mark.parametrize("resumable", [True, False])
def test_wrong_bytes_always_are_told_with_both_digests(resumable: bool) -> None:
    data = content(20 * CHUNK)
    spoilt = data[: 9 * CHUNK] + bytes([data[9 * CHUNK] ^ 0xFF]) + data[9 * CHUNK + 1 :]
    store, source = MemoryStore(), MemorySource({"a": data}, state=state_sha256, resumable=resumable)
    source.spoil("a", 9 * CHUNK, times=None)
    with running_engine(3) as engine:
        request = request_for(store, source)
        with pytest.raises(DigestMismatch) as error:
            finish(engine.start(request))
        assert (error.value.expected, error.value.got) == (str(digest_of(data)), str(digest_of(spoilt)))
        assert request.uri in str(error.value)
        assert source.books.bytes["a"] == DIGEST_TRIES * len(data)
        assert not store.has_blob(digest_of(spoilt))
        assert source.open_bodies == 0


def test_wrong_kept_chunks_are_not_kept_again_and_not_counted_as_reused() -> None:
    """An earlier try got wrong bytes and journalled them: the whole is wrong, and comes once more from the first byte."""
    data = content(20 * CHUNK)
    store, source = MemoryStore(), MemorySource({"a": data}, state=state_sha256)
    source.spoil("a", 3 * CHUNK)
    source.cut("a", 10 * CHUNK)
    with running_engine(1) as engine:
        request = request_for(store, source)
        with pytest.raises(BodyCut):
            finish(engine.start(request))
        request.ingest.keep()
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
        seen = fetch.look(Phase.DONE)
    check_filled(store, request, {"a": data})
    assert (seen.bytes_done, seen.bytes_fetched, seen.bytes_reused) == (20 * CHUNK, 30 * CHUNK, 0)


def test_an_empty_file_of_another_digest_cannot_be_fetched_again() -> None:
    source = MemorySource({"a": b"", "b": content(5 * CHUNK)}, state=lambda data: state_md5(b"something else"))
    with running_engine(2) as engine, pytest.raises(DigestMismatch):
        finish(engine.start(request_for(MemoryStore(), source)))
    assert source.open_bodies == 0


# -- broken connections ---------------------------------------------------------------------------------------------------


def test_a_cut_body_keeps_the_chunks_before_it() -> None:
    files = {"a": content(20 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    source.cut("a", 13 * CHUNK + 100)
    with running_engine(1) as engine:
        request = request_for(store, source)
        with pytest.raises(BodyCut):
            finish(engine.start(request))
        request.ingest.keep()
        request = request_for(store, source)
        fetch = engine.start(request)
        finish(fetch)
    check_filled(store, request, files)
    assert fetch.look().bytes_reused == 13 * CHUNK
    assert source.books.bytes["a"] == 20 * CHUNK + 100


def test_what_cannot_be_resumed_starts_over_until_it_has_broken_too_often() -> None:
    files = {"a": content(20 * CHUNK), "b": content(2 * CHUNK, 2)}
    for cuts in (WHOLE_TRIES - 1, WHOLE_TRIES):
        store, source = MemoryStore(), MemorySource(files, resumable=False)
        source.cut("a", 13 * CHUNK + 100, times=cuts)
        with running_engine(3) as engine:
            request = request_for(store, source)
            fetch = engine.start(request)
            if cuts < WHOLE_TRIES:
                finish(fetch)
                check_filled(store, request, files)
                assert fetch.look().bytes_done == 22 * CHUNK
            else:
                with pytest.raises(BodyCut):
                    finish(fetch)
            assert source.books.opened["a"] == WHOLE_TRIES
            assert source.open_bodies == 0


def test_a_broken_connection_leaves_the_second_try_for_a_wrong_digest() -> None:
    files = {"a": content(20 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files, resumable=False, state=state_sha256)
    source.cut("a", 5 * CHUNK, times=2)
    source.spoil("a", 7 * CHUNK, times=3)
    with running_engine(1) as engine:
        request = request_for(store, source)
        finish(engine.start(request))
    check_filled(store, request, files)
    assert source.books.opened["a"] == 4  # two cut, one wrong, one right


def test_a_replaced_object_ends_the_fetch_and_mixes_nothing() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(20 * CHUNK)})
    gate = source.gate("a", 10 * CHUNK)
    with running_engine(2) as engine:
        request = request_for(store, source)
        fetch = engine.start(request)
        gate.await_readers()
        source.put("a", content(20 * CHUNK, seed=2))
        gate.open()
        with pytest.raises(SourceChanged):
            finish(fetch)
    assert request.ingest.files[0].sha256 is None


class Odd(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Odd("a worse bug"), SystemExit(3)])
def test_a_source_with_a_bug_ends_the_fetch_with_it_and_not_the_engine(error: BaseException) -> None:
    files = {"a": content(20 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        raise error

    source.on_open = on_open
    with running_engine(2) as engine:
        with pytest.raises(type(error)):
            finish(engine.start(request_for(store, source)))
        source.on_open = lambda file, span: None
        request = request_for(store, source, "again")
        finish(engine.start(request))
        check_filled(store, request, files)


@pytest.mark.parametrize("more", [True, False])
def test_a_source_that_hands_out_more_or_less_than_asked_is_not_believed(monkeypatch: pytest.MonkeyPatch, more: bool) -> None:
    store, source = MemoryStore(), MemorySource({"a": content(3 * CHUNK)})
    request = request_for(store, source)
    real = source.open

    def wrong(file: RemoteFile, span: ByteRange, cancel: Cancellation) -> object:
        body = real(file, span, cancel)
        body._stop = span.stop if more else span.stop - 1  # type: ignore[attr-defined]
        read = body.readinto
        if more:
            body.readinto = lambda buffer: read(buffer) or 1  # type: ignore[method-assign]
        return body

    monkeypatch.setattr(source, "open", wrong)
    with running_engine(1) as engine, pytest.raises(RuntimeError, match="more than the range" if more else "early without saying"):
        finish(engine.start(request))
    assert source.open_bodies == 0
    assert request.ingest.files[0].sha256 is None


# -- the store fails ------------------------------------------------------------------------------------------------------


def no_space() -> NoSpace:
    return NoSpace("the disk is full", needed_bytes=1, available_bytes=0, evictable_bytes=0, held_bytes=0)


class Failing:
    """Makes the n-th call of one method of the store's files raise."""

    def __init__(self, name: str, nth: int, error: BaseException | None = None) -> None:
        self.name = name
        self.left = nth
        self.error = error if error is not None else no_space()
        self._lock = threading.Lock()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        owner = MemoryIngest if self.name == "flush" else MemoryIncoming
        real = getattr(owner, self.name)

        def method(target: object, *arguments: object) -> object:
            with self._lock:
                self.left -= 1
                strikes = self.left == 0
            if strikes:
                raise self.error
            return real(target, *arguments)

        patch.setattr(owner, self.name, method)


MODEL = {"a": content(12 * CHUNK, 1), "b": content(9 * CHUNK + 5, 2), "c": content(30, 3), "d": b"", "e": content(40, 4)}


@pytest.mark.parametrize(("name", "nth"), [("flush", 1), *((name, nth) for name in ("write", "mark", "complete") for nth in (1, 2, 4))])
@pytest.mark.parametrize("requests", [1, 4])
def test_a_store_that_fails_ends_the_fetch_with_its_error(name: str, nth: int, requests: int) -> None:
    failing = Failing(name, nth)
    store, source = MemoryStore(), MemorySource(MODEL)
    with running_engine(requests) as engine, counted_buffers() as most_buffers:
        with pytest.MonkeyPatch.context() as patch:
            failing.install(patch)
            request = request_for(store, source)
            with pytest.raises(NoSpace) as error:
                finish(engine.start(request))
            assert error.value is failing.error
            request.ingest.keep()
        assert source.open_bodies == 0
        request = request_for(store, source)  # and the engine and what was kept are as good as before
        finish(engine.start(request))
        check_filled(store, request, MODEL)
        assert most_buffers() <= requests + 4


@pytest.mark.parametrize("name", ["write", "complete", "flush", "restart"])
def test_a_store_with_a_bug_ends_the_fetch_with_it_and_not_the_engine(name: str) -> None:
    failing = Failing(name, 1, Odd("a bug"))
    store, source = MemoryStore(), MemorySource(MODEL, state=state_md5)
    source.spoil("a", 0)
    with running_engine(2) as engine:
        with pytest.MonkeyPatch.context() as patch:
            failing.install(patch)
            with pytest.raises(Odd):
                finish(engine.start(request_for(store, source)))
        request = request_for(store, source, "again")
        finish(engine.start(request))
        check_filled(store, request, MODEL)


def test_a_store_that_fails_for_a_file_without_bytes_ends_the_fetch_too() -> None:
    """Nothing of it is a worker's work: it fails while the fetch is started, and is told where it is waited for."""
    failing = Failing("complete", 1)
    source = MemorySource({"empty": b"", "empty-too": b""})
    with running_engine(2) as engine, pytest.MonkeyPatch.context() as patch:
        failing.install(patch)
        fetch = engine.start(request_for(MemoryStore(), source))
        with pytest.raises(NoSpace):
            finish(fetch)


def test_a_store_that_fails_to_restart_a_file_ends_the_fetch_too() -> None:
    for resumable in (True, False):
        failing = Failing("restart", 1)
        source = MemorySource(MODEL, state=state_md5, resumable=resumable)
        source.spoil("a", 0) if resumable else source.cut("a", 5 * CHUNK)
        with running_engine(2) as engine, pytest.MonkeyPatch.context() as patch:
            failing.install(patch)
            with pytest.raises(NoSpace):
                finish(engine.start(request_for(MemoryStore(), source)))


def test_bytes_that_do_not_read_back_end_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a spare buffer, chunks ahead of the hash are read back: a disk that loses them is noticed there."""
    source = MemorySource({"a": content(40 * CHUNK)})
    gate = source.gate("a", 0)
    store = MemoryStore()
    request = request_for(store, source)
    written = threading.Semaphore(0)
    write = MemoryIncoming.write

    def told(incoming: MemoryIncoming, offset: int, data: memoryview, route: object) -> None:
        write(incoming, offset, data, request.route)
        written.release()

    monkeypatch.setattr(MemoryIncoming, "write", told)
    with running_engine(2, spare_buffers=0) as engine:
        fetch = engine.start(request)
        gate.await_readers()
        for _ in range(8):
            assert written.acquire(timeout=DEADLINE_S)
        incoming = request.ingest.files[0]
        incoming._data[17 * CHUNK] ^= 0xFF  # type: ignore[attr-defined]
        gate.open()
        with pytest.raises(StoreFault, match="reads back other bytes"):
            finish(fetch)


# -- all of it at once ----------------------------------------------------------------------------------------------------


@st.composite
def faults(draw: st.DrawFn) -> list[tuple[str, int, str]]:
    return draw(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9 * CHUNK), st.sampled_from(["cut", "spoil"])), max_size=5))


@settings(max_examples=60, deadline=None)
@given(script=faults(), resumable=st.booleans(), requests=st.integers(1, 4), spare=st.integers(0, 3), cancelled=st.booleans())
def test_tries_after_whatever_faults_end_with_the_right_bytes(
    script: list[tuple[str, int, str]], resumable: bool, requests: int, spare: int, cancelled: bool
) -> None:
    store, source = MemoryStore(), MemorySource(MODEL, state=state_md5, resumable=resumable)
    for path, offset, kind in script:
        source.cut(path, offset) if kind == "cut" else source.spoil(path, offset)
    with running_engine(requests, spare_buffers=spare) as engine, counted_buffers() as most_buffers:
        request = _until_it_works(engine, store, source, cancelled)
        assert most_buffers() <= requests + spare
    check_filled(store, request, MODEL)
    assert source.open_bodies == 0


def _until_it_works(engine: FetchEngine, store: MemoryStore, source: MemorySource, cancelled: bool) -> FetchRequest:
    for attempt in range(20):
        request = request_for(store, source)
        fetch = engine.start(request)
        if cancelled and attempt == 0:
            fetch.cancel()
        try:
            finish(fetch)
        except DigestMismatch:
            request.ingest.discard()
        except (BodyCut, Cancelled):
            request.ingest.keep()
        else:
            seen = fetch.look(Phase.DONE)
            total = sum(map(len, MODEL.values()))
            assert (seen.bytes_done, seen.files_done) == (total, len(MODEL))
            assert seen.bytes_reused + seen.bytes_fetched >= total
            return request
    raise AssertionError("each fault strikes once, so that twenty tries are plenty")
