"""What came of chunks whose requests were left in their middle: it lies unmarked in the file of the ingest, and is not fetched again."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import xxhash

from modelcache.abc.ingest import IncomingFile, Route
from modelcache.chunks import chunk_range
from modelcache.errors import StoreFault
from modelcache.fetch.progress import Meter


@dataclass(frozen=True, slots=True)
class _Part:
    size_bytes: int
    mark: bytes
    """Its xxh3-128: what is read back is what came."""


class Parts:
    """The parts of one fetch's chunks. Thread-safe; each chunk is in one thread's hands at a time."""

    def __init__(self, meter: Meter) -> None:
        """`meter` counts them as done, from where they came until they are lost."""
        self._meter = meter
        self._lock = threading.Lock()
        self._of: dict[tuple[str, int], _Part] = {}

    def keep(self, incoming: IncomingFile, chunk: int, data: memoryview) -> None:
        """The first bytes of this chunk are these. Raises as `IncomingFile.write`."""
        incoming.write(chunk_range(chunk, incoming.size_bytes).start, data, Route.BUFFERED)  # soon read again
        with self._lock:
            self._of[incoming.path, chunk] = _Part(data.nbytes, xxhash.xxh3_128_digest(data))

    def forget(self, incoming: IncomingFile, chunk: int) -> None:
        """All of this chunk comes again."""
        with self._lock:
            part = self._of.pop((incoming.path, chunk), None)
        if part is not None:
            self._meter.lost(part.size_bytes)

    def forget_file(self, incoming: IncomingFile) -> None:
        """All of this file comes again."""
        with self._lock:
            chunks = [chunk for path, chunk in self._of if path == incoming.path]
        for chunk in chunks:
            self.forget(incoming, chunk)

    def take(self, incoming: IncomingFile, chunk: int, into: memoryview) -> int:
        """Read what was kept of this chunk into the front of `into`, and keep it no more; how many bytes: none, if the disk gives others
        than came."""
        with self._lock:
            part = self._of.pop((incoming.path, chunk), None)
        if part is None:
            return 0
        view = into[: part.size_bytes]
        try:
            incoming.read(chunk_range(chunk, incoming.size_bytes).start, view)
            if xxhash.xxh3_128_digest(view) == part.mark:
                return part.size_bytes
        except StoreFault:
            pass
        self._meter.lost(part.size_bytes)
        return 0
