"""A source that serves URIs of somewhere else: what it lists is said of the URI that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.uri import StorageUri


class MirroredSource:
    """A mirror's own source, asked by the original URIs. The origin is the mirror: that is who is spoken to."""

    def __init__(self, source: Source, there: Callable[[StorageUri], StorageUri]) -> None:
        """`there`: the URI of the same place at the mirror; may raise NotFound."""
        self._source = source
        self._there = there

    @property
    def origin(self) -> Origin:
        return self._source.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`; errors name the place at the mirror."""
        return replace(self._source.list(self._there(uri), cancel), uri=uri)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        return self._source.open(file, span, cancel)

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()
