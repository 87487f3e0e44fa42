"""Waiting for files that another process brings: as far as the engine can tell, an ingest that it does not run."""

from __future__ import annotations

import threading

import pytest

import modelcache.fetch.elsewhere
import modelcache.fetch.lookout
from modelcache.abc.ingest import Ingest
from modelcache.errors import Cancelled, DigestMismatch, NoSpace
from modelcache.fetch.elsewhere import FilesElsewhere
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, finish, request_for, running_engine, stated_sha256
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, table_of, write_chunks

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0
MODEL = {"a": content(12 * CHUNK, 1), "b": content(9 * CHUNK + 5, 2), "c": content(30, 3)}
TOTAL = sum(map(len, MODEL.values()))


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcache.fetch.lookout, "LOOK_S", 0.001)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def source() -> MemorySource:
    return MemorySource(MODEL, state=state_sha256)


def complete(ingest: Ingest, *paths: str) -> None:
    for file in ingest.files:
        if file.path in paths:
            write_chunks(file, MODEL[file.path])
            file.complete(digest_of(MODEL[file.path]), table_of(MODEL[file.path]))


def until(fetch: Fetch, done_bytes: int) -> None:
    """Wait until its progress says so; the lookout tells nobody, so that is looked at."""
    turn = threading.Event()
    for _ in range(int(DEADLINE_S / 0.005)):
        if fetch.look().bytes_done >= done_bytes or fetch.ended:
            break
        turn.wait(0.005)
    assert fetch.look().bytes_done == done_bytes


def test_what_others_bring_is_shown_and_linked_file_by_file(store: MemoryStore, source: MemorySource) -> None:
    other = request_for(store, source, "other").ingest
    request = request_for(store, source, "ours")
    assert request.ingest.reserved_bytes == 0
    with running_engine(2) as engine:
        fetch = engine.start(request)
        write_chunks(other.files[0], MODEL["a"], [0, 1, 2])
        until(fetch, 3 * CHUNK)
        assert (fetch.look().bytes_awaited, fetch.look().files_done) == (3 * CHUNK, 0)
        assert fetch.look().waiting == "another process brings 3 files of it"
        complete(other, "a", "c")
        until(fetch, 12 * CHUNK + 30)
        assert (fetch.look().bytes_awaited, fetch.look().bytes_reused, fetch.look().files_done) == (0, 12 * CHUNK + 30, 2)
        complete(other, "b")
        finish(fetch)
    check_filled(store, request, MODEL)
    seen = fetch.look(Phase.DONE)
    assert (seen.bytes_done, seen.bytes_reused, seen.bytes_awaited, seen.waiting) == (TOTAL, TOTAL, 0, None)
    assert source.books.bytes == {}


def test_when_the_other_ends_the_rest_is_brought(store: MemoryStore, source: MemorySource) -> None:
    other = request_for(store, source, "other").ingest
    request = request_for(store, source, "ours")
    with running_engine(2) as engine:
        fetch = engine.start(request)
        complete(other, "c")
        write_chunks(other.files[0], MODEL["a"], [1, 5])
        until(fetch, 30 + 2 * CHUNK)
        other.keep()
        finish(fetch)
    check_filled(store, request, MODEL)
    assert source.books.bytes == {"a": 10 * CHUNK, "b": len(MODEL["b"])}
    assert fetch.look().bytes_done == TOTAL


def test_the_own_share_is_fetched_before_the_wait_is_over(store: MemoryStore, source: MemorySource) -> None:
    """Two that wait for each other: each brings what it has the claim on, whoever of them is waited for."""
    requests = [request_for(store, MemorySource({path: MODEL[path]}, state=state_sha256), path) for path in ("a", "b")]
    waiting = [request_for(store, source, name) for name in ("one", "two")]
    requests[0].ingest.keep()
    assert waiting[0].ingest.claim([waiting[0].ingest.files[0]])
    waiting[0].ingest.book([waiting[0].ingest.files[0]])
    requests[1].ingest.keep()
    assert waiting[1].ingest.claim([waiting[1].ingest.files[1]])
    waiting[1].ingest.book([waiting[1].ingest.files[1]])
    with running_engine(1) as engine, running_engine(1) as another:
        fetches = [engine.start(waiting[0]), another.start(waiting[1])]
        for fetch in fetches:
            finish(fetch)
    for request in waiting:
        check_filled(store, request, MODEL)
    assert source.books.bytes == {path: len(data) for path, data in MODEL.items()}


def test_cancelling_who_waits_takes_nothing_away(store: MemoryStore, source: MemorySource) -> None:
    other = request_for(store, source, "other").ingest
    request = request_for(store, source, "ours")
    with running_engine(2) as engine:
        fetch = engine.start(request)
        write_chunks(other.files[0], MODEL["a"], [0])
        until(fetch, CHUNK)
        fetch.cancel()
        with pytest.raises(Cancelled):
            finish(fetch)
        request.ingest.keep()
        complete(other, "a", "b", "c")
    assert all(file.sha256 is not None for file in other.files)


def test_who_does_not_get_on_is_not_waited_for(store: MemoryStore, source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelcache.fetch.elsewhere, "STALL_S", 0.0)
    other = request_for(store, source, "other").ingest
    write_chunks(other.files[0], MODEL["a"], [0])
    request = request_for(store, source, "ours")
    with running_engine(2) as engine:
        finish(engine.start(request))
    check_filled(store, request, MODEL)
    assert source.books.bytes == {path: len(data) for path, data in MODEL.items()}
    complete(other, "a", "b", "c")


