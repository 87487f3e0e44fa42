"""Compartments on the disk: inodes of their own, found damaged, repaired and collected each for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.abc.source import Source
from modelcache.abc.upkeep import ScrubLimits
from modelcache.chunks import CHUNK_BYTES
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import flip_bit
from modelcache.testing.fetching import running_engine
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.store_filling import complete_all, content, digest_of, fill, manifest_of, ref_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.upkeep.repair import Repair
from modelcache.uri import StorageUri

WEIGHTS = content(2 * CHUNK_BYTES + 77, seed=1)
MODEL = {"config.json": b'{"a": 1}', "w/model.safetensors": WEIGHTS, "empty": b""}
HOMES = ("", "team-a", "team-b")
ORIGIN = "memory://hub:1"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS)


@pytest.fixture
def shown(store: LocalStore) -> dict[str, Snapshot]:
    return {home: fill(store, MODEL, origin=ORIGIN, compartment=home) for home in HOMES}


def blob(store: LocalStore, home: str) -> Path:
    digits = digest_of(WEIGHTS).hex
    return store.root.joinpath(*(("apart", home) if home else ()), "blobs", "sha256", digits[:2], digits)


def weights(snapshot: Snapshot) -> os.stat_result:
    return os.lstat(snapshot.path / "w/model.safetensors")


def settled(store: LocalStore) -> list[str]:
    store.collect()
    return audit(store.root, Moment.SETTLED, quarantined=[digest_of(WEIGHTS).hex])


def test_no_link_count_and_no_inode_tells_of_the_others(store: LocalStore, shown: dict[str, Snapshot]) -> None:
    found = {home: weights(snapshot) for home, snapshot in shown.items()}
    assert len({each.st_ino for each in found.values()}) == len(HOMES)
    assert {each.st_nlink for each in found.values()} == {2}
    assert {home: os.lstat(blob(store, home)).st_ino for home in HOMES} == {home: each.st_ino for home, each in found.items()}
    assert settled(store) == []


def test_damage_in_one_takes_nothing_from_the_others(store: LocalStore, shown: dict[str, Snapshot]) -> None:
    flip_bit(blob(store, "team-a"), CHUNK_BYTES + 5)
    [damage] = store.verify(None, Cancellation()).damages
    assert (damage.path, damage.withdrawn, damage.chunks) == (blob(store, "team-a"), (shown["team-a"].digest,), (1,))
    assert [store.snapshot(shown[home].digest) is not None for home in HOMES] == [True, False, True]
    assert [(ref.key.compartment, ref.manifest) for ref in store.out_of_service()] == [("team-a", shown["team-a"].digest)]
    assert store.usage().quarantine_bytes >= len(WEIGHTS)
    source = MemorySource(MODEL, endpoint=ORIGIN, state=state_sha256)

    @contextmanager
    def opened(uri: StorageUri) -> Iterator[Sequence[Source]]:
        yield [source]

    with running_engine() as engine:
        report = Repair(store, engine, opened, Cancellation()).run(store.verify(None, Cancellation()))
    assert report.unrepaired == ()
    assert (report.kept_bytes, report.fetched_bytes) == (CHUNK_BYTES + 77, CHUNK_BYTES)
    assert report.restored == (shown["team-a"].digest,)
    assert (shown["team-a"].path / "w/model.safetensors").read_bytes() == WEIGHTS
    assert {weights(snapshot).st_nlink for snapshot in shown.values()} == {2}
    assert len({weights(snapshot).st_ino for snapshot in shown.values()}) == len(HOMES)
    assert settled(store) == []


def test_a_held_snapshot_is_mended_from_its_own_part(store: LocalStore, shown: dict[str, Snapshot]) -> None:
    store.pin(shown["team-b"].digest, holder="pod")
    path = shown["team-b"].path / "w/model.safetensors"
    path.parent.chmod(0o755)
    path.unlink()
    os.link(blob(store, "team-a"), path)  # the right bytes, and another namespace's inode
    path.parent.chmod(0o555)
    assert any("is no inode of blob" in line for line in audit(store.root, Moment.CRASHED))
    assert store.mend(shown["team-b"].digest) == ("w/model.safetensors",)
    assert weights(shown["team-b"]).st_ino == os.lstat(blob(store, "team-b")).st_ino
    assert audit(store.root, Moment.CRASHED) == []


@pytest.mark.parametrize("left", ["ref", "tree"])
def test_a_damaged_manifest_comes_back_with_its_compartment(store: LocalStore, shown: dict[str, Snapshot], left: str) -> None:
    digest = shown["team-a"].digest
    if left == "tree":
        store.forget(ref_of(MODEL, origin=ORIGIN, compartment="team-a").key)
    path = store.root / "manifests" / f"{digest.hex}.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"config", b"confug"))
    [damage] = store.verify(None, Cancellation()).damages
    assert damage.withdrawn == ()
    assert path.read_bytes() == whole
    assert store.manifest(digest) == manifest_of(MODEL, "team-a")


def test_what_is_read_back_is_noted_for_each(store: LocalStore, shown: dict[str, Snapshot]) -> None:
    store.verify(shown["team-a"].digest, Cancellation())
    assert [store.verified_at_s(shown[home].digest) is not None for home in HOMES] == [False, True, False]
    left_bytes = 2 * sum(map(len, MODEL.values()))
    assert store.scrub(ScrubLimits(budget_bytes=left_bytes), Cancellation()).bytes_read == left_bytes  # and not team-a's again
    assert all(store.verified_at_s(shown[home].digest) is not None for home in ("", "team-b"))
    assert settled(store) == []


def test_what_nothing_names_is_collected_in_each(store: LocalStore) -> None:
    for home in HOMES:
        ingest = store.ingest(ref_of(MODEL, compartment=home).key, wanted(MODEL, compartment=home))
        complete_all(ingest, MODEL)
        ingest.keep()
    for path in (store.root / "ingest").iterdir():
        for directory, _, names in os.walk(path, topdown=False):
            for name in names:
                Path(directory, name).unlink()
            Path(directory).rmdir()
    assert store.collect(dry_run=True).blobs_removed == 2 * len(HOMES)
    assert store.collect().blobs_removed == 2 * len(HOMES)
    assert not any(blob(store, home).exists() for home in HOMES)
    assert settled(store) == []


@pytest.mark.parametrize("name", ["..", "a/b", "", "UPPER", "-a", "x" * 64])
def test_a_name_that_could_lead_elsewhere_is_none(store: LocalStore, tmp_path: Path, name: str) -> None:
    if name:
        with pytest.raises(ValueError, match="namespace"):
            fill(store, MODEL, compartment=name)
    (store.root / "apart").mkdir(exist_ok=True)
    (store.root / "apart" / "Not one").mkdir()
    fill(store, MODEL)
    assert store.usage().snapshots == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def test_a_crash_as_a_compartment_is_made_is_gone_on_with(store: LocalStore) -> None:
    for parts in ("apart", "apart/team-a", "apart/team-a/blobs"):
        (store.root / parts).mkdir(mode=0o700)
    assert store.usage().snapshots == 0
    assert store.collect().blobs_removed == 0
    fill(store, MODEL, compartment="team-a")
    assert settled(store) == []


def test_a_ref_of_one_is_none_of_another(store: LocalStore, shown: dict[str, Snapshot]) -> None:
    def found(home: str) -> Ref | None:
        return store.ref(ref_of(MODEL, origin=ORIGIN, compartment=home).key)

    assert [ref.manifest for home in HOMES if (ref := found(home)) is not None] == [shown[home].digest for home in HOMES]
    assert store.forget(ref_of(MODEL, origin=ORIGIN, compartment="team-a").key)
    assert [found(home) is not None for home in HOMES] == [True, False, True]
