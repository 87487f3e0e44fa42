"""Which snapshots show which contents: a packed table that is joined with the blobs one fan-out directory at a time."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence

from modelcache.store.layout import is_hex

_LINK = struct.Struct("<16sII")
"""What follows the first byte in a content's digest, a snapshot's number, how often that one shows it: 24 bytes, where the same in Python's
own dictionaries takes about 500. 136 bits tell contents apart: two that agree in them would take 2**68 tries to make."""
_KEY = slice(2, 34)


class Links:
    """The links of all snapshots, in one row of bytes per fan-out directory (`blobs/sha256/ab`)."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, bytearray] = defaultdict(bytearray)

    def add(self, snapshot: int, links: Mapping[str, int]) -> None:
        """Args: links: hex digits of a content → names in this snapshot. What has no digits (a damaged tree's) can be no blob's."""
        for digits, count in links.items():
            if is_hex(digits, 64):
                self._rows[digits[:2]] += _LINK.pack(bytes.fromhex(digits[_KEY]), snapshot, count)

    def of(self, directory: str) -> Mapping[bytes, Sequence[tuple[int, int]]]:
        """`key` of each content of this directory that is shown at all → the snapshots that do, and how often."""
        found: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for key, snapshot, count in _LINK.iter_unpack(self._rows.get(directory, b"")):
            found[key].append((snapshot, count))
        return found

    @staticmethod
    def key(digits: str) -> bytes:
        """What a content is called within its directory."""
        return bytes.fromhex(digits[_KEY])
