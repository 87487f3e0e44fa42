from __future__ import annotations

from collections.abc import Callable

import pytest

from modelcache.abc.store import Snapshot
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def read(self, store: MemoryStore) -> Callable[[Snapshot, str], bytes]:
        return lambda snapshot, path: store.file(snapshot.digest, path)

    @pytest.fixture
    def leftovers(self, store: MemoryStore) -> Callable[[], list[str]]:
        return store.leftovers
