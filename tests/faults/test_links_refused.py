"""Links that the kernel itself refuses: one name too many (EMLINK), and across mounts (EXDEV)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache.errors import StoreLocation
from modelcache.patience import Cancellation
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.store_filling import content, digest_of, fill
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS
from modelcache.units import MIB
from tests.faults.test_block_sharing import SmallDisk

EXT4_LINKS = 65_000
"""EXT4_LINK_MAX."""
SHARED = content(5000, seed=1)


def say_links(disk: Path, file: Path, links: int) -> None:
    """Have the file system say that this file has so many names: 65,000 real ones take longer than all that is tested of them."""
    inode = os.lstat(file).st_ino
    commands = (
        ["umount", str(disk)],
        ["debugfs", "-w", "-R", f"set_inode_field <{inode}> links_count {links}", str(disk.with_name("image"))],
        ["mount", "-o", "loop", str(disk.with_name("image")), str(disk)],
    )
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.mark.root
@pytest.mark.parametrize("home", ["", "team-a"])
def test_one_link_more_than_ext4_allows(small_disk: SmallDisk, home: str) -> None:
    disk = small_disk(size_bytes=48 * MIB)
    first = fill(LocalStore(disk / "root", NO_LIMITS), {"shared": SHARED, "own": b"1"}, uri="s3://b/1", compartment=home)
    say_links(disk, first.path / "shared", EXT4_LINKS - 1)
    store = LocalStore(disk / "root", NO_LIMITS)
    os.link(first.path / "shared", disk / "the last one")
    with pytest.raises(OSError, match=os.strerror(errno.EMLINK)):
        os.link(first.path / "shared", disk / "one more")
    others = [fill(store, {"shared": SHARED, "own": b"%d" % n}, uri=f"s3://b/{n}", known=True, compartment=home) for n in (2, 3)]
    inodes = {os.lstat(snapshot.path / "shared").st_ino for snapshot in others}
    assert len(inodes) == 1
    assert inodes.isdisjoint({os.lstat(first.path / "shared").st_ino})
    digits = digest_of(SHARED).hex
    assert sorted(path.name for path in store.root.rglob(f"blobs/sha256/*/{digits}*")) == [digits, f"{digits}.1"]
    assert store.verify(None, Cancellation()).damages == ()
    assert store.evict(others[0].digest).freed_bytes > 0
    assert (others[1].path / "shared").read_bytes() == SHARED


@contextmanager
def mounted_again(directory: Path) -> Iterator[None]:
    """A bind mount of a directory over itself: the same device, and another mount."""
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=60)


@pytest.mark.root
@pytest.mark.parametrize("part", ["ingest", "blobs"])
def test_a_part_that_is_mounted_once_more(tmp_path: Path, part: str) -> None:
    """No device number tells: it is found when a link fails, and nothing half-made stays."""
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    with mounted_again(store.root / part):
        store = LocalStore(tmp_path / "root", NO_LIMITS)
        with pytest.raises(StoreLocation, match="across mounts"):
            fill(store, MODEL)
        assert store.list() == []
        assert list((store.root / "blobs" / "sha256").glob("*/*")) == []
    fill(store, MODEL)
    store.collect()
    assert audit(store.root, Moment.SETTLED) == []
