"""Repair: damaged chunks from an origin that still has them, the rest from what the disk kept."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.source import Source
from modelcache.chunks import CHUNK_BYTES
from modelcache.ensure import Ensure
from modelcache.errors import AccessDenied, Cancelled, NotCached
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.store.removal import GRACE_S
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import flip_bit
from modelcache.testing.fetching import running_engine
from modelcache.testing.memory_source import MemorySource, state_nothing, state_sha256
from modelcache.testing.store_filling import content, digest_of
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.upkeep.repair import Repair, RepairReport
from modelcache.uri import StorageUri, parse_uri

WEIGHTS = content(5 * CHUNK_BYTES + 77, seed=1)
DIGEST = digest_of(WEIGHTS)
MODEL = {"config.json": b'{"a": 1}', "w/model.safetensors": WEIGHTS, "empty": b""}
OTHER = {"same.bin": WEIGHTS, "own.bin": b"own"}


@dataclass
class Bench:
    """A store, and an origin for each URI."""

    store: LocalStore
    engine: FetchEngine
    origins: dict[str, MemorySource] = field(default_factory=dict)

    def offer(self, name: str, files: Mapping[str, bytes], *, stating: bool = False) -> MemorySource:
        source = MemorySource(files, endpoint=f"memory://{name}:1", state=state_sha256 if stating else state_nothing)
        self.origins[f"s3://b/{name}"] = source
        return source

    def pull(self, name: str) -> Snapshot:
        uri = parse_uri(f"s3://b/{name}")[0]
        ensure = Ensure(self.store, self.engine, self.origins[str(uri)], uri, priority=Priority.WAITING, route=None)
        return ensure.run(Cancellation()).snapshot

    @contextmanager
    def sources(self, uri: StorageUri) -> Iterator[Sequence[Source]]:
        yield [self.origins[str(uri)]]

    def repair(self, uri: str | None = None) -> RepairReport:
        verified = self.store.verify(None, Cancellation())
        return Repair(self.store, self.engine, self.sources, Cancellation()).run(verified, uri)

    def key(self, name: str) -> RefKey:
        return RefKey(f"s3://b/{name}", f"memory://{name}:1")

    def blob(self, number: int = 0) -> Path:
        name = DIGEST.hex if number == 0 else f"{DIGEST.hex}.{number}"
        return self.store.root / "blobs" / "sha256" / DIGEST.hex[:2] / name

    def table(self) -> Path:
        return self.store.root / "chunks" / "sha256" / DIGEST.hex[:2] / DIGEST.hex

    def settled(self) -> list[str]:
        """What the audit finds when nothing but the quarantine may be left over."""
        self.store.collect()
        return audit(self.store.root, Moment.SETTLED, quarantined={DIGEST.hex, digest_of(MODEL["config.json"]).hex})


def out_of_service(store: LocalStore) -> list[str]:
    """What the next verify, whoever calls it, says of names."""
    return [uri for item in store.verify(None, Cancellation()).out_of_service for uri in item.uris]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with running_engine() as engine, LocalStore(tmp_path / "root", NO_LIMITS) as store:
        yield Bench(store, engine)


def shown(snapshot: Snapshot) -> dict[str, bytes]:
    return {str(path.relative_to(snapshot.path)): path.read_bytes() for path in snapshot.path.rglob("*") if path.is_file()}


def test_only_bad_chunks_are_fetched_and_every_snapshot_comes_back(bench: Bench) -> None:
    source, other = bench.offer("one", MODEL), bench.offer("two", OTHER)
    snapshots = [bench.pull("one"), bench.pull("two")]
    flip_bit(bench.blob(), 2 * CHUNK_BYTES + 5)
    flip_bit(bench.blob(), 5 * CHUNK_BYTES + 70)
    before = source.books.bytes + other.books.bytes
    report = bench.repair()
    fetched = source.books.bytes + other.books.bytes - before
    assert sum(fetched.values()) == CHUNK_BYTES + 77
    assert (report.fetched_bytes, report.kept_bytes) == (CHUNK_BYTES + 77, 4 * CHUNK_BYTES)
    assert [blob.digest for blob in report.blobs] == [DIGEST]
    assert set(report.restored) == {snapshot.digest for snapshot in snapshots}
    assert (report.unrepaired, report.mended) == ((), ())
    assert [shown(snapshot) for snapshot in snapshots] == [MODEL, OTHER]
    assert bench.store.verify(None, Cancellation()).damages == ()
    assert bench.settled() == []


def test_a_held_snapshot_gets_a_new_inode_and_its_readers_keep_the_old_one(bench: Bench) -> None:
    bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    path = snapshot.path / "w" / "model.safetensors"
    flip_bit(bench.blob(), 5)
    old = path.stat().st_ino
    damaged = path.read_bytes()
    with bench.store.hold(snapshot.digest, holder="pod chat-0"), path.open("rb") as reader:
        report = bench.repair()
        assert reader.read() == damaged
    (mended,) = report.mended
    assert (mended.digest, mended.files, mended.holders) == (snapshot.digest, ("w/model.safetensors",), ("pod chat-0",))
    assert (report.restored, report.unrepaired, report.fetched_bytes) == ((), (), CHUNK_BYTES)
    assert path.stat().st_ino == bench.blob().stat().st_ino != old
    assert shown(snapshot) == MODEL
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(snapshot.path.stat().st_mode) == 0o555
    (aside,) = (bench.store.root / "quarantine").iterdir()
    assert (aside.stat().st_ino, aside.read_bytes()) == (old, damaged)
    assert bench.store.verify(None, Cancellation()).damages == ()
    assert bench.settled() == []


def test_what_an_earlier_verify_took_out_of_service(bench: Bench) -> None:
    bench.offer("one", MODEL)
    bench.offer("two", OTHER)
    snapshot = bench.pull("one")
    bench.pull("two")
    flip_bit(bench.blob(), 5)
    bench.store.verify(None, Cancellation())
    LocalStore(bench.store.root, NO_LIMITS, clock=lambda: time.time() + GRACE_S).collect()
    assert bench.store.list() == []
    assert out_of_service(bench.store) == ["s3://b/one", "s3://b/two"], "however long ago it was"
    report = bench.repair("s3://b/one")
    assert report.verified.out_of_service == ()
    assert out_of_service(bench.store) == ["s3://b/two"]
    assert (report.restored, report.fetched_bytes) == ((snapshot.digest,), CHUNK_BYTES + len(MODEL["config.json"]))
    assert shown(snapshot) == MODEL
    assert len(bench.repair().restored) == 1
    assert out_of_service(bench.store) == []
    assert bench.settled() == []


def test_any_ref_that_shows_the_bytes_may_serve(bench: Bench) -> None:
    """The first origin has another version now, the second refuses, the third states the digest under another path."""
    first, second = bench.offer("a", MODEL), bench.offer("b", OTHER)
    snapshots = [bench.pull("a"), bench.pull("b")]
    third = bench.offer("c", OTHER, stating=True)
    bench.pull("c")
    flip_bit(bench.blob(), 5)
    first.put("w/model.safetensors", content(len(WEIGHTS), seed=9))
    second.cut("same.bin", 5, times=None, error=AccessDenied("refused"))
    third.remove("same.bin")
    third.put("moved.bin", WEIGHTS)
    report = bench.repair()
    assert [blob.uri for blob in report.blobs] == ["s3://b/c"]
    assert third.books.bytes["moved.bin"] == CHUNK_BYTES
    assert report.unrepaired == ()
    assert [shown(snapshot) for snapshot in snapshots] == [MODEL, OTHER]


def test_nobody_can_serve(bench: Bench) -> None:
    source = bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    flip_bit(bench.blob(), 5)
    source.put("w/model.safetensors", b"of another version")
    report = bench.repair()
    (left,) = report.unrepaired
    assert (left.digest, report.restored, report.blobs) == (DIGEST, (), ())
    assert [item.uris for item in report.verified.out_of_service] == [("s3://b/one",)]
    assert "another version now" in left.why
    assert bench.store.snapshot(snapshot.digest) is None
    source.put("w/model.safetensors", WEIGHTS)
    (left,) = bench.repair().unrepaired
    assert "another version now" in left.why, "equal bytes of another version are no promise of this one"
    assert (bench.settled(), len(list((bench.store.root / "refs").iterdir()))) == ([], 1)


def test_wrong_bytes_from_the_origin_are_not_taken(bench: Bench) -> None:
    source = bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    flip_bit(bench.blob(), 5)
    source.spoil("w/model.safetensors", 7, times=None)
    (left,) = bench.repair().unrepaired
    assert "sha256" in left.why
    assert not bench.store.has_blob(DIGEST)
    assert bench.store.snapshot(snapshot.digest) is None


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_a_damaged_table_too(bench: Bench, damage: str) -> None:
    """Nothing says any more which chunks are sound: whatever can't be proved is fetched, and the table is right afterwards."""
    bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    flip_bit(bench.blob(), 5)
    whole = bench.table().read_bytes()
    if damage == "missing":
        bench.table().unlink()
    else:
        flip_bit(bench.table(), len(whole) - 3)
    report = bench.repair()
    assert report.unrepaired == ()
    assert report.fetched_bytes == (len(WEIGHTS) if damage == "missing" else CHUNK_BYTES + 77)
    assert shown(snapshot) == MODEL
    assert bench.table().read_bytes() == whole
    assert bench.settled() == []


