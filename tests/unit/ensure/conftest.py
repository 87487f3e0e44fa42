"""What tests of ensure start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.cache import ModelCache
from modelcache.fetch.engine import FetchEngine
from modelcache.testing.fetching import running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from tests.unit.dict_cache import cache_over
from tests.unit.ensure.bench import MODEL, Bench
from tests.unit.ensure.origins import Origins


@pytest.fixture
def engine() -> Iterator[FetchEngine]:
    with running_engine(3) as running:
        yield running


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def source() -> MemorySource:
    return MemorySource(MODEL)


@pytest.fixture
def bench(store: MemoryStore, engine: FetchEngine) -> Bench:
    return Bench(store, engine)


@pytest.fixture
def origins() -> Origins:
    return Origins()


@pytest.fixture
def cache(store: MemoryStore, origins: Origins, tmp_path: Path) -> Iterator[ModelCache]:
    with cache_over(store, origins.lend, tmp_path) as opened:
        yield opened
