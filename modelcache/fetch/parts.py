"""What came of chunks whose requests were left in their middle: it lies unmarked in the file of the ingest, and is not fetched again."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import xxhash

from modelcache.abc.ingest import IncomingFile, Route
from modelcache.chunks import chunk_range
from modelcache.errors import StoreFault


@dataclass(frozen=True, slots=True)
class _Part:
    size_bytes: int
    mark: bytes
    """Its xxh3-128: what is read back is what came."""


class Parts:
    """The parts of one fetch's chunks. Thread-safe; each chunk is in one thread's hands at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[tuple[str, int], _Part] = {}

    def keep(self, incoming: IncomingFile, chunk: int, data: memoryview) -> None:
        """The first bytes of this chunk are these. Raises as `IncomingFile.write`."""
        incoming.write(chunk_range(chunk, incoming.size_bytes).start, data, Route.BUFFERED)  # soon read again
        with self._lock:
            self._of[incoming.path, chunk] = _Part(data.nbytes, xxhash.xxh3_128_digest(data))

    def forget(self, incoming: IncomingFile, chunk: int) -> int:
        """How many bytes were kept of this chunk, and are not any more."""
        with self._lock:
            part = self._of.pop((incoming.path, chunk), None)
        return 0 if part is None else part.size_bytes

    def forget_file(self, incoming: IncomingFile) -> int:
        """As `forget`, of every chunk of it."""
        with self._lock:
            return sum(self._of.pop(key).size_bytes for key in [key for key in self._of if key[0] == incoming.path])

    def take(self, incoming: IncomingFile, chunk: int, into: memoryview) -> tuple[int, int]:
        """Read what was kept of this chunk into the front of `into`, and keep it no more.

        Returns:
            How many bytes were kept, and how many of them are in `into`: all, or none, if the disk gives others than came.
        """
        with self._lock:
            part = self._of.pop((incoming.path, chunk), None)
        if part is None:
            return 0, 0
        view = into[: part.size_bytes]
        try:
            incoming.read(chunk_range(chunk, incoming.size_bytes).start, view)
        except StoreFault:
            return part.size_bytes, 0
        return part.size_bytes, part.size_bytes if xxhash.xxh3_128_digest(view) == part.mark else 0
