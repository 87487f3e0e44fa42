"""The journal of an ingest: which chunks of which exact versions were written, so that the next ingest need not fetch them again."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from modelcache.abc.ingest import IngestFile
from modelcache.chunks import MARK_BYTES
from modelcache.digest import Digest, sha256
from modelcache.errors import Cancelled
from modelcache.store import durable

RECORD_BYTES = 64
"""Divides every page and block size: a record is on one page, and a lost page costs whole records."""
KEY_BYTES = 16
COMPLETE = (1 << 64) - 1
"""In place of a chunk's number: the file was published, and this is its sha256."""
FORGET = (1 << 64) - 2
"""In place of a chunk's number: what was said of this file before is void."""

_BODY = struct.Struct(f">{KEY_BYTES}sQ32s")
_CHECK = struct.Struct(">Q")


@dataclass
class Remembered:
    """What a journal says of one file. `marks` are hints: true only if the disk still says so."""

    marks: dict[int, bytes] = field(default_factory=dict)
    sha256: Digest | None = None


def file_key(file: IngestFile) -> bytes:
    """Names one exact version of one file in the journal."""
    return hashlib.sha256(f"{file.path}\0{file.size_bytes}\0{file.version}".encode()).digest()[:KEY_BYTES]


def encode_entry(key: bytes, number: int, value: bytes) -> bytes:
    """One record: key, chunk number, value padded with zeros to 32 bytes, xxh3-64 of all that; integers big-endian."""
    body = _BODY.pack(key, number, value.ljust(32, b"\0"))
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def decode_journal(data: bytes) -> dict[bytes, Remembered]:
    """What the whole records say, in order; torn and foreign ones are passed over."""
    found: dict[bytes, Remembered] = {}
    for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
        _note(found, data[at : at + RECORD_BYTES])
    return found


def _note(found: dict[bytes, Remembered], record: bytes) -> bool:
    """Add what one record says; False if it is none."""
    body = record[: _BODY.size]
    if xxhash.xxh3_64_intdigest(body) != _CHECK.unpack_from(record, _BODY.size)[0]:
        return False
    key, number, value = _BODY.unpack(body)
    if number == FORGET:
        found.pop(key, None)
    elif number == COMPLETE:
        found.setdefault(key, Remembered()).sha256 = sha256(value.hex())
    else:
        found.setdefault(key, Remembered()).marks[number] = value[:MARK_BYTES]
    return True


class Journal:
    """An open journal, appended to by one ingest. Not fsynced: each entry is compared with the disk before it counts."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._lock = threading.Lock()
        size_bytes = os.fstat(self._fd).st_size
        self._next = -(-size_bytes // RECORD_BYTES)

    @classmethod
    def create(cls, path: Path) -> Journal:
        os.close(durable.create(path))
        return cls(path)

    def read(self) -> dict[bytes, Remembered]:
        return decode_journal(os.pread(self._fd, os.fstat(self._fd).st_size, 0))

    def book(self, entries: int) -> None:
        """Book blocks for this many further entries, so that a full disk does not stop the journal of a booked file."""
        durable.fallocate(self._fd, (self._next + entries) * RECORD_BYTES, durable.FALLOC_FL_KEEP_SIZE)

    def marked(self, key: bytes, chunk: int, mark: bytes) -> None:
        self._append(encode_entry(key, chunk, mark))

    def completed(self, files: Iterable[tuple[bytes, Digest]]) -> None:
        self._append(b"".join(encode_entry(key, COMPLETE, bytes.fromhex(digest.hex)) for key, digest in files))

    def forgotten(self, key: bytes) -> None:
        self._append(encode_entry(key, FORGET, b""))

    def takes_over(self, key: bytes, marks: Mapping[int, bytes]) -> None:
        """Chunks that another ingest marked are now for this one to go on with."""
        self._append(b"".join(encode_entry(key, chunk, mark) for chunk, mark in marks.items()))

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, records: bytes) -> None:
        """Write at the place of the next whole record: a torn one before it shifts nothing."""
        with self._lock:
            if self._fd < 0:
                raise Cancelled("the ingest has ended")
            durable.write_all(self._fd, records, self._next * RECORD_BYTES)
            self._next += len(records) // RECORD_BYTES


class JournalTail:
    """The journal of another ingest, read as it grows. Stays readable when that ingest and its directory are gone.

    Attributes:
        found: what it says so far.
        size_bytes: how long it is.
    """

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._read_bytes = 0
        self.found: dict[bytes, Remembered] = {}
        self.size_bytes = 0

    def read(self) -> None:
        """Read what was added. The last record is read again next time if it is none: it may be being written."""
        self.size_bytes = os.fstat(self._fd).st_size
        data = os.pread(self._fd, self.size_bytes - self._read_bytes, self._read_bytes)
        for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            if not _note(self.found, data[at : at + RECORD_BYTES]) and at + 2 * RECORD_BYTES > len(data):
                return
            self._read_bytes += RECORD_BYTES

    def close(self) -> None:
        os.close(self._fd)
