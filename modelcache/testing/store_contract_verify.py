"""Store contract: verification."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.abc.store import Store
from modelcache.chunks import CHUNK_BYTES
from modelcache.digest import sha256
from modelcache.errors import Cancelled, DamagedBlob, NotCached
from modelcache.patience import Cancellation
from modelcache.testing.store_filling import complete_all, digest_of, fill, manifest_of, ref_of, wanted
from modelcache.testing.store_fixtures import MODEL, DamageBlob, Read

WEIGHTS = "weights/model.safetensors"


class VerifyContract:
    @pytest.mark.parametrize("all_of_it", [False, True])
    def test_a_sound_store(self, store: Store, all_of_it: bool) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        fill(store, {"other": b"other"}, uri="s3://b/2")
        seen: list[tuple[int, int]] = []
        report = store.verify(None if all_of_it else snapshot.digest, Cancellation(), lambda done, total: seen.append((done, total)))
        size = sum(map(len, MODEL.values())) + (5 if all_of_it else 0)
        assert report.damages == ()
        assert (report.snapshots, report.bytes_read) == ((2, size) if all_of_it else (1, size))
        assert seen[-1] == (size, size)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    @pytest.mark.parametrize(("offset", "chunk"), [(0, 0), (CHUNK_BYTES, 1), (len(MODEL[WEIGHTS]) - 1, 2)])
    def test_a_flipped_byte_is_found_and_withdrawn(self, store: Store, damage: DamageBlob, read: Read, offset: int, chunk: int) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        also = fill(store, {"same": MODEL[WEIGHTS]}, uri="s3://b/2")
        sound = fill(store, {"config.json": MODEL["config.json"]}, uri="s3://b/3")
        damage(digest_of(MODEL[WEIGHTS]), offset)
        report = store.verify(snapshot.digest, Cancellation())
        (found,) = report.damages
        assert (found.digest, found.chunks) == (digest_of(MODEL[WEIGHTS]), (chunk,))
        assert set(found.withdrawn) == {snapshot.digest, also.digest}
        assert found.still_held == ()
        gone = {snapshot.digest: ("s3://b/1",), also.digest: ("s3://b/2",)}
        assert {item.digest: item.uris for item in report.out_of_service} == gone
        later = store.verify(None, Cancellation())
        assert (later.damages, {item.digest: item.uris for item in later.out_of_service}) == ((), gone), "until it is fetched or forgotten"
        assert store.verify(sound.digest, Cancellation()).out_of_service == ()
        assert store.snapshot(snapshot.digest) is None
        assert store.snapshot(also.digest) is None
        assert store.snapshot(sound.digest) == sound
        assert not store.has_blob(digest_of(MODEL[WEIGHTS]))
        assert store.ref(ref_of(MODEL, uri="s3://b/1").key) is not None
        again = fill(store, MODEL, uri="s3://b/1", known=True)
        assert {path: read(again, path) for path in MODEL} == MODEL
        store.forget(ref_of({"same": MODEL[WEIGHTS]}, uri="s3://b/2").key)
        last = store.verify(None, Cancellation())
        assert (last.damages, last.out_of_service) == ((), ())

    def test_damage_of_one_chunk_files(self, store: Store, damage: DamageBlob) -> None:
        fill(store, MODEL)
        damage(digest_of(MODEL["config.json"]), 3)
        (found,) = store.verify(None, Cancellation()).damages
        assert (found.digest, found.chunks) == (digest_of(MODEL["config.json"]), (0,))

    def test_a_held_snapshot_stays(self, store: Store, damage: DamageBlob) -> None:
        snapshot = fill(store, MODEL)
        store.pin(snapshot.digest, holder="user")
        damage(digest_of(MODEL[WEIGHTS]), 5)
        (found,) = store.verify(None, Cancellation()).damages
        assert (found.withdrawn, found.still_held) == ((), (snapshot.digest,))
        assert store.verify(None, Cancellation()).out_of_service == ()
        assert store.snapshot(snapshot.digest) == snapshot
        assert not store.has_blob(digest_of(MODEL[WEIGHTS]))

    def test_a_blob_found_damaged_is_not_published_by_who_held_it(self, store: Store, damage: DamageBlob, read: Read) -> None:
        fill(store, MODEL, uri="s3://b/1")
        both = {"a/weights": MODEL[WEIGHTS], "new": b"new"}
        ref = ref_of(both, uri="s3://b/2")
        ingest = store.ingest(
            ref.key, [replace(file, sha256=None if file.path == "new" else file.sha256) for file in wanted(both, known=True)]
        )
        assert ingest.files[0].sha256 is not None
        damage(digest_of(MODEL[WEIGHTS]), 5)
        assert len(store.verify(None, Cancellation()).damages) == 1
        complete_all(ingest, both)
        with pytest.raises(DamagedBlob, match="a/weights"):
            ingest.publish(manifest_of(both), ref)
        ingest.keep()
        assert (store.list(), store.ref(ref.key)) == ([], None)
        again = store.ingest(ref.key, wanted(both))
        assert [file.sha256 for file in again.files] == [None, digest_of(b"new")]
        assert again.files[0].hints() == {}
        complete_all(again, both)
        snapshot = again.publish(manifest_of(both), ref)
        assert {path: read(snapshot, path) for path in both} == both
        assert store.verify(None, Cancellation()).damages == ()

    def test_it_can_be_cancelled(self, store: Store) -> None:
        fill(store, MODEL)
        cancel = Cancellation()
        cancel.cancel()
        with pytest.raises(Cancelled):
            store.verify(None, cancel)

    def test_what_is_not_there(self, store: Store) -> None:
        assert store.verify(None, Cancellation()).snapshots == 0
        with pytest.raises(NotCached):
            store.verify(sha256("0" * 64), Cancellation())
