"""Store contract: snapshots and refs."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from modelcache.abc.snapshot import Ref, RefFile, RefKey
from modelcache.abc.store import Store
from modelcache.digest import Algorithm, Digest
from modelcache.errors import NotCached
from modelcache.testing.store_filling import complete_all, digest_of, fill, manifest_of, ref_of, wanted
from modelcache.testing.store_fixtures import MODEL, Clock, Leftovers, Read, model

NAMES = {
    "unicode": ["größe/模型.safetensors", "emoji-🤖.json", "with space and 'quotes' \"too\" \\ *?.txt"],
    "composition": [unicodedata.normalize("NFC", "é.txt"), unicodedata.normalize("NFD", "é.txt")],
    "case": ["README.md", "Readme.md", "A/x", "a/x"],
    "long": ["n" * 250, "d" * 250 + "/" + "f" * 250, "/".join(["deep"] * 100)],
    "dots": [".hidden", "..twice", "dir.with.dots/.gitattributes", ".tmp-0123456789abcdef"],
    "ours": ["lock", "format", "journal", "plan.json", "tree/tree", "manifest.json"],
}


class SnapshotContract:
    def test_nothing_is_seen_before_publish_and_all_of_it_after(self, store: Store, read: Read) -> None:
        ref = ref_of(MODEL)
        ingest = store.ingest(ref.key, wanted(MODEL))
        complete_all(ingest, MODEL)
        assert (store.snapshot(ref.manifest), store.ref(ref.key), store.refs(), store.list()) == (None, None, [], [])
        with pytest.raises(NotCached):
            store.manifest(ref.manifest)
        published = ingest.publish(manifest_of(MODEL), ref)
        assert published.digest == ref.manifest
        assert store.snapshot(ref.manifest) == published
        assert store.manifest(ref.manifest) == manifest_of(MODEL)
        assert {path: read(published, path) for path in MODEL} == MODEL
        assert store.ref(ref.key) == ref
        assert store.refs() == [ref]
        assert store.refs(ref.key.uri) == [ref]
        assert store.refs(ref.key.uri + "/") == []

    def test_a_snapshot_leaves_nothing_beside_itself(self, store: Store, leftovers: Leftovers) -> None:
        fill(store, MODEL)
        assert leftovers() == []

    def test_what_ls_shows(self, store: Store, clock: Clock) -> None:
        first, second = MODEL | {"more.bin": b"m" * 5000}, MODEL
        for number, files in enumerate((first, second)):
            clock.pass_(100)
            fill(store, files, uri=f"s3://b/{number}", known=True)
        clock.pass_(100)
        store.snapshot(manifest_of(first).digest)
        infos = store.list()
        assert [info.digest for info in infos] == [manifest_of(first).digest, manifest_of(second).digest]
        assert [info.last_used_at_s for info in infos] == [clock(), clock() - 100]
        assert [info.size_bytes for info in infos] == [manifest_of(first).size_bytes, manifest_of(second).size_bytes]
        assert [info.own_bytes for info in infos] == [5000, 0]
        assert [info.file_count for info in infos] == [4, 3]
        assert [[ref.key.uri for ref in info.refs] for info in infos] == [["s3://b/0"], ["s3://b/1"]]
        assert [store.info(info.digest) for info in infos] == infos
        assert store.info(digest_of(b"another")) is None
        assert (store.usage().snapshots, store.usage().apart_bytes) == (2, sum(info.size_bytes for info in infos))

    def test_one_content_under_two_uris_is_one_snapshot(self, store: Store, read: Read) -> None:
        first = fill(store, MODEL, uri="s3://b/1")
        before = store.usage().blobs_bytes
        second = fill(store, MODEL, uri="s3://b/2")
        assert first == second
        assert store.usage().blobs_bytes == before
        assert [ref.key.uri for ref in store.list()[0].refs] == ["s3://b/1", "s3://b/2"]

    def test_one_file_in_two_models_is_kept_once(self, store: Store, read: Read) -> None:
        first = fill(store, MODEL, uri="s3://b/1")
        before = store.usage().blobs_bytes
        files = {f"moved/{path}": data for path, data in MODEL.items()} | {"twice": MODEL["config.json"], "small": b"s"}
        second = fill(store, files, uri="s3://b/2")
        assert 0 < store.usage().blobs_bytes - before <= 4096
        assert first != second
        assert {path: read(second, path) for path in files} == files

    def test_the_second_ingest_of_known_digests_books_nothing(self, store: Store) -> None:
        fill(store, MODEL, uri="s3://b/1")
        ref = ref_of(MODEL, uri="s3://b/2")
        ingest = store.ingest(ref.key, wanted(MODEL, known=True))
        assert ingest.reserved_bytes == 0
        assert [file.sha256 for file in ingest.files] == [digest_of(data) for data in MODEL.values()]
        assert ingest.publish(manifest_of(MODEL), ref).digest == ref.manifest
        assert store.ref(ref.key) == ref

    @pytest.mark.parametrize("kind", NAMES)
    def test_names(self, store: Store, read: Read, leftovers: Leftovers, kind: str) -> None:
        files = {name: name.encode() for name in NAMES[kind]}
        snapshot = fill(store, files)
        assert {name: read(snapshot, name) for name in files} == files
        store.evict(snapshot.digest)
        assert leftovers() == []

    def test_a_model_of_empty_files(self, store: Store, read: Read) -> None:
        files = {"a/empty": b"", "b/empty": b""}
        assert store.has_blob(digest_of(b""))
        snapshot = fill(store, files, known=True)
        assert {path: read(snapshot, path) for path in files} == files
        assert store.list()[0].size_bytes == store.evict(snapshot.digest).freed_bytes == 0

    def test_refs_by_origin(self, store: Store) -> None:
        for origin, files in (("https://a:443", model(1, 5000)), ("https://b:443", model(2, 5000))):
            fill(store, files, origin=origin)
        assert {ref.key.origin: ref.manifest for ref in store.refs(ref_of(MODEL).key.uri)} == {
            "https://a:443": manifest_of(model(1, 5000)).digest,
            "https://b:443": manifest_of(model(2, 5000)).digest,
        }

    def test_a_ref_comes_back_as_it_was(self, store: Store) -> None:
        fill(store, {"w": b"w"})
        stated = (Digest(Algorithm.MD5, "0" * 32), digest_of(b"w"))
        ref = Ref(
            key=RefKey('hf://o/m:ünï"{}\n', "https://huggingface.co:443#ca=00ff"),
            revision="0" * 40,
            immutable=True,
            manifest=manifest_of({"w": b"w"}).digest,
            files=(RefFile("w", 1, '"etag"', digest_of(b"w"), stated),),
            created_at_s=1700000000.123456,
            checked_at_s=1.0,
        )
        assert store.attach(ref) is not None
        assert store.ref(ref.key) == ref

    def test_touch_renews_what_is_there_only(self, store: Store) -> None:
        fill(store, MODEL)
        ref = ref_of(MODEL)
        renewed = store.touch(ref, checked_at_s=ref.checked_at_s + 60)
        assert renewed == replace(ref, checked_at_s=ref.checked_at_s + 60)
        assert store.ref(ref.key) == renewed
        fill(store, model(1, 100))  # The same URI, another version.
        store.touch(ref, checked_at_s=ref.checked_at_s + 120)
        assert store.ref(ref.key) == ref_of(model(1, 100))
        store.forget(ref.key)
        store.touch(ref, checked_at_s=ref.checked_at_s + 180)
        assert store.ref(ref.key) is None

    def test_attach_and_forget(self, store: Store) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        other = ref_of(MODEL, uri="s3://b/2")
        assert store.attach(other) == snapshot
        assert store.refs("s3://b/2") == [other]
        assert store.forget(other.key)
        assert not store.forget(other.key)
        assert store.ref(other.key) is None
        assert store.snapshot(snapshot.digest) == snapshot
        store.evict(snapshot.digest)
        assert store.attach(other) is None
        assert store.ref(other.key) is None
