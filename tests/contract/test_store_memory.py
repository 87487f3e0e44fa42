from __future__ import annotations

import pytest

from modelcache.abc.store import Limits, Store
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_contract import StoreContract
from modelcache.testing.store_fixtures import NO_LIMITS, Clock, DamageBlob, Leftovers, MakeStore, Read


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock(1_700_000_000.0)

    @pytest.fixture
    def memory(self, clock: Clock) -> MemoryStore:
        return MemoryStore(clock=clock)

    @pytest.fixture
    def make_store(self, memory: MemoryStore) -> MakeStore:
        def make(limits: Limits) -> MemoryStore:
            memory.limits = limits
            return memory

        return make

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Store:
        return make_store(NO_LIMITS)

    @pytest.fixture
    def read(self, memory: MemoryStore) -> Read:
        return lambda snapshot, path: memory.file(snapshot.digest, path)

    @pytest.fixture
    def leftovers(self, memory: MemoryStore) -> Leftovers:
        return memory.leftovers

    @pytest.fixture
    def damage(self, memory: MemoryStore) -> DamageBlob:
        return memory.damage
