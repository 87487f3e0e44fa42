"""One file while its chunks arrive in any order: hashed in file order, held in memory or read back when the hash gets there."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import xxhash

from modelcache.abc.ingest import IncomingFile
from modelcache.chunks import ChunkTable, chunk_count, chunk_range
from modelcache.digest import Digest
from modelcache.errors import StoreFault
from modelcache.fetch.buffers import Buffer, BufferPool
from modelcache.fetch.checksums import Verification


class Assembly:
    """Feeds the chunks of one file to its checksums as the frontier reaches them. Thread-safe.

    A chunk that arrives ahead of the frontier stays in its buffer while the pool has another to give for it, else it is read
    back from the disk later; `read_back_bytes` counts that.
    """

    def __init__(self, incoming: IncomingFile, stated: Sequence[Digest], pool: BufferPool) -> None:
        self._incoming = incoming
        self._stated = tuple(stated)
        self._pool = pool
        self._lock = threading.Lock()
        self._chunks = chunk_count(incoming.size_bytes)
        self.read_back_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._verification = Verification(self._incoming.size_bytes, self._stated)
        self._marks: list[bytes | None] = [None] * self._chunks
        self._held: dict[int, Buffer] = {}
        self._frontier = 0
        self._hashing = False
        self._hashed_first: int | None = None

    def states(self, digests: Sequence[Digest]) -> None:
        """The answer that brings the whole file states these, too; before its first chunk has arrived."""
        with self._lock:
            if self._frontier or self._hashing:
                raise RuntimeError(f"something is stated of all of `{self._incoming.path}` when a part of it is here already")
            stated = tuple(dict.fromkeys((*self._stated, *digests)))
            self._verification = Verification(self._incoming.size_bytes, stated)

    def hash_first(self, chunk: int, data: memoryview) -> bool:
        """Hash this chunk before it is told to have `arrived`, which is the next call for it then. False: the hash isn't there yet."""
        with self._lock:
            if self._hashing or chunk != self._frontier:
                return False
            self._hashing = True
            self._hashed_first = chunk
        self._verification.update(data)
        return True

    def arrived(self, chunk: int, buffer: Buffer, mark: bytes) -> tuple[Buffer, bool]:
        """Chunk `chunk` is on disk, in `buffer` unless it was hashed first, and has this xxh3-128.

        Returns:
            A buffer to go on with (the same or another), and whether the whole file is hashed now; that is told once.
        """
        with self._lock:
            self._marks[chunk] = mark
            hashed = self._hashed_first == chunk
            if not hashed and (self._hashing or chunk != self._frontier):
                spare = self._pool.try_take()
                if spare is not None:
                    self._held[chunk] = buffer
                    buffer = spare
                return buffer, False
            self._hashing = True
            self._hashed_first = None
        return buffer, self._advance(chunk, buffer, hashed)

    def _advance(self, current: int, buffer: Buffer, hashed: bool) -> bool:
        """Hash from the frontier, chunk `current`, on while chunks are there; this thread is the only one that does.

        `buffer` holds `current`, unless that is `hashed`; afterwards it serves for reading back.
        """
        while True:
            chunk = self._frontier
            span = chunk_range(chunk, self._incoming.size_bytes)
            held = self._held.get(chunk)
            if chunk == current:
                if not hashed:
                    self._verification.update(buffer.view[: span.size_bytes])
            elif held is not None:
                self._verification.update(held.view[: span.size_bytes])
            else:
                self._verification.update(self._read_back(chunk, buffer))
            with self._lock:
                if held is not None:
                    del self._held[chunk]
                    self._pool.give_back(held)
                self._frontier += 1
                if self._frontier >= self._chunks or self._marks[self._frontier] is None:
                    self._hashing = False
                    return self._frontier >= self._chunks

    def _read_back(self, chunk: int, buffer: Buffer) -> memoryview:
        span = chunk_range(chunk, self._incoming.size_bytes)
        view = buffer.view[: span.size_bytes]
        self._incoming.read(span.start, view)
        self.read_back_bytes += span.size_bytes
        got = xxhash.xxh3_128_digest(view)
        if got != self._marks[chunk]:
            raise StoreFault(f"chunk {chunk} of `{self._incoming.path}` reads back other bytes than were written", got=got.hex())
        return view

    def result(self, address: str) -> tuple[Digest, ChunkTable]:
        """sha256 and chunk table of the whole file.

        Raises:
            DigestMismatch: the bytes are not what the origin stated.
        """
        digest = self._verification.result(address, self._incoming.size_bytes)
        marks = tuple(mark for mark in self._marks if mark is not None)
        return digest, ChunkTable(self._incoming.size_bytes, marks)

    @property
    def compared(self) -> tuple[Digest, ...]:
        return self._verification.compared

    def release(self) -> None:
        """Give every held buffer back; nobody hashes any more."""
        with self._lock:
            for buffer in self._held.values():
                self._pool.give_back(buffer)
            self._held.clear()

    def restart(self) -> None:
        """Begin again from the first byte; no chunk is on its way."""
        self.release()
        self._reset()
