"""Origins that `ModelCache` finds in place of its own, by URI and credential."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelcache.errors import AccessDenied
from modelcache.registry import Registry
from modelcache.testing.memory_source import MemorySource
from modelcache.uri import StorageUri, UriSecrets
from tests.unit.ensure.bench import FILLED

URI = "s3://bucket/model"


class Origins:
    """Which source answers for a URI and its secrets."""

    def __init__(self) -> None:
        self.source = MemorySource(FILLED)
        self.by_uri: dict[str, MemorySource] = {}
        self.refused: set[str] = set()

    @contextmanager
    def lend(self, registry: Registry, uri: StorageUri, secrets: UriSecrets) -> Iterator[list[MemorySource]]:
        source = self.by_uri.get(str(uri), self.source)
        yield [_Refusing(source) if secrets.query in self.refused else source]


class _Refusing(MemorySource):
    """The same origin, asked with a credential that it refuses."""

    def __init__(self, source: MemorySource) -> None:
        super().__init__({}, endpoint=source.origin.endpoint)
        self._asked = source

        def refuse() -> None:
            source.on_list()
            raise AccessDenied("403")

        self.on_list = refuse
