"""Room under watermarks; and what is decided without the lock is looked at again under it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.abc.snapshot import RefHead
from modelcache.abc.store import Limits
from modelcache.digest import Digest
from modelcache.errors import NoSpace
from modelcache.store.budget import Budget
from modelcache.store.making_room import MakingRoom
from modelcache.store.parts import Parts
from modelcache.store.refs import Refs
from modelcache.store.removal import Removal
from modelcache.store.root import open_root
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import fill, ref_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS, model
from modelcache.units import MIB


def test_victims_go_together_or_not_at_all(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    digests = [fill(store, model(seed, 5000), uri=f"s3://b/{seed}").digest for seed in range(3)]
    removal = Removal(Parts.of(open_root(store.root, create=False)))
    with store.hold(digests[1], holder="pod"):
        assert not removal.evict_all(digests)
    assert not removal.evict_all([*digests, Digest.parse("sha256:" + "0" * 64)])
    assert len(store.list()) == len(store.refs()) == 3
    assert removal.evict_all(digests)
    assert (store.list(), store.refs(), store.usage().blobs_bytes) == ([], [], 0)


def test_a_refusal_tells_what_others_have_booked(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", Limits(max_bytes=9 * MIB, high_watermark=1.0, low_watermark=1.0))
    with store.hold(fill(store, model(1, 2 * MIB), uri="s3://b/held").digest, holder="pod"):
        under_way = store.ingest(ref_of(model(2, 3 * MIB)).key, wanted(model(2, 3 * MIB)))
        with pytest.raises(NoSpace, match=r"0 B could be freed, 3\.0 MiB are on their way and 2\.0 MiB are held"):
            store.ingest(ref_of(model(4, 7 * MIB)).key, wanted(model(4, 7 * MIB)))
        under_way.discard()


def test_a_refusal_by_little_is_told_to_the_byte(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB - 4096, high_watermark=1.0, low_watermark=1.0))
    with pytest.raises(NoSpace, match=r"4,194,304 B are needed, 4,1\d\d,\d{3} B are available, 0 B could be freed and 0 B are held"):
        store.ingest(ref_of({"a": bytes(4 * MIB)}).key, wanted({"a": bytes(4 * MIB)}))


def test_however_many_go_the_refs_are_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand times a thousand of them took ten seconds."""
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    for seed in range(3):
        fill(store, model(seed, 5000), uri=f"s3://b/{seed}")
    fill(store, model(0, 5000), uri="s3://b/again")
    every, looks = Refs.every, []

    def counted(refs: Refs) -> list[RefHead]:
        looks.append(refs)
        return every(refs)

    monkeypatch.setattr(Refs, "every", counted)
    capped = LocalStore(store.root, Limits(max_bytes=1, high_watermark=1.0, low_watermark=1.0))
    report = capped.collect(need_bytes=1, dry_run=True)
    assert sorted(item.uris for item in report.evicted) == [("s3://b/0", "s3://b/again"), ("s3://b/1",), ("s3://b/2",)]
    assert len(looks) == 1


