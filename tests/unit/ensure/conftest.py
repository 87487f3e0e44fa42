"""What tests of ensure start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache.cache
from modelcache.abc.store import Limits
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.fetch.engine import FetchEngine
from modelcache.registry import Registry
from modelcache.testing.fetching import running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
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
def cache(monkeypatch: pytest.MonkeyPatch, store: MemoryStore, origins: Origins, tmp_path: Path) -> Iterator[ModelCache]:
    def open_store(root: Path, limits: Limits, **_: bool) -> MemoryStore:
        return store

    monkeypatch.setattr(modelcache.cache, "LocalStore", open_store)
    monkeypatch.setattr(Registry, "sources", lambda registry, uri, secrets: origins.lend(registry, uri, secrets))
    with ModelCache(config=Config(root=tmp_path)) as opened:
        yield opened
