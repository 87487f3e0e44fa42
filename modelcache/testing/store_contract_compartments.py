"""Store contract: compartments, of which nothing is shared with what is outside of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.abc.store import Limits, Store
from modelcache.errors import NoSpace
from modelcache.testing.store_filling import complete_all, content, digest_of, fill, manifest_of, ref_of, wanted, write_chunks
from modelcache.testing.store_fixtures import MODEL, Clock, Leftovers, MakeStore, Read, model
from modelcache.units import MIB

WEIGHTS = "weights/model.safetensors"
HOMES = ("", "team-a", "team-b")


class CompartmentContract:
    def test_each_has_its_own_bytes_of_one_model(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        shown = {}
        for number, home in enumerate(HOMES):
            assert not store.has_blob(digest_of(MODEL[WEIGHTS]), home)
            shown[home] = fill(store, MODEL, known=True, compartment=home)
            assert [store.has_blob(digest_of(MODEL[WEIGHTS]), each) for each in HOMES] == [at <= number for at in range(len(HOMES))]
        assert len({snapshot.digest for snapshot in shown.values()}) == len({snapshot.path for snapshot in shown.values()}) == len(HOMES)
        size_bytes = sum(map(len, MODEL.values()))
        assert [(info.own_bytes, info.shared_bytes) for info in store.list()] == [(size_bytes, 0)] * len(HOMES)
        assert (store.usage().content_bytes, store.usage().shared_bytes) == (3 * size_bytes, 0)
        for home, snapshot in shown.items():
            assert {path: read(snapshot, path) for path in MODEL} == MODEL
            assert store.manifest(snapshot.digest) == manifest_of(MODEL, home)
            key = ref_of(MODEL, compartment=home).key
            assert [head.key for info in store.list() if info.digest == snapshot.digest for head in info.refs] == [key]
            found = store.ref(key)
            assert found is not None
            assert found.manifest == snapshot.digest
        assert len(store.refs(ref_of(MODEL).key.uri)) == len(HOMES)
        assert leftovers() == []

    def test_within_one_bytes_are_shared_as_ever(self, store: Store) -> None:
        fill(store, MODEL, compartment="team-a")
        ingest = store.ingest(ref_of(MODEL, uri="s3://b/2", compartment="team-a").key, wanted(MODEL, known=True, compartment="team-a"))
        assert [file.sha256 for file in ingest.files] == [digest_of(data) for data in MODEL.values()]
        ingest.discard()

    def test_evicting_one_leaves_the_others(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        shown = {home: fill(store, MODEL, compartment=home) for home in HOMES}
        for home in HOMES:
            assert store.evict(shown[home].digest).freed_bytes > 9 * MIB
            assert not store.has_blob(digest_of(MODEL[WEIGHTS]), home)
        assert (store.list(), store.refs(), leftovers()) == ([], [], [])

    def test_nobody_waits_for_another_or_goes_on_with_what_it_began(self, store: Store, leftovers: Leftovers) -> None:
        first = store.ingest(ref_of(MODEL, compartment="team-a").key, wanted(MODEL, compartment="team-a"))
        write_chunks(first.files[1], MODEL[WEIGHTS], [0, 1])
        for home in ("team-b", ""):
            other = store.ingest(ref_of(MODEL, compartment=home).key, wanted(MODEL, compartment=home))
            assert [file.claimed for file in other.files] == [True] * len(MODEL)
            assert [(sight.here_bytes, sight.sha256) for sight in other.elsewhere(other.files)][:2] == [(0, None)] * 2
            other.discard()
        first.keep()
        other = store.ingest(ref_of(MODEL, compartment="team-b").key, wanted(MODEL, compartment="team-b"))
        assert dict(other.files[1].hints()) == {}
        other.discard()
        again = store.ingest(ref_of(MODEL, compartment="team-a").key, wanted(MODEL, compartment="team-a"))
        assert set(again.files[1].hints()) == {0, 1}
        again.discard()
        assert leftovers() == []

    def test_room_is_counted_and_made_over_all_of_them(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(Limits(max_bytes=3 * MIB + MIB // 2, high_watermark=1.0, low_watermark=1.0))
        oldest = fill(store, model(1), uri="s3://b/1", compartment="team-a")
        clock.pass_(100)
        for number, home in enumerate(("team-b", ""), 2):
            fill(store, model(1), uri=f"s3://b/{number}", compartment=home)
            assert len(store.list()) == number
            clock.pass_(100)
        fill(store, {"other": content(MIB, 9)}, uri="s3://b/4")
        assert len(store.list()) == 3
        assert store.snapshot(oldest.digest) is None
        for info in store.list():
            store.pin(info.digest, holder="user")
        with pytest.raises(NoSpace):
            store.ingest(ref_of(model(2), compartment="team-a").key, wanted(model(2), compartment="team-a"))

    def test_what_is_not_all_of_one_is_refused(self, store: Store, leftovers: Leftovers) -> None:
        with pytest.raises(ValueError, match="compartment"):
            store.ingest(ref_of(MODEL, compartment="team-a").key, wanted(MODEL))
        ingest = store.ingest(ref_of(MODEL, compartment="team-a").key, wanted(MODEL, compartment="team-a"))
        complete_all(ingest, MODEL)
        for home in ("", "team-b"):
            with pytest.raises(ValueError, match="compartment"):
                ingest.publish(
                    manifest_of(MODEL, home), replace(ref_of(MODEL, compartment="team-a"), manifest=manifest_of(MODEL, home).digest)
                )
        ingest.discard()
        assert (store.list(), leftovers()) == ([], [])
