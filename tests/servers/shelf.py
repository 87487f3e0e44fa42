"""A file system of fsspec's that does as a test says, and its source."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from modelcache.abc.source import Listing
from modelcache.patience import Cancellation
from modelcache.sources.any_fsspec import FsspecOptions, FsspecSource
from modelcache.transport import Timeouts
from modelcache.uri import parse_uri

DATA = bytes(range(256)) * 40_000
"""More than two blocks."""


class Shelf(MemoryFileSystem):  # type: ignore[misc]
    """fsspec's memory under a name of its own, which does as the test says."""

    protocol = "shelf"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    made: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    raises: Exception | None = None
    before_read: Any = None

    def __init__(self, **arguments: Any) -> None:
        Shelf.made.append(arguments)
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = MemoryFileSystem._strip_protocol(path.removeprefix("shelf://"))
        return stripped

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = fsspec.utils.infer_storage_options(path)
        return {name: found[name] for name in ("username", "password") if name in found}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path)
        return found | (self.facts if found["type"] == "file" else {})

    def find(self, path: str, **how: Any) -> Any:
        return {name: info | self.facts for name, info in super().find(path, **how).items()}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if Shelf.before_read is not None:
            Shelf.before_read()
        if self.raises is not None:
            raise self.raises
        data: bytes = super().cat_file(path, start, end)
        return data


def source_of(text: str, options: FsspecOptions | None = None, *, stall_s: float = 20) -> FsspecSource:
    uri, secrets = parse_uri(text)
    return FsspecSource(uri, secrets, options or FsspecOptions(), Timeouts(20, stall_s))


def listed(source: FsspecSource, text: str = "shelf://m") -> Listing:
    return source.list(parse_uri(text)[0], Cancellation())


def put(path: str, data: bytes) -> None:
    Shelf(shelf=True).pipe_file(path, data)
