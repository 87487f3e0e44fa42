"""Small files of a fetch, made durable and published many at a time."""

from __future__ import annotations

from collections.abc import Iterable

from modelcache.chunks import CHUNK_BYTES, ChunkTable
from modelcache.digest import Digest

SMALL_BYTES = CHUNK_BYTES
BATCH_FILES = 256
"""As many become durable with one syncfs."""

Batch = list[tuple[int, Digest, ChunkTable]]


class SmallFiles:
    """Numbers of the small files that are on their way, and those whose bytes are all here. Not thread-safe: the engine's lock
    guards it."""

    def __init__(self, sizes_bytes: Iterable[tuple[int, int]]) -> None:
        """By file number, of all files that are to come."""
        self._known = {number for number, size_bytes in sizes_bytes if size_bytes <= SMALL_BYTES}
        self._open = set(self._known)
        self._batch: Batch = []

    def __contains__(self, file: int) -> bool:
        return file in self._known

    def comes(self, file: int) -> None:
        """It is on its way, if it is small."""
        if file in self._known:
            self._open.add(file)

    def goes(self, file: int) -> None:
        """It is on its way no more."""
        self._open.discard(file)

    def hashed(self, file: int, digest: Digest, table: ChunkTable) -> Batch:
        """All of its bytes are here. What is to be published now: nothing, or a full batch."""
        self._batch.append((file, digest, table))
        self._open.discard(file)
        return self._taken() if len(self._batch) >= BATCH_FILES else []

    def rest(self) -> Batch:
        """What is to be published once no other small file is on its way."""
        return [] if self._open else self._taken()

    def _taken(self) -> Batch:
        batch, self._batch = self._batch, []
        return batch
