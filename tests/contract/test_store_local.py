from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcache.abc.store import Limits, Snapshot, Store
from modelcache.store.store import LocalStore
from modelcache.testing.store_contract import StoreContract

NO_LIMITS = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "root", NO_LIMITS)

    @pytest.fixture
    def read(self) -> Callable[[Snapshot, str], bytes]:
        return lambda snapshot, path: (snapshot.path / path).read_bytes()

    @pytest.fixture
    def leftovers(self, tmp_path: Path) -> Callable[[], list[str]]:
        return lambda: sorted(_leftovers(tmp_path / "root"))


def _leftovers(root: Path) -> Iterator[str]:
    published = {os.lstat(path).st_ino for path in (root / "snapshots").rglob("*")}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_dir() and path.parent.name == "sha256":
            continue
        if path.is_file() and (path.lstat().st_ino in published or name in ("format", "lock", "lock.turn", "lock.room")):
            continue
        if name.count("/") == 0 or name.startswith(("snapshots/", "manifests/", "refs/", "chunks/")) or name == "blobs/sha256":
            continue
        yield name
