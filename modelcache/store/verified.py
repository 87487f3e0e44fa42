"""When blobs were last read back and found right: hints, for who decides what to read next."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import xxhash

from modelcache.digest import Digest
from modelcache.errors import DamagedRecord
from modelcache.store import records
from modelcache.store.layout import Layout
from modelcache.store.root import Root

MAGIC = b"modelcache verified 1\n"
_RECORD = struct.Struct(">32sQ")
_CHECK = struct.Struct(">Q")


class Verified:
    """The record `verified` of a store, or of one of its compartments. Losing it costs reading blobs again earlier than need be."""

    def __init__(self, root: Root, layout: Layout | None = None) -> None:
        self._root = root
        self._path = (layout or root.layout).verified

    def times(self) -> dict[str, int]:
        """Hex digits of a blob → Unix time in whole seconds; blobs that were never read back are not in it."""
        try:
            return decode_times(records.read(self._path))
        except (FileNotFoundError, DamagedRecord):
            return {}

    def add(self, times: Mapping[str, int], living: set[str]) -> None:
        """Note these times, keep others', and leave out what is none of `living`. Takes the shared store lock: of two who do so at
        once one may be lost."""
        with self._root.lock.shared():
            merged = self.times() | dict(times)
            records.replace(self._path, encode_times({digits: at_s for digits, at_s in merged.items() if digits in living}))

    def oldest_s(self, digests: set[Digest]) -> float | None:
        """When the one of these that was longest not read back was; None if one never was."""
        times = self.times()
        found = [times.get(digest.hex) for digest in digests]
        known = [at_s for at_s in found if at_s is not None]
        return float(min(known)) if known and len(known) == len(found) else None


def encode_times(times: Mapping[str, int]) -> bytes:
    """`docs/format.md`, verified."""
    body = MAGIC + b"".join(_RECORD.pack(bytes.fromhex(digits), times[digits]) for digits in sorted(times))
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def decode_times(data: bytes) -> dict[str, int]:
    """Read `encode_times`'s bytes back. Raises DamagedRecord."""
    body, check = data[: -_CHECK.size], data[-_CHECK.size :]
    if not body.startswith(MAGIC) or (len(body) - len(MAGIC)) % _RECORD.size or check != _CHECK.pack(xxhash.xxh3_64_intdigest(body)):
        raise DamagedRecord("not a record of verified blobs")
    return {digest.hex(): at_s for digest, at_s in _RECORD.iter_unpack(body[len(MAGIC) :])}
