"""When `ModelCache.ensure` asks the origin again, and what it does without one."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.source import RemoteFile
from modelcache.cache import ModelCache, Refresh
from modelcache.errors import DigestMismatch, InUse, NotCached
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from tests.unit.ensure.bench import FILLED, SIZE, check_kept
from tests.unit.ensure.origins import URI, Origins

pytestmark = pytest.mark.usefixtures("chunk_bytes")


def test_when_the_origin_is_asked_again(cache: ModelCache, store: MemoryStore, origins: Origins, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now_s[0])
    books = origins.source.books
    never = cast(Refresh, "never")  # as callers without types write it
    for refused in (Refresh.NEVER, never):
        with pytest.raises(NotCached):
            cache.ensure(URI, refresh=refused)
        with pytest.raises(NotCached):
            cache.cached(URI, refresh=refused)
        assert isinstance(cache.prewarm([URI], refresh=refused).outcomes[0].error, NotCached)
        assert [outcome.uri for outcome in cache.prewarm(URI, refresh=refused).outcomes] == [URI]  # and not each letter of it
    with pytest.raises(ValueError, match="sometimes"):
        cache.ensure(URI, refresh=cast(Refresh, "sometimes"))
    with pytest.raises(ValueError, match="high"):  # it ended the threads that fetch, and with them every later fetch
        cache.ensure(URI, priority=cast(Priority, "high"))
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
        check_kept(store, cache.ensure(URI, refresh=refresh, progress=seen.append), FILLED)
        assert books.listings == listings, (after_s, refresh)
        assert (seen[-1].phase, seen[-1].hit) == (Phase.DONE, True)
    assert sum(books.bytes.values()) == SIZE


def test_offline_shows_the_last_version_whatever_the_origin_has(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    cache.ensure(URI)
    origins.source.put("config.json", b"[]")
    check_kept(store, cache.ensure(URI, refresh=Refresh.NEVER), FILLED)
    check_kept(store, cache.ensure(URI, refresh=Refresh.ALWAYS), FILLED | {"config.json": b"[]"})
    check_kept(store, cache.ensure(URI, refresh=Refresh.NEVER), FILLED | {"config.json": b"[]"})


def test_an_evicted_snapshot_is_brought_in_again(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    with cache.open(URI) as snapshot, pytest.raises(InUse):
        cache.evict(URI)
    cache.evict(URI)
    assert store.snapshot(snapshot.digest) is None
    check_kept(store, cache.ensure(URI), FILLED)
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
        assert {path: store.file(snapshot.digest, path) for path in FILLED} == FILLED
    evictions += [1, 2, 3]
    with pytest.raises(NotCached, match="evicted each time"), cache.open(URI, refresh=Refresh.ALWAYS):
        pass


def test_a_ref_without_its_snapshot_can_be_removed(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    """The way out for who is told that an origin changed bytes under one validator."""
    cache.ensure(URI)
    lost = digest_of(FILLED["model.safetensors"])
    store.damage(lost, 100)
    cache.verify()
    assert store.snapshot(manifest_of(FILLED).digest) is None
    changed = FILLED | {"model.safetensors": content(9 * CHUNK + 7, 60)}
    origins.source.put("model.safetensors", changed["model.safetensors"], keep_version=True)
    with pytest.raises(DigestMismatch):
        cache.ensure(URI)
    cache.evict(URI, dry_run=True)
    assert len(store.refs(URI)) == 1
    assert cache.evict(URI).freed_bytes == 0
    assert store.refs(URI) == []
    with pytest.raises(NotCached):
        cache.evict(URI)
    check_kept(store, cache.ensure(URI), changed)


def test_a_place_that_shares_its_snapshot_is_forgotten_alone(cache: ModelCache, store: MemoryStore, origins: Origins) -> None:
    origins.by_uri = {"s3://two/model": MemorySource(FILLED, endpoint="memory://two:1")}
    snapshot = cache.ensure(URI)
    assert cache.ensure("s3://two/model") == snapshot
    assert cache.evict(URI).uris == (URI,)
    check_kept(store, snapshot, FILLED)
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
    check_kept(store, cache.ensure(URI), FILLED)
