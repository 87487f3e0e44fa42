"""One open cache per process and settings, for libraries that make as many file systems as they like."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from modelcache.cache import ModelCache
from modelcache.config import Config


class SharedCaches:
    """Caches by their settings, closed at the end of the process. Thread-safe; a forked process makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[tuple[Config, str | None, ModelCache]] = []
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.close)

    def get(self, config: Config, root: str | Path | None) -> ModelCache:
        """The cache of these settings. Raises StoreError."""
        place = None if root is None else str(root)
        with self._lock:
            for known, at, cache in self._open:
                if (known, at) == (config, place):
                    return cache
            cache = ModelCache(root, config=config)
            self._open.append((config, place, cache))
            return cache

    def close(self) -> None:
        """Close all of them; the next `get` opens anew."""
        with self._lock:
            caches, self._open = [cache for _, _, cache in self._open], []
        for cache in caches:
            cache.close()

    def _forked(self) -> None:
        """Threads and connections stayed with the parent."""
        self._lock = threading.Lock()
        self._open = []
