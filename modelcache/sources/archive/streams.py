"""Expanded bytes in order: of what lies in the archive as it is, and of what is deflated there."""

from __future__ import annotations

import zlib
from bisect import bisect_right

from modelcache.errors import BadArchive
from modelcache.sources.archive.members import ArchiveBytes, Bytes
from modelcache.units import KIB, MIB

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WBITS = 31
"""zlib's own reading of a gzip header and check of its CRC and size (zlib manual, inflateInit2)."""
RAW_WBITS = -15
FEED_BYTES = 16 * KIB
"""What a decompressor gets at a time: it keeps what it did not use, and so does every copy of it."""
INPUT_BYTES = 128 * KIB
BLOCK_BYTES = MIB
MARK_BYTES = 256 * KIB
"""Members that begin less than this behind a mark are reached by expanding from it: under a millisecond."""
MOST_MARKS = 2048
"""About 40 KiB each (32 KiB of window): 80 MiB at most."""


class Plain:
    """A piece of the archive as it stands."""

    def __init__(self, archive: ArchiveBytes, start: int, stop: int) -> None:
        self._archive = archive
        self._stop = stop
        self.position = start

    def read(self, want: int) -> bytes:
        data = bytearray(max(0, min(want, self._stop - self.position)))
        if data:
            self._archive.read(self.position, memoryview(data))
        self.position += len(data)
        return bytes(data)


class Inflated:
    """What a deflated piece of the archive expands to; of gzip, of all its members one after the other."""

    def __init__(self, archive: ArchiveBytes, start: int, stop: int, *, gzip: bool, address: str) -> None:
        self._archive = archive
        self.gzip = gzip
        self._address = address
        self._input = Plain(archive, start, stop)
        self._stop = stop
        self._block, self._fed = b"", 0
        self._zlib = _decompressor(gzip)
        self.position = 0

    def copy(self) -> Inflated:
        """Another one that goes on from here."""
        start = self._input.position - len(self._block) + self._fed
        other = Inflated(self._archive, start, self._stop, gzip=self.gzip, address=self._address)
        other._zlib = self._zlib.copy()
        other.position = self.position
        return other

    def read(self, want: int) -> bytes:
        while True:
            if self._zlib.eof and not self._next_member():
                return b""
            fed = self._zlib.unconsumed_tail or self._feed()
            try:
                data = self._zlib.decompress(fed, want)
            except zlib.error as error:
                raise self._damaged(str(error)) from None
            if data:
                self.position += len(data)
                return data
            if not fed and not self._zlib.eof:
                raise self._damaged("it ends in the middle")

    @property
    def input_left_bytes(self) -> int:
        """Of the piece, what was not used."""
        unfed_bytes = self._stop - self._input.position + len(self._block) - self._fed
        return unfed_bytes + len(self._zlib.unconsumed_tail) + len(self._zlib.unused_data)

    def _feed(self) -> bytes:
        if self._fed == len(self._block):
            self._block, self._fed = self._input.read(INPUT_BYTES), 0
        fed = self._block[self._fed : self._fed + FEED_BYTES]
        self._fed += len(fed)
        return fed

    def _next_member(self) -> bool:
        """Begin the next member of a gzip file; zeros after the last one are padding."""
        if not self.gzip:
            return False
        rest = self._zlib.unused_data
        while True:
            rest = rest.lstrip(b"\0")
            if len(rest) < len(GZIP_MAGIC):
                more = self._feed()
                if more:
                    rest += more
                    continue
            break
        if not rest:
            return False
        if not rest.startswith(GZIP_MAGIC):
            raise self._damaged("something else follows it")
        self._block, self._fed = rest + self._block[self._fed :], 0
        self._zlib = _decompressor(True)
        return True

    def _damaged(self, how: str) -> BadArchive:
        return BadArchive(f"the archive's compressed data is damaged ({how})", address=self._address)


class MarkedGzip:
    """Where a gzip file can be entered in the middle: decompressors kept at some of its expanded bytes.

    While it is read for the first time `mark` is called where something begins; `at` then opens its bytes. Marks thin out when
    there are many: to open costs more then, and memory stays bounded.
    """

    def __init__(self, archive: ArchiveBytes, *, address: str) -> None:
        self._distance_bytes = MARK_BYTES
        self._marks = [Inflated(archive, 0, archive.size_bytes, gzip=True, address=address)]

    def first(self) -> Inflated:
        """From the start."""
        return self._marks[0].copy()

    def mark(self, at: Inflated) -> None:
        if at.position - self._marks[-1].position < self._distance_bytes:
            return
        self._marks.append(at.copy())
        if len(self._marks) > MOST_MARKS:
            self._marks = self._marks[::2]
            self._distance_bytes *= 2

    def at(self, position: int) -> Inflated:
        """Expanded bytes from this one on."""
        number = bisect_right(self._marks, position, key=lambda mark: mark.position) - 1
        stream = self._marks[number].copy()
        skip(stream, position - stream.position)
        return stream


def skip(stream: Bytes, size_bytes: int) -> bool:
    """Read this many bytes and forget them; whether there were as many."""
    while size_bytes > 0:
        data = stream.read(min(size_bytes, BLOCK_BYTES))
        if not data:
            return False
        size_bytes -= len(data)
    return True


def read_exactly(stream: Bytes, size_bytes: int) -> bytes:
    """This many bytes, or fewer at the end."""
    parts = []
    while size_bytes > 0:
        data = stream.read(size_bytes)
        if not data:
            break
        parts.append(data)
        size_bytes -= len(data)
    return b"".join(parts)


def _decompressor(gzip: bool) -> zlib._Decompress:
    return zlib.decompressobj(GZIP_WBITS if gzip else RAW_WBITS)
