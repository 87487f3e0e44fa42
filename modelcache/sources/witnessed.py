"""A source that remembers which objects it has handed out bytes of."""

from __future__ import annotations

import threading
from dataclasses import replace

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.digest import Digest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.uri import StorageUri


class WitnessedSource:
    """Any source, for one ensure, with a memory of what its credential could read. Safe for many threads."""

    def __init__(self, source: Source, origin: Origin) -> None:
        """`origin`: what the source's listings are said to be from."""
        self._source = source
        self._origin = origin
        self._lock = threading.Lock()
        self._read: set[tuple[str, str]] = set()

    @property
    def origin(self) -> Origin:
        return self._origin

    def has_read(self, file: RemoteFile) -> bool:
        """Whether a byte of this version of the file came through here."""
        with self._lock:
            return _object(file) in self._read

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`."""
        return replace(self._source.list(uri, cancel), origin=self._origin)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`."""
        return _WitnessedBody(self._source.open(file, span, cancel), self, file)

    def close(self) -> None:
        """As `Source.close`."""
        self._source.close()

    def saw(self, file: RemoteFile) -> None:
        """For bodies: a byte of this file was handed out."""
        with self._lock:
            self._read.add(_object(file))


class _WitnessedBody:
    """A `modelcache.abc.source.Body`."""

    def __init__(self, body: Body, source: WitnessedSource, file: RemoteFile) -> None:
        self._body = body
        self._source: WitnessedSource | None = source
        self._file = file

    @property
    def stated(self) -> tuple[Digest, ...]:
        """As `Body.stated`."""
        return self._body.stated

    def readinto(self, buffer: memoryview) -> int:
        """As `Body.readinto`."""
        count = self._body.readinto(buffer)
        if count and self._source is not None:
            self._source.saw(self._file)
            self._source = None
        return count

    def close(self) -> None:
        """As `Body.close`."""
        self._body.close()

    def abort(self) -> None:
        """As `Body.abort`."""
        self._body.abort()


def _object(file: RemoteFile) -> tuple[str, str]:
    return file.locator, file.validator
