"""A `ModelCache` whose store is a dict, and whose sources a test lends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import modelcache.cache
from modelcache.abc.source import Source
from modelcache.abc.store import Limits
from modelcache.cache import ModelCache
from modelcache.config import Config
from modelcache.registry import Registry
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.uri import StorageUri, UriSecrets

Lend = Callable[[Registry, StorageUri, UriSecrets], AbstractContextManager[Sequence[Source]]]


@contextmanager
def cache_over(store: MemoryStore, lend: Lend, root: Path) -> Iterator[ModelCache]:
    """Open one, for the block. `root` is a name; nothing is made there."""

    def open_store(root: Path, limits: Limits, **_: bool) -> MemoryStore:
        return store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelcache.cache, "LocalStore", open_store)
        patch.setattr(Registry, "sources", lambda registry, uri, secrets: lend(registry, uri, secrets))
        with ModelCache(config=Config(root=root, limits=NO_LIMITS)) as opened:
            yield opened