def test_an_interrupted_repair_is_gone_on_with(bench: Bench) -> None:
    source = bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    for chunk in (0, 3):
        flip_bit(bench.blob(), chunk * CHUNK_BYTES + 5)
    cancel = Cancellation()
    gate = source.gate("w/model.safetensors", 3 * CHUNK_BYTES)
    verified = bench.store.verify(None, Cancellation())
    source.on_open = lambda file, span: cancel.cancel() if span.start else None
    with pytest.raises(Cancelled):
        Repair(bench.store, bench.engine, bench.sources, cancel).run(verified)
    gate.open()
    source.on_open = lambda file, span: None
    before = source.books.bytes["w/model.safetensors"]
    assert bench.repair().restored == (snapshot.digest,)
    assert source.books.bytes["w/model.safetensors"] - before <= 2 * CHUNK_BYTES
    assert shown(snapshot) == MODEL
    assert bench.settled() == []


# -- trees and records --------------------------------------------------------------------------------------------------


def break_tree(top: Path) -> None:
    """A file less, one more, one replaced, and a directory where a file was."""
    for directory in (top, top / "w"):
        directory.chmod(0o755)
    (top / "empty").unlink()
    (top / "w" / "model.safetensors").unlink()
    (top / "w" / "model.safetensors").mkdir()
    (top / "w" / "model.safetensors" / "inside").write_bytes(b"x")
    (top / "config.json").unlink()
    (top / "config.json").write_bytes(b"{...... }")
    (top / "w" / "__pycache__").mkdir()
    (top / "w" / "__pycache__" / "cache.bin").write_bytes(b"cache")
    (top / "link").symlink_to("/etc")


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("found_earlier", [False, True])
def test_a_broken_tree(bench: Bench, is_held: bool, found_earlier: bool) -> None:
    source = bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    if is_held:
        bench.store.pin(snapshot.digest, holder="user")
    before = source.books.bytes.total()
    break_tree(snapshot.path)
    if found_earlier:
        bench.store.verify(None, Cancellation())
        assert out_of_service(bench.store) == ([] if is_held else ["s3://b/one"])
    report = bench.repair()
    assert (report.unrepaired, out_of_service(bench.store)) == ((), [])
    assert report.restored == (() if is_held else (snapshot.digest,))
    assert [item.digest for item in report.mended] == ([snapshot.digest] if is_held else [])
    assert source.books.bytes.total() == before
    assert shown(snapshot) == MODEL
    assert not (snapshot.path / "link").is_symlink()
    assert bench.store.verify(None, Cancellation()).damages == ()
    assert bench.settled() == []


