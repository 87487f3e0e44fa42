"""Origins of the source contract that several of its files use."""

from __future__ import annotations

from typing import Protocol

from modelcache.abc.source import Source
from modelcache.uri import StorageUri


class Objects(Protocol):
    """A server of objects in buckets."""

    def put(self, bucket: str, name: str, data: bytes, /) -> object: ...

    def delete(self, bucket: str, name: str, /) -> None: ...


class Bucket:
    """A bucket of a real server, or a folder of one (`"name/"`), under the scheme that reads it."""

    lists_many = True

    def __init__(
        self, scheme: str, server: Objects, bucket: str, source: Source, *, unsafe_names: tuple[str, ...] = (), folder: str = ""
    ) -> None:
        self.source = source
        self.unsafe_names = unsafe_names
        self._scheme = scheme
        self._server = server
        self._bucket = bucket
        self._folder = folder

    def put(self, path: str, data: bytes) -> None:
        self._server.put(self._bucket, self._folder + path, data)

    overwrite = put

    def remove(self, path: str) -> None:
        self._server.delete(self._bucket, self._folder + path)

    def uri(self, path: str = "") -> StorageUri:
        return StorageUri(self._scheme, self._bucket, self._folder + path if path else self._folder.rstrip("/"))
