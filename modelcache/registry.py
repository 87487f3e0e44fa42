"""Which source serves which URI: schemes to sources, made when first needed and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modelcache.abc.source import Source
from modelcache.config import Config
from modelcache.errors import UnknownScheme
from modelcache.sources.http import HttpSource
from modelcache.sources.local import LocalSource
from modelcache.sources.retrying import RetryingSource
from modelcache.sources.s3 import S3Source
from modelcache.uri import StorageUri, UriSecrets

SCHEMES = ("file", "http", "https", "s3")


class Registry:
    """Sources by scheme and endpoint. Thread-safe."""

    def __init__(self, config: Config, on_throttle: Callable[[], None]) -> None:
        self._config = config
        self._on_throttle = on_throttle
        self._lock = threading.Lock()
        self._kept: dict[str, Source] = {}

    @contextmanager
    def source(self, uri: StorageUri, secrets: UriSecrets) -> Iterator[Source]:
        """The source of this URI. One made for secrets of a single URI is not kept.

        Raises:
            UnknownScheme: nothing here serves the scheme.
        """
        if secrets:
            source = self._make(uri, secrets)
            try:
                yield source
            finally:
                source.close()
            return
        where = f"{uri.scheme}://{uri.authority}" if uri.scheme in ("http", "https") else uri.scheme
        with self._lock:
            if where not in self._kept:
                self._kept[where] = self._make(uri, secrets)
            kept = self._kept[where]
        yield kept

    def close(self) -> None:
        """Close idle connections of every source."""
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
        for source in kept:
            source.close()

    def _make(self, uri: StorageUri, secrets: UriSecrets) -> Source:
        return RetryingSource(self._bare(uri, secrets), self._config.retry, on_throttle=self._on_throttle)

    def _bare(self, uri: StorageUri, secrets: UriSecrets) -> Source:
        config = self._config
        if uri.scheme == "file":
            return LocalSource()
        if uri.scheme == "s3":
            return S3Source(config.s3, config.timeouts, proxies=config.proxies)
        if uri.scheme in ("http", "https"):
            return HttpSource(uri, secrets, config.http, config.timeouts, proxies=config.proxies)
        raise UnknownScheme(
            f"no source serves `{uri.scheme}://`", address=str(uri), got=uri.scheme, hint=f"known here: {', '.join(SCHEMES)}"
        )
