from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.abc.store import Store
from modelcache.digest import Digest
from modelcache.store.layout import Layout
from modelcache.store.store import LocalStore
from modelcache.testing.store_contract import StoreContract
from modelcache.testing.store_fixtures import NO_LIMITS, Clock, DamageBlob, Leftovers, MakeStore, Read


class TestLocalStore(StoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "root"

    @pytest.fixture
    def clock(self, root: Path) -> Clock:
        return Clock(os.stat(root.parent).st_mtime // 1)  # Ages of ingests are file times.

    @pytest.fixture
    def make_store(self, root: Path, clock: Clock) -> MakeStore:
        return lambda limits: LocalStore(root, limits, clock=clock)

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Store:
        return make_store(NO_LIMITS)

    @pytest.fixture
    def read(self) -> Read:
        return lambda snapshot, path: (snapshot.path / path).read_bytes()

    @pytest.fixture
    def leftovers(self, root: Path) -> Leftovers:
        return lambda: sorted(_leftovers(root))

    @pytest.fixture
    def damage(self, root: Path) -> DamageBlob:
        return lambda digest, offset: flip(root, digest, offset)


def flip(root: Path, digest: Digest, offset: int) -> None:
    """Change one byte of a blob on the disk, by its inode, past the page cache's copy."""
    path = Layout(root).blob(digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0xFF]))
        os.fsync(file.fileno())
    path.chmod(0o444)


def _leftovers(root: Path) -> Iterator[str]:
    """What neither a snapshot, nor its blobs and records, nor the empty store accounts for."""
    layout = Layout(root)
    expected = {root, layout.format, *layout.locks, *layout.directories}
    layouts = [layout, *(layout.within(home.name) for home in layout.apart.glob("*"))]
    for each in layouts[1:]:
        expected |= {layout.apart, *each.compartment_directories}
    expected |= {prefix for each in layouts for top in (each.blobs, each.tables) for prefix in top.iterdir()}
    for snapshot in layout.snapshots.iterdir():
        expected |= {snapshot, layout.manifests / f"{snapshot.name}.json", *snapshot.rglob("*")}
    shown = {path.lstat().st_ino for path in layout.snapshots.rglob("*")}
    for each in layouts:
        blobs = {path for path in each.blobs.glob("*/*") if path.lstat().st_ino in shown}
        expected |= blobs | {each.tables / blob.relative_to(each.blobs) for blob in blobs}
        expected |= {each.verified} if each.verified.exists() else set()
    expected |= set(layout.refs.glob("*.json")) if any(layout.snapshots.iterdir()) else set()
    return (str(path.relative_to(root)) for path in root.rglob("*") if path not in expected)