def test_any_progress_of_the_other_renews_the_patience(store: MemoryStore, source: MemorySource) -> None:
    other = request_for(store, source, "other").ingest
    ingest = request_for(store, source, "ours").ingest
    now_s = [0.0]
    awaited = FilesElsewhere(ingest, dict, stall_s=100.0, now_s=lambda: now_s[0])
    awaited.add(0)
    incoming = {0: ingest.files[0]}
    for chunk in range(5):
        now_s[0] += 99.0
        write_chunks(other.files[1], MODEL["b"], [chunk])  # of another file: it gets on all the same
        assert awaited.look(incoming).ours == []
    now_s[0] += 99.0
    assert awaited.look(incoming).ours == []
    now_s[0] += 1.0
    assert awaited.look(incoming).ours == [0]


def test_what_became_known_is_linked_and_no_room_booked(store: MemoryStore, source: MemorySource) -> None:
    """Who had the claims has published and is gone, and nothing else tells what the files became."""
    plain = MemorySource(MODEL)
    other = request_for(store, plain, "same").ingest
    request = request_for(store, plain, "same")
    complete(other, "a", "b", "c")
    awaited = FilesElsewhere(request.ingest, lambda: {0: digest_of(MODEL["a"])})
    awaited.add(0)
    keep, store.shelf.open_ingests = store.shelf.open_ingests, {}
    other_claims, store.shelf.claims = store.shelf.claims, {}
    seen = awaited.look({0: request.ingest.files[0]})
    assert (seen.published, seen.ours, request.ingest.reserved_bytes) == ({0: digest_of(MODEL["a"])}, [], 0)
    store.shelf.open_ingests, store.shelf.claims = keep, other_claims


def test_what_is_not_as_stated_here_is_brought(store: MemoryStore) -> None:
    """Two origins with one identity and other bytes: what the other published is not taken, and not waited for again."""
    wrong = content(12 * CHUNK, 9)
    believed, stated = MemorySource({"a": wrong}), MemorySource({"a": MODEL["a"]}, state=state_sha256)
    other = request_for(store, believed, "same").ingest
    request = request_for(store, believed, "same")
    listed = tuple(stated_file for stated_file in request_for(store, stated, "listing").remote)
    assert stated_sha256(listed[0]) == digest_of(MODEL["a"])
    asked = type(request)(**{name: getattr(request, name) for name in request.__slots__} | {"remote": listed, "source": stated})
    write_chunks(other.files[0], wrong)
    other.files[0].complete(digest_of(wrong), table_of(wrong))
    with running_engine(1) as engine:
        finish(engine.start(asked))
    assert asked.ingest.files[0].sha256 == digest_of(MODEL["a"])


def test_no_room_at_the_takeover_is_told(store: MemoryStore, source: MemorySource) -> None:
    other = request_for(store, source, "other").ingest
    request = request_for(store, source, "ours")

    def refuse(ingest: Ingest, needed_bytes: int) -> None:
        raise NoSpace("full", needed_bytes=needed_bytes, available_bytes=0, evictable_bytes=0, held_bytes=0)

    with running_engine(1) as engine:
        fetch = engine.start(request)
        write_chunks(other.files[0], MODEL["a"], [0])
        until(fetch, CHUNK)
        store.shelf.make_room = refuse
        other.discard()
        with pytest.raises(NoSpace) as caught:
            finish(fetch)
    assert caught.value.needed_bytes == TOTAL


def test_wrong_bytes_of_the_other_are_its_own_affair(store: MemoryStore) -> None:
    """The other fetch ends with a mismatch and drops what it had; who waited tries for itself."""
    source = MemorySource({"a": MODEL["a"]}, state=state_sha256)
    lying = MemorySource({"a": content(12 * CHUNK, 9)}, state=lambda data: (digest_of(MODEL["a"]),))
    requests = [request_for(store, lying, "liar"), request_for(store, source, "ours")]
    gate = lying.gate("a", 5 * CHUNK)
    with running_engine(1) as one, running_engine(1) as two:
        liar, ours = one.start(requests[0]), two.start(requests[1])
        gate.await_readers()
        gate.open()
        with pytest.raises(DigestMismatch):
            finish(liar)
        requests[0].ingest.discard()
        finish(ours)
    check_filled(store, requests[1], {"a": MODEL["a"]})
    assert source.books.bytes == {"a": 12 * CHUNK}


def test_who_can_bring_goes_before_who_waits(store: MemoryStore, source: MemorySource) -> None:
    """Both in one engine: the one that waits for another process began first, and follows the one that has the claims."""
    identities = sorted(MODEL)
    holder = request_for(store, source, "holder", identities=identities, priority=Priority.PREWARM)
    waiter = request_for(store, source, "waiter", identities=identities)
    with running_engine(1) as engine:
        first = engine.start(waiter)
        second = engine.start(holder)
        finish(first)
        finish(second)
    for request in (holder, waiter):
        check_filled(store, request, MODEL)
    assert source.books.bytes == {path: len(data) for path, data in MODEL.items()}


def test_an_engine_that_closes_ends_the_wait(store: MemoryStore, source: MemorySource) -> None:
    request_for(store, source, "other")
    with running_engine(1) as engine:
        fetch = engine.start(request_for(store, source, "ours"))
        assert any(thread.name == "lookout" for thread in threading.enumerate())
    assert fetch.ended
    with pytest.raises(Cancelled):
        finish(fetch)
    assert not any(thread.name == "lookout" for thread in threading.enumerate())
