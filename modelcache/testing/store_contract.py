"""What every `Store` must do; subclassed once per store, with fixtures around the store under test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelcache.abc.store import Snapshot, Store
from modelcache.errors import InUse, NotCached
from modelcache.testing.store_filling import content, digest_of, fill, manifest_of, ref_of, wanted

MODEL = {"config.json": b'{"model_type": "tiny"}\n', "weights/model.safetensors": content(5_000_000, seed=1), "empty": b""}


class StoreContract:
    """A subclass gives the fixtures `store`, `read` (snapshot, path → bytes) and `leftovers` (what is on the disk and is part of
    no snapshot, found by looking there and not through the store)."""

    def test_published_files_read_back(self, store: Store, read: Callable[[Snapshot, str], bytes]) -> None:
        snapshot = fill(store, MODEL)
        assert snapshot.digest == manifest_of(MODEL).digest
        assert {path: read(snapshot, path) for path in MODEL} == MODEL
        assert store.manifest(snapshot.digest) == manifest_of(MODEL)

    def test_discard_leaves_nothing(self, store: Store, leftovers: Callable[[], list[str]]) -> None:
        ref = ref_of(MODEL)
        ingest = store.ingest(ref.key, wanted(MODEL))
        assert ingest.reserved_bytes == sum(len(data) for data in MODEL.values())
        ingest.discard()
        ingest.discard()
        assert leftovers() == []
        assert store.snapshot(ref.manifest) is None

    def test_a_held_snapshot_is_not_evicted(self, store: Store) -> None:
        snapshot = fill(store, MODEL)
        with store.hold(snapshot.digest, holder="test"), pytest.raises(InUse):
            store.evict(snapshot.digest)
        store.evict(snapshot.digest)
        assert store.snapshot(snapshot.digest) is None
        assert not store.has_blob(digest_of(MODEL["config.json"]))
        with pytest.raises(NotCached):
            store.evict(snapshot.digest)