def test_a_manifest_is_written_anew_from_the_ref_or_from_the_tree(bench: Bench) -> None:
    bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    (path,) = (bench.store.root / "manifests").iterdir()
    whole, used_s = path.read_bytes(), path.stat().st_mtime
    for with_ref in (True, False):
        flip_bit(path, 40)
        (damage,) = bench.store.verify(None, Cancellation()).damages
        assert (damage.path, damage.withdrawn) == (path, ())
        assert "written anew" in damage.reason
        assert (path.read_bytes(), path.stat().st_mtime) == (whole, used_s)
        if with_ref:
            assert bench.store.forget(bench.key("one"))
    assert shown(snapshot) == MODEL


def test_a_manifest_and_its_tree(bench: Bench) -> None:
    """Nothing here proves what the manifest was but the ref, and that comes back from it."""
    bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    (path,) = (bench.store.root / "manifests").iterdir()
    flip_bit(path, 40)
    break_tree(snapshot.path)
    assert bench.repair().restored == (snapshot.digest,)
    assert shown(snapshot) == MODEL
    assert bench.settled() == []


@pytest.mark.parametrize("place", ["head", "files"])
def test_a_ref_is_written_anew_and_confirmed(bench: Bench, place: str) -> None:
    bench.offer("one", MODEL)
    bench.pull("one")
    (path,) = (bench.store.root / "refs").iterdir()
    before = bench.store.ref(bench.key("one"))
    data = path.read_bytes()
    flip_bit(path, data.index(b'"revision":"') + 14 if place == "head" else data.index(b'"validator"') + 14)
    assert bench.store.ref(bench.key("one")) is None
    report = bench.repair()
    assert (report.resolved, report.unrepaired) == (("s3://b/one",), ())
    after = bench.store.ref(bench.key("one"))
    assert before is not None
    assert after is not None
    assert (after.files, after.revision, after.manifest, after.immutable) == (
        before.files,
        before.revision,
        before.manifest,
        before.immutable,
    )
    assert bench.settled() == []


