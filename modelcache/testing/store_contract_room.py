"""Store contract: eviction and room."""

from __future__ import annotations

import pytest

from modelcache.abc.store import Limits, Store
from modelcache.errors import NoSpace, NotCached
from modelcache.testing.store_filling import complete_all, content, digest_of, fill, manifest_of, ref_of, wanted, write_chunks
from modelcache.testing.store_fixtures import MODEL, Clock, Leftovers, MakeStore, Read, model
from modelcache.units import MIB

BLOCK_BYTES = 4096
SLACK_BYTES = MIB // 4
"""What an ingest takes beside its files: plan, journal, lock."""


def limits(max_bytes: int) -> Limits:
    return Limits(max_bytes=max_bytes, high_watermark=1.0, low_watermark=1.0)


class RoomContract:
    def test_evict_removes_all_of_it(self, store: Store, leftovers: Leftovers) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        fill(store, MODEL, uri="s3://b/2")
        size = sum(-(-len(data) // BLOCK_BYTES) for data in MODEL.values()) * BLOCK_BYTES
        dry = store.evict(snapshot.digest, dry_run=True)
        assert (dry.digest, dry.uris) == (snapshot.digest, ("s3://b/1", "s3://b/2"))
        assert sum(map(len, MODEL.values())) <= dry.freed_bytes <= size
        assert store.snapshot(snapshot.digest) == snapshot
        assert store.evict(snapshot.digest) == dry
        assert store.snapshot(snapshot.digest) is None
        assert store.refs() == []
        assert store.list() == []
        assert not store.has_blob(digest_of(MODEL["config.json"]))
        assert leftovers() == []
        assert store.usage().blobs_bytes == 0
        for act in (store.evict, store.manifest):
            with pytest.raises(NotCached):
                act(snapshot.digest)

    def test_shared_blobs_stay_and_are_not_counted_as_freed(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        shared = content(2 * MIB, seed=7)
        first = fill(store, {"base": shared, "own": content(MIB, seed=1)}, uri="s3://b/1")
        second = fill(store, {"base": shared, "own": content(MIB, seed=2), "again": shared}, uri="s3://b/2")
        assert [(info.own_bytes, info.shared_bytes, info.freed_bytes) for info in store.list()] == [(MIB, 2 * MIB, MIB)] * 2
        usage = store.usage()
        assert (usage.content_bytes, usage.own_bytes, usage.shared_bytes) == (4 * MIB, 2 * MIB, 2 * MIB)
        assert store.evict(first.digest).freed_bytes == MIB
        usage = store.usage()
        assert (usage.content_bytes, usage.own_bytes, usage.shared_bytes) == (3 * MIB, 3 * MIB, 0)
        assert read(second, "base") == read(second, "again") == shared
        assert store.evict(second.digest).freed_bytes == 3 * MIB
        assert leftovers() == []

    def test_an_ingest_keeps_the_blobs_it_links(self, store: Store, read: Read) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        ref = ref_of(MODEL, uri="s3://b/2")
        ingest = store.ingest(ref.key, wanted(MODEL, known=True))
        assert store.evict(snapshot.digest).freed_bytes == 0
        published = ingest.publish(manifest_of(MODEL), ref)
        assert {path: read(published, path) for path in MODEL} == MODEL

    def test_too_large_a_model_is_refused_with_the_numbers(self, make_store: MakeStore, leftovers: Leftovers) -> None:
        store = make_store(limits(4 * MIB))
        held = fill(store, model(1), uri="s3://b/held")
        fill(store, model(2), uri="s3://b/evictable")
        store.pin(held.digest, holder="user")
        before = [info.digest for info in store.list()]
        with pytest.raises(NoSpace) as caught:
            store.ingest(ref_of(model(3)).key, wanted(model(3, 8 * MIB)))
        error = caught.value
        assert (error.needed_bytes, error.evictable_bytes, error.held_bytes) == (8 * MIB, MIB, MIB)
        assert 2 * MIB - SLACK_BYTES <= error.available_bytes <= 2 * MIB
        assert [info.digest for info in store.list()] == before
        store.unpin(held.digest)
        assert leftovers() == []

    def test_the_least_recently_used_make_room(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(limits(4 * MIB))
        snapshots = []
        for seed in range(3):
            clock.pass_(10)
            snapshots.append(fill(store, model(seed), uri=f"s3://b/{seed}"))
        clock.pass_(10)
        store.snapshot(snapshots[0].digest)
        with store.hold(snapshots[1].digest, holder="reader"):
            clock.pass_(10)
            new = fill(store, model(9, MIB + MIB // 2), uri="s3://b/new")
        assert {info.digest for info in store.list()} == {snapshots[0].digest, snapshots[1].digest, new.digest}
        assert store.refs("s3://b/2") == []

    def test_what_the_ingest_links_is_no_room(self, make_store: MakeStore) -> None:
        store = make_store(limits(4 * MIB))
        old = fill(store, model(1, 3 * MIB), uri="s3://b/old")
        files = {"base": model(1, 3 * MIB)["model.safetensors"], "more": content(2 * MIB, seed=2)}
        with pytest.raises(NoSpace):
            store.ingest(ref_of(files, uri="s3://b/new").key, wanted(files, known=True))
        assert store.snapshot(old.digest) is not None

    def test_an_interrupted_ingest_gives_way_to_what_is_needed(self, make_store: MakeStore, leftovers: Leftovers) -> None:
        store = make_store(limits(4 * MIB))
        ingest = store.ingest(ref_of(MODEL).key, wanted(model(1, 3 * MIB)))
        write_chunks(ingest.files[0], model(1, 3 * MIB)["model.safetensors"])
        ingest.keep()
        fill(store, model(2, 3 * MIB), uri="s3://b/needed")
        assert leftovers() == []

    def test_the_room_of_a_taken_over_ingest_is_not_booked_twice(self, make_store: MakeStore) -> None:
        store = make_store(limits(4 * MIB))
        files = model(1, 3 * MIB)
        for _ in range(3):
            store.ingest(ref_of(files).key, wanted(files)).keep()
        ingest = store.ingest(ref_of(files).key, wanted(files))
        complete_all(ingest, files)
        ingest.publish(manifest_of(files), ref_of(files))

    def test_refusal_leaves_an_interrupted_ingest_as_it_was(self, make_store: MakeStore) -> None:
        store = make_store(limits(4 * MIB))
        files = model(1, 2 * MIB)
        ingest = store.ingest(ref_of(files).key, wanted(files))
        write_chunks(ingest.files[0], files["model.safetensors"])
        ingest.keep()
        with pytest.raises(NoSpace):
            store.ingest(ref_of(files).key, wanted(files | {"huge": content(3 * MIB)}))
        again = store.ingest(ref_of(files).key, wanted(files))
        assert set(again.files[0].hints()) == {0}
        again.discard()

    def test_collect_makes_room_for_a_need(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(limits(4 * MIB))
        for seed in range(3):
            clock.pass_(10)
            fill(store, model(seed), uri=f"s3://b/{seed}")
        assert store.collect().evicted == ()
        assert store.collect(need_bytes=5 * MIB).evicted == ()
        dry = store.collect(need_bytes=2 * MIB + MIB // 2, dry_run=True)
        assert [item.uris for item in dry.evicted] == [("s3://b/0",), ("s3://b/1",)]
        assert dry.freed_bytes == 2 * MIB
        assert len(store.list()) == 3
        real = store.collect(need_bytes=2 * MIB + MIB // 2)
        assert (real.evicted, real.freed_bytes) == (dry.evicted, dry.freed_bytes)
        assert [ref.key.uri for ref in store.refs()] == ["s3://b/2"]

    def test_a_passed_cap_is_come_back_under(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(limits(8 * MIB))
        for seed in range(3):
            clock.pass_(10)
            fill(store, model(seed), uri=f"s3://b/{seed}")
        smaller = make_store(limits(2 * MIB + MIB // 2))
        assert smaller.usage().available_bytes == 0
        assert [item.uris for item in smaller.collect().evicted] == [("s3://b/0",)]

    def test_usage(self, make_store: MakeStore) -> None:
        store = make_store(limits(8 * MIB))
        shared = content(MIB, seed=5)
        first = fill(store, {"base": shared, "own": content(MIB, seed=1)}, uri="s3://b/1")
        fill(store, {"base": shared, "own": content(MIB, seed=2)}, uri="s3://b/2")
        ingest = store.ingest(ref_of(model(3)).key, wanted(model(3)))
        with store.hold(first.digest, holder="reader"):
            usage = store.usage()
        assert (usage.blobs_bytes, usage.leased_bytes, usage.pinned_bytes, usage.evictable_bytes) == (3 * MIB, 2 * MIB, 0, MIB)
        assert MIB <= usage.ingest_bytes <= MIB + SLACK_BYTES
        assert 4 * MIB - SLACK_BYTES <= usage.available_bytes <= 4 * MIB
        assert usage.trash_bytes == usage.quarantine_bytes == 0
        assert usage.available_bytes <= usage.free_bytes <= usage.file_system_bytes
        assert usage.limits == limits(8 * MIB)
        ingest.discard()
