"""Block sharing on real file systems: whose blocks, how many come free, and that no byte changes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from modelcache.abc.upkeep import DedupeReport
from modelcache.chunks import CHUNK_BYTES
from modelcache.patience import Cancellation
from modelcache.store import durable
from modelcache.store.extents import can_share, doubly_used_bytes, places
from modelcache.store.store import LocalStore
from modelcache.testing.crash import interposed
from modelcache.testing.small_filesystem import Kind
from modelcache.testing.store_filling import content, digest_of, fill
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

BASE = content(6 * CHUNK_BYTES + 12_345, seed=1)
TUNED = BASE[: 2 * CHUNK_BYTES] + content(CHUNK_BYTES, seed=2) + BASE[3 * CHUNK_BYTES :]
"""A fine-tune: one layer is another, the rest frozen."""
SHIFTED = b"x" * 100 + BASE[:-100]
EQUAL_BYTES = len(BASE) - CHUNK_BYTES
DISK_BYTES = 320 * MIB


class SmallDisk(Protocol):
    def __call__(self, *, size_bytes: int, kind: Kind = Kind.EXT4) -> Path: ...


MakeStore = Callable[[Kind], LocalStore]


@pytest.fixture
def make_store(small_disk: SmallDisk) -> MakeStore:
    def make(kind: Kind) -> LocalStore:
        return LocalStore(small_disk(size_bytes=DISK_BYTES, kind=kind) / "root", NO_LIMITS)

    return make


def blob(store: LocalStore, data: bytes) -> Path:
    digits = digest_of(data).hex
    return store.root / "blobs" / "sha256" / digits[:2] / digits


def free_bytes(store: LocalStore) -> int:
    subprocess.run(["sync", "-f", str(store.root)], check=True, timeout=60)
    found = os.statvfs(store.root)
    return found.f_bfree * found.f_frsize


def dedupe(store: LocalStore) -> DedupeReport:
    return store.dedupe(Cancellation())


def where(path: Path, offset: int) -> tuple[tuple[int, int, int], ...] | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return places(fd, offset, CHUNK_BYTES)
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.file_system(kind)) for kind in (Kind.XFS, Kind.BTRFS)])
def test_equal_chunks_take_their_blocks_once(make_store: MakeStore, kind: Kind) -> None:
    store = make_store(kind)
    fill(store, {"w": BASE, "same-chunks": BASE[:CHUNK_BYTES] * 2}, uri="s3://b/base")
    fill(store, {"w": TUNED}, uri="s3://b/tuned")
    fill(store, {"w": SHIFTED}, uri="s3://b/shifted")
    before, inode = free_bytes(store), blob(store, TUNED).stat().st_ino
    report = dedupe(store)
    assert (report.possible, report.shared_bytes) == (True, EQUAL_BYTES + 2 * CHUNK_BYTES)
    assert (report.held_bytes, report.differing_bytes, report.already_bytes) == (0, 0, 0)
    gained_bytes = free_bytes(store) - before
    if kind is Kind.XFS:
        assert abs(gained_bytes - report.shared_bytes) <= 2 * MIB
    else:
        assert 0 < gained_bytes <= report.shared_bytes + 2 * MIB, "btrfs frees an extent when no part of it is used any more"
    assert where(blob(store, TUNED), 0) == where(blob(store, BASE), 0)
    assert where(blob(store, TUNED), 2 * CHUNK_BYTES) != where(blob(store, BASE), 2 * CHUNK_BYTES)
    usage = store.usage()
    assert abs(usage.doubly_used_bytes - report.shared_bytes) <= 64 * 1024
    assert usage.shared_bytes == 0, "no content is shared, only blocks are"
    assert blob(store, TUNED).stat().st_ino == inode
    assert store.verify(None, Cancellation()).damages == ()
    again = dedupe(store)
    assert (again.shared_bytes, again.already_bytes) == (0, report.shared_bytes)


@pytest.mark.root
@pytest.mark.file_system(Kind.XFS)
def test_what_is_held_keeps_its_blocks(make_store: MakeStore) -> None:
    store = make_store(Kind.XFS)
    older = fill(store, {"w": BASE}, uri="s3://b/base")
    newer = fill(store, {"w": TUNED}, uri="s3://b/tuned")
    places_before = [where(blob(store, data), 0) for data in (BASE, TUNED)]
    with store.hold(newer.digest, holder="pod"):
        with store.hold(older.digest, holder="pod"):
            report = dedupe(store)
            assert (report.shared_bytes, report.held_bytes) == (0, EQUAL_BYTES)
        report = dedupe(store)
        assert (report.shared_bytes, report.held_bytes) == (EQUAL_BYTES, 0)
    assert where(blob(store, BASE), 0) == where(blob(store, TUNED), 0) == places_before[1] != places_before[0]


@pytest.mark.root
@pytest.mark.file_system(Kind.XFS)
def test_a_damaged_side_is_not_shared(make_store: MakeStore) -> None:
    """The marks are equal, the bytes are not: the kernel looks."""
    store = make_store(Kind.XFS)
    fill(store, {"w": BASE}, uri="s3://b/base")
    fill(store, {"w": TUNED}, uri="s3://b/tuned")
    path = blob(store, TUNED)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(5)
        file.write(b"rot")
    report = dedupe(store)
    assert (report.differing_bytes, report.shared_bytes) == (CHUNK_BYTES, EQUAL_BYTES - CHUNK_BYTES)


@pytest.mark.root
def test_ext4_says_that_it_cant(make_store: MakeStore) -> None:
    store = make_store(Kind.EXT4)
    fill(store, {"w": BASE}, uri="s3://b/base")
    assert not can_share(store.root)
    assert dedupe(store) == DedupeReport(possible=False)
    assert store.usage().doubly_used_bytes == 0


def test_two_files_that_cant_are_left_and_a_failing_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    fill(store, {"w": BASE}, uri="s3://b/base")
    fill(store, {"w": TUNED}, uri="s3://b/tuned")
    monkeypatch.setattr("modelcache.store.sharing.can_share", lambda directory: True)

    def refused(*arguments: int) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(durable, "dedupe_range", refused)
    assert dedupe(store).shared_bytes == 0
    seen: list[str] = []
    with interposed(seen.append):
        dedupe(store)
    assert set(seen) == {"dedupe_range"}, "nothing else is changed"


def test_blocks_that_are_counted_once(tmp_path: Path) -> None:
    assert doubly_used_bytes(iter([tmp_path / "gone"])) == 0
