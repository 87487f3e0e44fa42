"""Chunks and the chunk table: xxh3-128 of every 4 MiB of a blob."""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.errors import DamagedRecord
from modelcache.ranges import ByteRange

CHUNK_BYTES = 4 << 20
MARK_BYTES = 16
_MAGIC = b"modelcache chunks 1\n"


def chunk_count(size_bytes: int) -> int:
    """Number of chunks of a file; an empty file has none."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_range(index: int, size_bytes: int) -> ByteRange:
    """The bytes of chunk `index` of a file of `size_bytes`; the last may be short."""
    return ByteRange(index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, size_bytes))


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """`marks[i]` is the xxh3-128 (seed 0, big-endian, 16 bytes) of chunk i of a blob of `size_bytes`."""

    size_bytes: int
    marks: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.marks) != chunk_count(self.size_bytes) or any(len(mark) != MARK_BYTES for mark in self.marks):
            raise ValueError(f"{len(self.marks)} marks are not the chunk table of {self.size_bytes} bytes")

    def encode(self) -> bytes:
        """`docs/format.md`: the magic line, size as 8 bytes big-endian, then the marks."""
        return _MAGIC + self.size_bytes.to_bytes(8, "big") + b"".join(self.marks)

    @classmethod
    def decode(cls, data: bytes, *, address: str | None = None) -> ChunkTable:
        """Read `encode()`'s bytes back.

        Raises:
            DamagedRecord: another magic, or a length that does not fit the size.
        """
        head = len(_MAGIC) + 8
        size_bytes = int.from_bytes(data[len(_MAGIC) : head], "big")
        body = data[head:]
        if data[: len(_MAGIC)] != _MAGIC or len(data) < head or len(body) != chunk_count(size_bytes) * MARK_BYTES:
            raise DamagedRecord("not a chunk table", address=address, got=f"{len(data)} bytes")
        return cls(size_bytes, tuple(body[at : at + MARK_BYTES] for at in range(0, len(body), MARK_BYTES)))
