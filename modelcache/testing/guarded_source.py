"""An origin as one credential sees it: everything is listed, and some of it may not be read."""

from __future__ import annotations

from collections.abc import Callable

from modelcache.abc.source import Body, Listing, Origin, RemoteFile
from modelcache.errors import AccessDenied, OriginUnreachable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.memory_source import MemorySource
from modelcache.uri import StorageUri


class GuardedSource:
    """A view of a `MemorySource` that several callers share. A gated hub and S3's List without Read look like this.

    Attributes:
        opened: spans that this view was asked for and let through, with the path.
        reachable: whether the origin answers.
    """

    def __init__(self, origin: MemorySource, may_read: Callable[[str], bool]) -> None:
        """`may_read`: whether the credential may read the file of this path."""
        self._shared = origin
        self._may_read = may_read
        self.opened: list[tuple[str, ByteRange]] = []
        self.reachable = True

    @property
    def origin(self) -> Origin:
        return self._shared.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        self._reach()
        return self._shared.list(uri, cancel)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        self._reach()
        if not self._may_read(file.path):
            raise AccessDenied(f"`{file.path}` may not be read (403)", address=file.path)
        body = self._shared.open(file, span, cancel)
        self.opened.append((file.path, span))
        return body

    def close(self) -> None:
        """Nothing of its own is open."""

    def _reach(self) -> None:
        if not self.reachable:
            raise OriginUnreachable("nobody answers", address=str(self.origin))
