"""Which snapshots show which contents: a packed table that is joined with the blobs one fan-out directory at a time."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence

from modelcache.store.layout import is_hex

_LINK = struct.Struct("<16sI")
"""What follows the first byte in a content's digest, and a snapshot's number: 20 bytes, where the same in Python's own dictionaries takes
about 500. 136 bits tell contents apart: two that agree in them would take 2**68 tries to make."""
_KEY = slice(2, 34)


class Links:
    """The links of all snapshots, in one row of bytes per fan-out directory (`blobs/sha256/ab`); several of one snapshot to one content
    stand side by side."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, bytearray] = defaultdict(bytearray)

    def add(self, snapshot: int, links: Mapping[str, int]) -> None:
        """Args: links: hex digits of a content → names in this snapshot. What has no digits (a damaged tree's) can be no blob's."""
        for digits, count in links.items():
            if is_hex(digits, 64):
                self._rows[digits[:2]] += _LINK.pack(bytes.fromhex(digits[_KEY]), snapshot) * count

    def take(self, directory: str) -> Mapping[bytes, Sequence[tuple[int, int]]]:
        """`key` of each content of this directory that is shown at all → the snapshots that do, and how often; then they are forgotten."""
        found: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for key, snapshot in _LINK.iter_unpack(self._rows.pop(directory, b"")):
            shown = found[key]
            if shown and shown[-1][0] == snapshot:
                shown[-1] = (snapshot, shown[-1][1] + 1)
            else:
                shown.append((snapshot, 1))
        return found

    @staticmethod
    def key(digits: str) -> bytes:
        """What a content is called within its directory."""
        return bytes.fromhex(digits[_KEY])
