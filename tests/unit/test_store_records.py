"""Records that a failing disk, or a stray hand, damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.abc.store import Limits
from modelcache.errors import DamagedRecord, ModelCacheError, NoSpace
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import fill, manifest_of, ref_of, wanted
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS, model
from modelcache.units import MIB

DAMAGES = {
    "empty": b"",
    "torn": b'{"checked_at_s":17000',
    "no object": b"[]\n",
    "another version": b'{"version":2}\n',
    "fields missing": b'{"version":1}\n',
    "not UTF-8": b"\xff\xfe\n",
    "deep": b"[" * 100_000,
}


REBUILT = {"text for number", "integer for bool", "short digest", "bad stated"}
"""Damages of a ref that leave enough of it: its URI and origin prove themselves by its name, its files by their digest."""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


def only(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def wrong_types(data: bytes) -> dict[str, bytes]:
    return {
        "number for text": data.replace(b'"s3://models/tiny"', b"7"),
        "text for number": data.replace(b"1700000000.0", b'"now"'),
        "integer for bool": data.replace(b"false", b"0"),
        "short digest": data.replace(manifest_of(MODEL).digest.hex.encode(), b"00ff"),
        "bad stated": data.replace(b'"stated":[]', b'"stated":["sha3:00"]'),
    }


def test_a_damaged_ref_is_as_good_as_none(store: LocalStore) -> None:
    fill(store, MODEL, uri="s3://b/sound")
    fill(store, MODEL)
    path = next(path for path in (store.root / "refs").iterdir() if b"s3://models/tiny" in path.read_bytes())
    whole = path.read_bytes()
    for name, data in (DAMAGES | wrong_types(whole)).items():
        path.write_bytes(data)
        os.utime(path, (0, len(data)))
        assert store.ref(ref_of(MODEL).key) is None, name
        assert store.refs(ref_of(MODEL).key.uri) == [], name
        assert [ref.key.uri for ref in store.refs()] == ["s3://b/sound"], name
        assert len(store.list()[0].refs) == (2 if name == "bad stated" else 1), name
        (damage,) = store.verify(None, Cancellation()).damages
        assert (damage.path, damage.withdrawn) == (path, ()), name
        again = store.ref(ref_of(MODEL).key)
        assert (again is not None) == path.exists() == (name in REBUILT), name
        assert again is None or again.manifest == ref_of(MODEL).manifest, name
    assert store.attach(ref_of(MODEL)) is not None
    assert path.read_bytes() == whole


def test_a_ref_with_any_bit_wrong_is_none(store: LocalStore) -> None:
    fill(store, MODEL)
    path = only(store.root / "refs")
    whole, key = path.read_bytes(), ref_of(MODEL).key
    head_bytes = whole.index(b"\n") + 1
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        os.utime(path, (0, at))
        assert store.ref(key) is None, at
        assert (store.head(key) is None) == (at < head_bytes), at
    path.write_bytes(whole)
    assert store.ref(key) == ref_of(MODEL)
    assert store.head(key) == ref_of(MODEL).head


def test_a_ref_under_another_name_is_none(store: LocalStore) -> None:
    fill(store, MODEL)
    path = only(store.root / "refs")
    path.rename(path.with_name("0" * 64 + ".json"))
    assert (store.ref(ref_of(MODEL).key), store.refs()) == (None, [])
    assert len(store.verify(None, Cancellation()).damages) == 1


@pytest.mark.parametrize("damage", [*DAMAGES, "directory", "other id"])
def test_a_lease_that_cant_be_read_keeps_everything(tmp_path: Path, damage: str) -> None:
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0))
    fill(store, model(1), uri="s3://b/1")
    snapshot = fill(store, model(2), uri="s3://b/2")
    lease = store.lease(snapshot.digest, holder="pod", ttl_s=60)
    path = only(store.root / "leases")
    if damage == "other id":
        path.write_bytes(path.read_bytes().replace(lease.id.encode(), b"lease-" + b"0" * 32))
    else:
        path.unlink()
        path.mkdir() if damage == "directory" else path.write_bytes(DAMAGES[damage])

    assert store.leases() == []
    assert len(store.list()) == 2
    assert store.usage().evictable_bytes == 0
    for act in (
        lambda: store.evict(snapshot.digest),
        lambda: store.evict(snapshot.digest, dry_run=True),
        lambda: store.collect(need_bytes=3 * MIB),
        lambda: store.collect(need_bytes=3 * MIB, dry_run=True),
    ):
        with pytest.raises(DamagedRecord, match="nothing is removed") as caught:
            act()
        assert caught.value.address == str(path)
    with pytest.raises(NoSpace, match="who holds what can't be told") as refused:
        store.ingest(ref_of(model(3)).key, wanted(model(3, 3 * MIB)))
    assert (refused.value.evictable_bytes, refused.value.held_bytes) == (0, 2 * MIB)
    store.collect()
    (found,) = store.verify(None, Cancellation()).damages
    assert (found.path, found.withdrawn) == (path, ())
    assert path.exists()
    assert len(store.list()) == 2


def test_a_damaged_manifest(store: LocalStore) -> None:
    snapshot = fill(store, MODEL)
    path = only(store.root / "manifests")
    whole = path.read_bytes()
    for data in [*DAMAGES.values(), whole.replace(b"config", b"konfig"), whole.replace(b"e3b0", b"zzzz"), whole[:-1]]:
        path.write_bytes(data)
        with pytest.raises(DamagedRecord):
            store.manifest(snapshot.digest)
        (info,) = store.list()
        assert (info.digest, info.file_count) == (snapshot.digest, 3)
        assert info.size_bytes == sum(map(len, MODEL.values()))
        store.usage()
        (damage,) = store.verify(snapshot.digest, Cancellation()).damages
        assert (damage.path, damage.withdrawn) == (path, ())
        assert path.read_bytes() == whole
    path.write_bytes(b"")
    assert store.forget(ref_of(MODEL).key)
    (snapshot.path / "weights").chmod(0o755)
    (snapshot.path / "weights" / "stranger").write_bytes(b"?")
    (damage,) = store.verify(snapshot.digest, Cancellation()).damages
    assert (damage.path, damage.withdrawn) == (path, (snapshot.digest,)), "nothing proves what it was"
    assert store.snapshot(snapshot.digest) is None
    again = store.ingest(ref_of(MODEL).key, wanted(MODEL, known=True))
    assert again.reserved_bytes == 0
    assert again.publish(manifest_of(MODEL), ref_of(MODEL)) == snapshot
    assert path.read_bytes() == whole


def test_a_snapshot_with_a_damaged_manifest_can_be_evicted(store: LocalStore) -> None:
    snapshot = fill(store, MODEL)
    only(store.root / "manifests").write_bytes(b"")
    store.evict(snapshot.digest)
    assert store.usage().blobs_bytes == 0
    assert list((store.root / "trash").iterdir()) == []


def test_a_damaged_plan_is_not_taken_over(store: LocalStore) -> None:
    ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
    ingest.keep()
    (store.root / "ingest" / ingest.id / "plan.json").write_bytes(b"{")
    again = store.ingest(ref_of(MODEL).key, wanted(MODEL))
    assert again.id != ingest.id
    again.discard()


def test_strangers_are_left_alone(store: LocalStore) -> None:
    """Files that are none of ours: no crash, no removal."""
    snapshot = fill(store, MODEL)
    strangers = [
        *(store.root / name / "README" for name in ("blobs", "blobs/sha256", "refs", "manifests", "leases", "snapshots", "quarantine")),
        store.root / "blobs" / "sha256" / "ab" / "notes.txt",
        store.root / "snapshots" / "lost+found" / "file",
        store.root / "manifests" / "notes.json",
        store.root / "ingest" / "file",
    ]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"stranger")
    assert [info.digest for info in store.list()] == [snapshot.digest]
    assert store.verify(None, Cancellation()).damages == ()
    store.usage()
    store.collect()
    store.evict(snapshot.digest)
    assert all(path.exists() for path in strangers)


def test_what_a_crash_leaves_is_swept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    snapshot = fill(store, MODEL)
    sound = files_of(store.root)
    for name in ("refs", "manifests", "leases", "chunks/sha256/ab", "."):
        (store.root / name).mkdir(exist_ok=True)
        (store.root / name / ".tmp-0123456789abcdef").write_bytes(b"half")
    (store.root / "manifests" / f"{'0' * 64}.json").write_bytes(b"{}")
    (store.root / "snapshots" / ("1" * 64)).mkdir()
    (store.root / "chunks" / "sha256" / "ab" / ("ab" * 32)).write_bytes(b"table")
    (store.root / "trash" / "thing").mkdir()
    (store.root / "trash" / "thing" / "file").write_bytes(b"x" * 5000)
    assert store.collect(dry_run=True).freed_bytes == store.collect().freed_bytes > 0
    assert files_of(store.root) == sound
    assert store.snapshot(snapshot.digest) == snapshot


def test_a_ref_to_nothing_goes_after_its_grace(tmp_path: Path) -> None:
    now = [os.stat(tmp_path).st_mtime]
    store = LocalStore(tmp_path / "root", NO_LIMITS, clock=lambda: now[0])
    snapshot = fill(store, MODEL)
    (store.root / "manifests" / f"{snapshot.digest.hex}.json").unlink()
    store.collect()
    assert store.ref(ref_of(MODEL).key) is not None
    now[0] += 25 * 3600
    store.collect()
    assert store.ref(ref_of(MODEL).key) is None


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_errors_carry_the_file(store: LocalStore) -> None:
    snapshot = fill(store, MODEL)
    only(store.root / "manifests").write_bytes(b"")
    with pytest.raises(ModelCacheError) as caught:
        store.manifest(snapshot.digest)
    assert caught.value.address == str(only(store.root / "manifests"))
