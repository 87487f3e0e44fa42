"""`ModelCache.ensure` by many callers at once, over a store and an origin that are dicts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from modelcache import ensure
from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.source import Listing
from modelcache.cache import ModelCache
from modelcache.errors import AccessDenied, Cancelled
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.memory_ingest import MemoryIngest
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.polling import until
from modelcache.uri import StorageUri
from tests.unit.ensure.bench import FILLED, SIZE, check_kept
from tests.unit.ensure.origins import URI, Origins

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0


class Looks:
    """Progress callbacks of so many callers; tells when each has been called."""

    def __init__(self, callers: int) -> None:
        self._all = threading.Barrier(callers + 1)

    def callback(self) -> Callable[[Progress], None]:
        seen: list[Progress] = []

        def look(progress: Progress) -> None:
            seen.append(progress)
            if len(seen) == 1:
                self._all.wait(DEADLINE_S)

        return look

    def await_all(self) -> None:
        self._all.wait(DEADLINE_S)


def test_eight_callers_one_fetch_and_one_of_them_leaves(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    gate = origins.source.gate("model.safetensors", 3 * CHUNK)
    cancels = [Cancellation() for _ in range(8)]
    looks = Looks(8)
    with ThreadPoolExecutor(8) as threads:
        callers = [threads.submit(cache.ensure, URI, progress=looks.callback(), cancel=cancel) for cancel in cancels]
        gate.await_readers()
        looks.await_all()
        cancels[3].cancel()
        with pytest.raises(Cancelled):
            callers[3].result(DEADLINE_S)
        gate.open()
        snapshots = {caller.result(DEADLINE_S) for number, caller in enumerate(callers) if number != 3}
    assert len(snapshots) == 1
    check_kept(store, snapshots.pop(), FILLED)
    assert origins.source.books.listings == 1
    assert origins.source.books.bytes == {path: len(data) for path, data in FILLED.items()}
    assert origins.source.open_bodies == 0


def test_when_all_callers_leave_the_fetch_ends_and_what_came_is_kept(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    gate = origins.source.gate("model.safetensors", 3 * CHUNK)
    cancels = [Cancellation() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        callers = [threads.submit(cache.ensure, URI, cancel=cancel) for cancel in cancels]
        gate.await_readers()
        for cancel in cancels:
            cancel.cancel()
        for caller in callers:
            with pytest.raises(Cancelled):
                caller.result(DEADLINE_S)
    assert origins.source.open_bodies == 0
    gate.open()
    seen: list[Progress] = []
    check_kept(store, cache.ensure(URI, progress=seen.append), FILLED)
    assert seen[-1].bytes_reused >= 3 * CHUNK
    assert sum(origins.source.books.bytes.values()) == SIZE


@pytest.mark.parametrize("stated", [True, False])
def test_two_places_with_the_same_objects_at_once_fetch_each_once(
    cache: ModelCache, store: MemoryStore, origins: Origins, stated: bool
) -> None:
    """By the digest that both origins state, or by version where both are of one origin."""
    first = MemorySource(FILLED, state=state_sha256) if stated else origins.source
    second = MemorySource(FILLED, state=state_sha256, endpoint="memory://another:1") if stated else origins.source
    origins.by_uri = {"s3://one/model": first, "s3://two/model": second}
    gate = first.gate("model.safetensors")
    with ThreadPoolExecutor(2) as threads:
        one: Future[Snapshot] = threads.submit(cache.ensure, "s3://one/model")
        gate.await_readers()
        fetching = threading.Event()

        def look(progress: Progress) -> None:
            if progress.phase is Phase.FETCHING:
                fetching.set()

        two: Future[Snapshot] = threads.submit(cache.ensure, "s3://two/model", progress=look)
        assert fetching.wait(DEADLINE_S)
        gate.open()
        snapshots = {one.result(DEADLINE_S), two.result(DEADLINE_S)}
    assert len(snapshots) == 1
    check_kept(store, snapshots.pop(), FILLED)
    served = first.books.bytes if second is first else first.books.bytes + second.books.bytes
    assert served == {path: len(data) for path, data in FILLED.items()}
    assert {ref.key.uri for ref in store.refs()} == {"s3://one/model", "s3://two/model"}


def test_what_is_published_between_the_look_at_the_store_and_the_fetch_is_linked(
    cache: ModelCache, store: MemoryStore, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = store.ingest
    between = [True]

    def ingest_and_be_overtaken(key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None = None) -> MemoryIngest:
        if between and between.pop():
            cache.ensure("s3://two/model")
        return ingest(key, files, cancel)

    monkeypatch.setattr(store, "ingest", ingest_and_be_overtaken)
    seen: list[Progress] = []
    check_kept(store, cache.ensure("s3://one/model", progress=seen.append), FILLED)
    assert origins.source.books.bytes == {path: len(data) for path, data in FILLED.items()}
    assert (seen[-1].bytes_fetched, seen[-1].bytes_reused) == (0, SIZE)


def test_what_nothing_names_is_shared_with_nobody(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    """Without a validator or a digest, nobody knows that two requests give the same bytes."""
    source = origins.source = MemorySource(FILLED, resumable=False)
    gate = source.gate("model.safetensors")
    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(cache.ensure, uri) for uri in ("s3://one/model", "s3://two/model")]
        gate.await_readers(2)
        gate.open()
        snapshots = {caller.result(DEADLINE_S) for caller in callers}
    check_kept(store, snapshots.pop(), FILLED)
    assert source.books.bytes == {path: 2 * len(data) for path, data in FILLED.items()}


def test_a_credential_that_is_refused_refuses_nobody_else(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    origins.refused = {"X-Amz-Signature=bad"}
    listing, go_on = threading.Semaphore(0), threading.Event()

    def on_list() -> None:
        listing.release()
        assert go_on.wait(DEADLINE_S)

    origins.source.on_list = on_list
    base = "https://example.org/model.bin"
    with ThreadPoolExecutor(2) as threads:
        bad = threads.submit(cache.ensure, f"{base}?X-Amz-Signature=bad")
        assert listing.acquire(timeout=DEADLINE_S)
        good = threads.submit(cache.ensure, f"{base}?X-Amz-Signature=good")
        assert listing.acquire(timeout=DEADLINE_S)
        go_on.set()
        with pytest.raises(AccessDenied):
            bad.result(DEADLINE_S)
        check_kept(store, good.result(DEADLINE_S), FILLED)


def test_a_caller_who_waits_hurries_a_prewarming_it_joins_for_as_long_as_it_waits(
    cache: ModelCache, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensure, "LATELY_S", 0.5)
    gate = origins.source.gate("model.safetensors")

    def priorities() -> list[Priority]:
        return [fetch.priority for fetch in cache._engine._fetches]

    with ThreadPoolExecutor(2) as threads:
        prewarming = threads.submit(cache.ensure, URI, priority=Priority.PREWARM)
        gate.await_readers()
        assert priorities() == [Priority.PREWARM]
        cancel = Cancellation()
        gone = threads.submit(cache.ensure, URI, cancel=cancel)
        until(lambda: priorities() == [Priority.WAITING], "the hurry of who waits")
        cancel.cancel()
        with pytest.raises(Cancelled):
            gone.result(DEADLINE_S)
        until(lambda: priorities() == [Priority.PREWARM], "the hurry to go with who lent it")
        waiting = threads.submit(cache.ensure, URI)
        until(lambda: priorities() == [Priority.WAITING], "the hurry of the next one")
        gate.open()
        assert prewarming.result(DEADLINE_S) == waiting.result(DEADLINE_S)


def test_closing_cancels_who_waits(cache: ModelCache, origins: Origins) -> None:
    gate = origins.source.gate("model.safetensors")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.ensure, URI)
        gate.await_readers()
        cache.close()
        with pytest.raises(Cancelled):
            waiting.result(DEADLINE_S)
    cache.close()
    assert origins.source.open_bodies == 0


def test_closing_cancels_who_lists(cache: ModelCache, origins: Origins, monkeypatch: pytest.MonkeyPatch) -> None:
    listing, cancelled = threading.Event(), threading.Event()
    real = origins.source.list

    def list_slowly(uri: StorageUri, cancel: Cancellation) -> Listing:
        with cancel.on_cancel(cancelled.set):
            listing.set()
            assert cancelled.wait(DEADLINE_S)
        return real(uri, cancel)

    monkeypatch.setattr(origins.source, "list", list_slowly)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.ensure, URI)
        assert listing.wait(DEADLINE_S)
        cache.close()
        with pytest.raises(Cancelled):
            waiting.result(DEADLINE_S)