def test_a_ref_whose_uri_is_damaged_is_removed(bench: Bench) -> None:
    bench.offer("one", MODEL)
    snapshot = bench.pull("one")
    (path,) = (bench.store.root / "refs").iterdir()
    flip_bit(path, path.read_bytes().index(b"s3://b/one") + 8)
    report = bench.repair()
    assert "removed" in report.verified.damages[0].reason
    assert not path.exists()
    assert shown(snapshot) == MODEL


def test_what_was_never_here(bench: Bench) -> None:
    with pytest.raises(NotCached):
        bench.store.mend(DIGEST)
    assert list(bench.store.salvage(DIGEST, Cancellation())) == []
    assert os.listdir(bench.store.root / "quarantine") == []


def test_a_later_version_that_came_meanwhile_stays(bench: Bench) -> None:
    source = bench.offer("one", MODEL)
    bench.pull("one")
    bench.offer("two", OTHER)
    bench.pull("two")
    flip_bit(bench.blob(), 5)
    later = MODEL | {"config.json": b'{"a": 2}'}

    def replaced() -> None:
        source.on_list = lambda: None
        for path, data in later.items():
            source.put(path, data)
        bench.pull("one")

    source.on_list = replaced
    bench.repair()
    head = bench.store.head(bench.key("one"))
    assert head is not None
    snapshot = bench.store.snapshot(head.manifest)
    assert snapshot is not None
    assert shown(snapshot) == later
