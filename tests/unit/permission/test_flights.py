"""Callers at the same time through `ModelCache`: whose fetch is shared with whom."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.cache import ModelCache, Refresh
from modelcache.errors import AccessDenied, AccessUnproved, NotCached
from modelcache.fetch.progress import Progress
from modelcache.permission import Caller
from modelcache.ranges import ByteRange
from modelcache.registry import Registry
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import small_chunks
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from modelcache.uri import StorageUri, UriSecrets
from tests.unit.dict_cache import cache_over

MODEL = {"config.json": b"{}", "model.safetensors": content(9 * CHUNK + 7, 1)}
URI = "s3://bucket/model"
KEYS = ("good", "fine", "bad")


class Bucket:
    """One origin, and what each key sees of it."""

    def __init__(self) -> None:
        self.origin = MemorySource(MODEL)
        self.views = {key: GuardedSource(self.origin, lambda path, key=key: key != "bad") for key in KEYS}  # type: ignore[misc]

    @contextmanager
    def lend(self, registry: Registry, uri: StorageUri, secrets: UriSecrets) -> Iterator[list[GuardedSource]]:
        key = registry._config.s3.access_key
        yield [GuardedSource(self.origin, lambda path: True) if key is None else self.views[key]]


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def cache(store: MemoryStore, bucket: Bucket, tmp_path: Path) -> Iterator[ModelCache]:
    with small_chunks(), cache_over(store, bucket.lend, tmp_path) as opened:
        yield opened


def caller(cache: ModelCache, who: str, key: str) -> Caller:
    namespace, _, account = who.partition("/")
    s3 = replace(cache.config.s3, access_key=key, secret_key="secret")
    return Caller(namespace, account, key.encode(), replace(cache.config, s3=s3))


def test_one_caller_shares_a_flight_and_others_prove_for_themselves(cache: ModelCache, store: MemoryStore, bucket: Bucket) -> None:
    gate = bucket.origin.gate("model.safetensors", 8 * CHUNK)
    me, other, nobody = caller(cache, "a/x", "good"), caller(cache, "b/x", "fine"), caller(cache, "c/x", "bad")
    looks: list[Progress] = []
    with ThreadPoolExecutor(4) as threads:
        mine = [threads.submit(cache.ensure, URI, caller=me)]
        gate.await_readers()
        listings = bucket.origin.books.listings
        mine.append(threads.submit(cache.ensure, URI, caller=me, progress=looks.append))
        theirs = threads.submit(cache.ensure, URI, caller=other)
        with pytest.raises(AccessDenied):
            cache.ensure(URI, caller=nobody)
        gate.open()
        found = {each.result(20).digest for each in (*mine, theirs)}
    assert found == {manifest_of(MODEL).digest}
    assert looks[-1].phase == "done"
    assert bucket.origin.books.listings == listings + 2  # none of mine again
    assert ("model.safetensors", ByteRange(0, 1)) in bucket.views["fine"].opened
    assert sum(bucket.origin.books.bytes.values()) <= sum(map(len, MODEL.values())) + 2 * len(MODEL)
    assert bucket.views["bad"].opened == []
    assert cache.denials.by_code == {"access-denied": 1}
    assert store.leftovers() == []


def test_a_flight_of_the_owner_gives_a_caller_nothing(cache: ModelCache, bucket: Bucket) -> None:
    gate = bucket.origin.gate("model.safetensors", 8 * CHUNK)
    nobody = caller(cache, "c/x", "bad")
    with ThreadPoolExecutor(1) as threads:
        owners = threads.submit(cache.ensure, URI)
        gate.await_readers()
        with pytest.raises(AccessDenied):
            cache.ensure(URI, caller=nobody)
        gate.open()
        snapshot = owners.result(20)
    for refresh in (Refresh.AUTO, Refresh.ALWAYS, Refresh.NEVER):
        with pytest.raises(AccessDenied):
            cache.ensure(URI, refresh=refresh, caller=nobody)
    with pytest.raises(AccessUnproved):
        cache.check(URI, snapshot.digest, nobody)


def test_what_is_checked_at_the_bind(cache: ModelCache, store: MemoryStore) -> None:
    """This caller, this URI, this snapshot, and a credential that is still the same."""
    me = caller(cache, "a/x", "good")
    snapshot = cache.ensure(URI, caller=me)
    cache.check(URI, snapshot.digest, me)
    others = [
        (URI, snapshot.digest, caller(cache, "a/x", "fine")),
        (URI, snapshot.digest, caller(cache, "a/y", "good")),
        (URI, snapshot.digest, caller(cache, "b/x", "good")),
        ("s3://bucket/other", snapshot.digest, me),
        (URI, digest_of(b"other"), me),
    ]
    for uri, digest, who in others:
        with pytest.raises(AccessUnproved):
            cache.check(uri, digest, who)
    store.evict(snapshot.digest)
    with pytest.raises(NotCached):
        cache.ensure(URI, refresh=Refresh.NEVER, caller=me)