@pytest.mark.parametrize("times", [1, 100])
def test_a_lease_taken_between_choice_and_removal_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    now = [1_000_000.0]
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0), clock=lambda: now[0])
    digests = []
    for seed in range(3):
        now[0] += 1
        digests.append(fill(store, model(seed), uri=f"s3://b/{seed}").digest)
    evict_all = Removal.evict_all
    taken: list[Digest] = []

    def late(self: Removal, victims: list[Digest]) -> bool:
        """Somebody holds the first victim at the last moment."""
        if victims and len(taken) < times:
            store.lease(victims[0], holder="late", ttl_s=60)
            taken.append(victims[0])
        return evict_all(self, victims)

    monkeypatch.setattr(Removal, "evict_all", late)
    key, files = ref_of(model(9), uri="s3://b/9").key, wanted(model(9, MIB + MIB // 2))
    if times == 1:
        store.ingest(key, files).discard()
        assert [ref.key.uri for ref in store.refs()] == ["s3://b/0", "s3://b/2"]
    else:
        with pytest.raises(NoSpace) as caught:
            store.ingest(key, files)
        assert caught.value.held_bytes == 3 * MIB
        assert len(store.refs()) == 3
    assert taken == digests[: len(taken)]


def test_rounds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that stay in use after an eviction (reflinks outside of the store) end in a refusal, not in a loop."""
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0))
    fill(store, model(1, 3 * MIB))
    rounds: list[int] = []
    monkeypatch.setattr(MakingRoom, "_make_some", lambda self, need_bytes, room: rounds.append(need_bytes))
    with pytest.raises(NoSpace):
        store.ingest(ref_of(model(2)).key, wanted(model(2, 3 * MIB)))
    assert 1 <= len(rounds) <= 10


class FakeDisk:
    """A file system of 100 MiB: what the store has allocated there, and what others have."""

    TOTAL = 100 * MIB

    def __init__(self, root: Path) -> None:
        self.root = root
        self.others_bytes = 0

    def statvfs(self, _: object) -> os.statvfs_result:
        found = {path.lstat().st_ino: path.lstat().st_blocks for path in self.root.rglob("*") if path.is_file()}
        free = (self.TOTAL - self.others_bytes - sum(found.values()) * 512) // 4096
        blocks = self.TOTAL // 4096
        return os.statvfs_result((4096, 4096, blocks, free, free, 10**6, 10**6, 10**6, 0, 255))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDisk:
    fake = FakeDisk(tmp_path / "root")
    monkeypatch.setattr(os, "statvfs", fake.statvfs)
    return fake


WATERMARKS = Limits(max_bytes=None, high_watermark=0.9, low_watermark=0.5)


def test_the_room_under_a_watermark(tmp_path: Path, disk: FakeDisk) -> None:
    budget = Budget(Parts.of(open_root(tmp_path / "root", create=True)), WATERMARKS)
    disk.others_bytes = 40 * MIB
    room = budget.room()
    assert (room.total_bytes, room.free_bytes - room.available_bytes) == (100 * MIB, 10 * MIB)
    assert 50 * MIB - 65536 <= room.available_bytes <= 50 * MIB
    assert room.available_bytes - room.low_bytes == 40 * MIB
    disk.others_bytes = 95 * MIB
    assert budget.room().available_bytes < 0
    assert budget.rounded(1) == budget.rounded(4096) == 4096


def test_eviction_goes_down_to_the_low_watermark(tmp_path: Path, disk: FakeDisk) -> None:
    now = [1_000_000.0]
    store = LocalStore(tmp_path / "root", WATERMARKS, clock=lambda: now[0])
    for seed in range(8):
        now[0] += 1
        fill(store, model(seed, 10 * MIB), uri=f"s3://b/{seed}")
    now[0] += 1
    fill(store, model(9, 15 * MIB), uri="s3://b/9")
    assert [ref.key.uri for ref in store.refs()] == ["s3://b/5", "s3://b/6", "s3://b/7", "s3://b/9"]


def test_a_low_watermark_that_others_keep_out_of_reach_empties_nothing(tmp_path: Path, disk: FakeDisk) -> None:
    now = [1_000_000.0]
    store = LocalStore(tmp_path / "root", WATERMARKS, clock=lambda: now[0])
    disk.others_bytes = 49 * MIB
    for seed in range(4):
        now[0] += 1
        fill(store, model(seed, 10 * MIB), uri=f"s3://b/{seed}")
    now[0] += 1
    fill(store, model(9, 5 * MIB), uri="s3://b/9")
    assert [ref.key.uri for ref in store.refs()] == ["s3://b/1", "s3://b/2", "s3://b/3", "s3://b/9"]


def test_collect_comes_back_under_a_passed_watermark(tmp_path: Path, disk: FakeDisk) -> None:
    store = LocalStore(tmp_path / "root", WATERMARKS)
    fill(store, model(1, 10 * MIB), uri="s3://b/1")
    held = fill(store, model(2, 10 * MIB), uri="s3://b/2")
    store.pin(held.digest, holder="user")
    assert store.collect().evicted == ()
    disk.others_bytes = 75 * MIB
    assert [item.uris for item in store.collect(dry_run=True).evicted] == [("s3://b/1",)]
    assert [item.uris for item in store.collect().evicted] == [("s3://b/1",)]
    assert store.collect().evicted == ()
