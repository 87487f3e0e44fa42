"""What tests of permission start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcache.testing.fetching import running_engine, small_chunks
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource
from tests.unit.permission.yards import MODEL, Yard, everything, nothing


@pytest.fixture
def yard() -> Iterator[Yard]:
    with small_chunks(), running_engine(3) as engine:
        yield Yard(engine)


@pytest.fixture
def origin() -> MemorySource:
    return MemorySource(MODEL)


@pytest.fixture
def reader(origin: MemorySource) -> GuardedSource:
    return GuardedSource(origin, everything)


@pytest.fixture
def lister(origin: MemorySource) -> GuardedSource:
    return GuardedSource(origin, nothing)
