"""`ModelCache.ensure` by many callers at once, over a store and an origin that are dicts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import modelcache.cache
from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.source import Listing, RemoteFile
from modelcache.abc.store import Limits
from modelcache.cache import ModelCache, Refresh
from modelcache.config import Config
from modelcache.errors import AccessDenied, Cancelled, DigestMismatch, InUse, NotCached
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.registry import Registry
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.memory_ingest import MemoryIngest
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from modelcache.uri import StorageUri, UriSecrets

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0
MODEL = {"config.json": b"{}", "model.safetensors": content(9 * CHUNK + 7, 1), "other.safetensors": content(5 * CHUNK, 2)}
SIZE = sum(map(len, MODEL.values()))
URI = "s3://bucket/model"


class Origins:
    """Which source answers for a URI and its secrets; counts the time that each was lent for."""

    def __init__(self) -> None:
        self.source = MemorySource(MODEL)
        self.by_uri: dict[str, MemorySource] = {}
        self.refused: set[str] = set()

    @contextmanager
    def lend(self, registry: Registry, uri: StorageUri, secrets: UriSecrets) -> Iterator[list[MemorySource]]:
        source = self.by_uri.get(str(uri), self.source)
        yield [_Refusing(source) if secrets.query in self.refused else source]


class _Refusing(MemorySource):
    """The same origin, asked with a credential that it refuses."""

    def __init__(self, source: MemorySource) -> None:
        super().__init__({}, endpoint=source.origin.endpoint)
        self._asked = source

        def refuse() -> None:
            source.on_list()
            raise AccessDenied("403")

        self.on_list = refuse


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def origins() -> Origins:
    return Origins()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, store: MemoryStore, origins: Origins, tmp_path: Path) -> Iterator[ModelCache]:
    def open_store(root: Path, limits: Limits, **_: bool) -> MemoryStore:
        return store

    monkeypatch.setattr(modelcache.cache, "LocalStore", open_store)
    monkeypatch.setattr(Registry, "sources", lambda registry, uri, secrets: origins.lend(registry, uri, secrets))
    with ModelCache(config=Config(root=tmp_path)) as opened:
        yield opened


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


def check(store: MemoryStore, snapshot: Snapshot, files: dict[str, bytes]) -> None:
    assert snapshot.digest == manifest_of(files).digest
    assert {path: store.file(snapshot.digest, path) for path in files} == files
    assert store.leftovers() == []


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
    check(store, snapshots.pop(), MODEL)
    assert origins.source.books.listings == 1
    assert origins.source.books.bytes == {path: len(data) for path, data in MODEL.items()}
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
    check(store, cache.ensure(URI, progress=seen.append), MODEL)
    assert seen[-1].bytes_reused >= 3 * CHUNK
    assert sum(origins.source.books.bytes.values()) == SIZE


@pytest.mark.parametrize("stated", [True, False])
def test_two_places_with_the_same_objects_at_once_fetch_each_once(
    cache: ModelCache, store: MemoryStore, origins: Origins, stated: bool
) -> None:
    """By the digest that both origins state, or by version where both are of one origin."""
    first = MemorySource(MODEL, state=state_sha256) if stated else origins.source
    second = MemorySource(MODEL, state=state_sha256, endpoint="memory://another:1") if stated else origins.source
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
    check(store, snapshots.pop(), MODEL)
    served = first.books.bytes if second is first else first.books.bytes + second.books.bytes
    assert served == {path: len(data) for path, data in MODEL.items()}
    assert {ref.key.uri for ref in store.refs()} == {"s3://one/model", "s3://two/model"}


def test_what_is_published_between_the_look_at_the_store_and_the_fetch_is_linked(
    cache: ModelCache, store: MemoryStore, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = store.ingest
    between = [True]

    def ingest_and_be_overtaken(key: RefKey, files: Sequence[IngestFile]) -> MemoryIngest:
        if between and between.pop():
            cache.ensure("s3://two/model")
        return ingest(key, files)

    monkeypatch.setattr(store, "ingest", ingest_and_be_overtaken)
    seen: list[Progress] = []
    check(store, cache.ensure("s3://one/model", progress=seen.append), MODEL)
    assert origins.source.books.bytes == {path: len(data) for path, data in MODEL.items()}
    assert (seen[-1].bytes_fetched, seen[-1].bytes_reused) == (0, SIZE)


def test_what_nothing_names_is_shared_with_nobody(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    """Without a validator or a digest, nobody knows that two requests give the same bytes."""
    source = origins.source = MemorySource(MODEL, resumable=False)
    gate = source.gate("model.safetensors")
    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(cache.ensure, uri) for uri in ("s3://one/model", "s3://two/model")]
        gate.await_readers(2)
        gate.open()
        snapshots = {caller.result(DEADLINE_S) for caller in callers}
    check(store, snapshots.pop(), MODEL)
    assert source.books.bytes == {path: 2 * len(data) for path, data in MODEL.items()}


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
        check(store, good.result(DEADLINE_S), MODEL)


def test_a_caller_who_waits_hurries_a_prewarming_it_joins(cache: ModelCache, origins: Origins) -> None:
    gate = origins.source.gate("model.safetensors")
    hurried = threading.Event()
    hurry = cache._engine.hurry

    def noting(fetch: object, priority: Priority) -> None:
        hurry(fetch, priority)  # type: ignore[arg-type]
        if priority is Priority.WAITING:
            hurried.set()

    cache._engine.hurry = noting  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as threads:
        prewarming = threads.submit(cache.ensure, URI, priority=Priority.PREWARM)
        gate.await_readers()
        assert not hurried.is_set()
        assert [fetch.priority for fetch in cache._engine._fetches] == [Priority.PREWARM]
        waiting = threads.submit(cache.ensure, URI)
        assert hurried.wait(DEADLINE_S)
        assert [fetch.priority for fetch in cache._engine._fetches] == [Priority.WAITING]
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


# -- when the origin is asked -----------------------------------------------------------------------------------------------


def test_when_the_origin_is_asked_again(cache: ModelCache, store: MemoryStore, origins: Origins, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now_s[0])
    books = origins.source.books
    with pytest.raises(NotCached):
        cache.ensure(URI, refresh=Refresh.NEVER)
    assert books.listings == 0
    cache.ensure(URI)
    for after_s, refresh, listings in (
        (599.0, Refresh.AUTO, 1),
        (599.0, Refresh.ALWAYS, 2),
        (600.0, Refresh.AUTO, 3),
        (-5000.0, Refresh.AUTO, 4),  # the clock went back: what is from the future says nothing
        (1e9, Refresh.NEVER, 4),
    ):
        now_s[0] += after_s
        seen: list[Progress] = []
        check(store, cache.ensure(URI, refresh=refresh, progress=seen.append), MODEL)
        assert books.listings == listings, (after_s, refresh)
        assert (seen[-1].phase, seen[-1].hit) == (Phase.DONE, True)
    assert sum(books.bytes.values()) == SIZE


def test_offline_shows_the_last_version_whatever_the_origin_has(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    cache.ensure(URI)
    origins.source.put("config.json", b"[]")
    check(store, cache.ensure(URI, refresh=Refresh.NEVER), MODEL)
    check(store, cache.ensure(URI, refresh=Refresh.ALWAYS), MODEL | {"config.json": b"[]"})
    check(store, cache.ensure(URI, refresh=Refresh.NEVER), MODEL | {"config.json": b"[]"})


def test_an_evicted_snapshot_is_brought_in_again(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    with cache.open(URI) as snapshot, pytest.raises(InUse):
        cache.evict(URI)
    cache.evict(URI)
    assert store.snapshot(snapshot.digest) is None
    check(store, cache.ensure(URI), MODEL)
    assert sum(origins.source.books.bytes.values()) == 2 * SIZE


def test_what_is_evicted_before_it_can_be_held_is_brought_in_again_and_not_forever(
    cache: ModelCache, store: MemoryStore, origins: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure = cache.ensure
    evictions = [1, 2]

    def ensure_and_lose(uri: str, **options: object) -> Snapshot:
        snapshot = ensure(uri, **options)  # type: ignore[arg-type]
        if evictions:
            evictions.pop()
            store.evict(snapshot.digest)
        return snapshot

    monkeypatch.setattr(cache, "ensure", ensure_and_lose)
    with cache.open(URI) as snapshot:
        assert {path: store.file(snapshot.digest, path) for path in MODEL} == MODEL
    evictions += [1, 2, 3]
    with pytest.raises(NotCached, match="evicted each time"), cache.open(URI, refresh=Refresh.ALWAYS):
        pass


def test_a_ref_without_its_snapshot_can_be_removed(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    """The way out for who is told that an origin changed bytes under one validator."""
    cache.ensure(URI)
    lost = digest_of(MODEL["model.safetensors"])
    store.damage(lost, 100)
    cache.verify()
    assert store.snapshot(manifest_of(MODEL).digest) is None
    changed = MODEL | {"model.safetensors": content(9 * CHUNK + 7, 60)}
    origins.source.put("model.safetensors", changed["model.safetensors"], keep_version=True)
    with pytest.raises(DigestMismatch):
        cache.ensure(URI)
    cache.evict(URI, dry_run=True)
    assert len(store.refs(URI)) == 1
    assert cache.evict(URI).freed_bytes == 0
    assert store.refs(URI) == []
    with pytest.raises(NotCached):
        cache.evict(URI)
    check(store, cache.ensure(URI), changed)


def test_a_place_that_shares_its_snapshot_is_forgotten_alone(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    origins.by_uri = {"s3://two/model": MemorySource(MODEL, endpoint="memory://two:1")}
    snapshot = cache.ensure(URI)
    assert cache.ensure("s3://two/model") == snapshot
    assert cache.evict(URI).uris == (URI,)
    check(store, snapshot, MODEL)
    assert cache.evict("s3://two/model").freed_bytes == SIZE
    assert cache.list() == []


def test_a_progress_callback_that_raises_ends_its_own_wait(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    opened = threading.Event()

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        opened.set()

    origins.source.on_open = on_open
    gate = origins.source.gate("model.safetensors")

    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.ensure(URI, progress=fail)
    assert opened.is_set()
    assert origins.source.open_bodies == 0
    gate.open()
    check(store, cache.ensure(URI), MODEL)
