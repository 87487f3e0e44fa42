"""tar: entries one after the other, each a header of 512 bytes and its data (POSIX pax, GNU tar manual "Basic Tar Format")."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from modelcache.errors import BadArchive
from modelcache.patience import Cancellation
from modelcache.sources.archive.limits import MAX_NAME_BYTES, ArchiveLimits
from modelcache.sources.archive.members import ArchiveBytes, Bytes, Entry, Kind
from modelcache.sources.archive.streams import BLOCK_BYTES, GZIP_MAGIC, Inflated, MarkedGzip, Plain, read_exactly
from modelcache.units import MIB

BLOCK = tarfile.BLOCKSIZE
EXTENDED_BYTES = MIB
"""An extended header may be this long: names, times and attributes."""
_EXTENDED = {b"x", b"g", b"L", b"K"}
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_KINDS = {
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.SYMTYPE: Kind.SYMBOLIC_LINK,
    tarfile.CHRTYPE: Kind.DEVICE,
    tarfile.BLKTYPE: Kind.DEVICE,
    tarfile.FIFOTYPE: Kind.DEVICE,
}
_RECORD = re.compile(rb"([1-9][0-9]{0,19}) ")


class TarEntries:
    """The entries of a tar, packed with gzip or not. Read once, by iterating; `Entry.start` works for as long as the archive does."""

    def __init__(self, archive: ArchiveBytes, limits: ArchiveLimits, cancel: Cancellation, *, address: str) -> None:
        self._archive = archive
        self._limits = limits
        self._cancel = cancel
        self._address = address
        self._gzip = MarkedGzip(archive, address=address) if _first_bytes(archive) == GZIP_MAGIC else None
        self._stream: Plain | Inflated = Plain(archive, 0, archive.size_bytes) if self._gzip is None else self._gzip.first()

    def __iter__(self) -> Iterator[Entry]:
        """Raises BadArchive: it is no tar, is damaged or cut off, passes a limit, or has entries of a kind that is not known."""
        said = _Extended()
        count = 0
        while (header := self._header()) is not None:
            self._cancel.check()
            count += 1
            self._limits.check_entries(count, self._address)
            if header.type in _EXTENDED:
                self._extend(said, header)
                continue
            yield self._entry(header, said)
            said = _Extended()
        self._to_the_end()

    def _header(self) -> tarfile.TarInfo | None:
        """The next header; None at the block of zeros that ends a tar."""
        block = read_exactly(self._stream, BLOCK)
        if block == bytes(BLOCK):
            return None
        if len(block) < BLOCK:
            raise self._bad("it ends without an end mark: it was cut off, or is no tar")
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise self._bad(f"a header at byte {self._stream.position - BLOCK} is none ({error})") from None

    def _extend(self, said: _Extended, header: tarfile.TarInfo) -> None:
        size_bytes = self._checked_size(header.size)
        if size_bytes > EXTENDED_BYTES:
            raise self._bad(f"an extended header of {size_bytes} bytes")
        data = read_exactly(self._stream, size_bytes)
        self._skip(-size_bytes % BLOCK)
        if len(data) < size_bytes:
            raise self._bad("it ends in a header")
        if header.type == b"L":
            said.name = self._text(data.partition(b"\0")[0])
        elif header.type == b"K":
            said.target = self._text(data.partition(b"\0")[0])
        else:
            self._pax(said, data, is_global=header.type == b"g")

    def _pax(self, said: _Extended, data: bytes, *, is_global: bool) -> None:
        """`LENGTH KEY=VALUE\\n`, the length counting itself (POSIX.1-2017, pax, "pax Extended Header")."""
        at = 0
        while at < len(data) and data[at : at + 1] != b"\0":
            match = _RECORD.match(data, at)
            end = at + int(match.group(1)) if match else 0
            if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
                raise self._bad("an extended header can't be read")
            key, equals, value = data[match.end() : end - 1].partition(b"=")
            if not equals:
                raise self._bad("an extended header can't be read")
            self._record(said, key, value, is_global=is_global)
            at = end

    def _record(self, said: _Extended, key: bytes, value: bytes, *, is_global: bool) -> None:
        if key.startswith(b"GNU.sparse"):
            raise self._bad("it holds a sparse file", "pack it without `--sparse`")
        if key not in (b"path", b"linkpath", b"size"):
            return
        if is_global:
            raise self._bad(f"a global header sets `{key.decode()}`")
        if key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise self._bad("a size is no number")
            said.size_bytes = int(value)
        elif key == b"path":
            said.name = self._text(value)
        else:
            said.target = self._text(value)

    def _entry(self, header: tarfile.TarInfo, said: _Extended) -> Entry:
        name = said.name if said.name is not None else header.name
        target = said.target if said.target is not None else header.linkname
        kind = Kind.FILE if header.type in _FILES else _KINDS.get(header.type)
        if kind is None:
            sparse = header.type == tarfile.GNUTYPE_SPARSE
            raise self._bad(
                "it holds a sparse file" if sparse else f"it holds an entry of the unknown kind {header.type!r}",
                "pack it without `--sparse`" if sparse else None,
            )
        if kind is not Kind.FILE:  # whatever size its header says, no data follows: as Python's tarfile and KServe read it
            return Entry(name, kind, target=target)
        if name.endswith("/"):
            kind = Kind.DIRECTORY
        size_bytes = self._checked_size(said.size_bytes if said.size_bytes is not None else header.size)
        entry = self._file(name, size_bytes) if kind is Kind.FILE else Entry(name, kind)
        self._skip_data(size_bytes)
        return entry

    def _file(self, name: str, size_bytes: int) -> Entry:
        at = self._stream.position
        marked, archive = self._gzip, self._archive
        if marked is None or isinstance(self._stream, Plain):
            return Entry(name, Kind.FILE, size_bytes, start=lambda offset: Plain(archive, at + offset, at + size_bytes), ranged=True)
        marked.mark(self._stream)
        return Entry(name, Kind.FILE, size_bytes, start=lambda offset: marked.at(at + offset))

    def _checked_size(self, size_bytes: int) -> int:
        if size_bytes < 0:
            raise self._bad("a size is negative")
        self._limits.check_bytes(self._stream.position + size_bytes, self._archive.size_bytes, self._address)
        return size_bytes

    def _skip_data(self, size_bytes: int) -> None:
        if not self._skip(size_bytes + -size_bytes % BLOCK):
            raise self._bad("it ends in the middle of a file")

    def _skip(self, size_bytes: int) -> bool:
        """Pass over this many bytes; whether there were as many."""
        if isinstance(self._stream, Plain):
            self._stream.position += size_bytes
            return self._stream.position <= self._archive.size_bytes
        while size_bytes > 0:
            self._cancel.check()
            data = self._stream.read(min(size_bytes, BLOCK_BYTES))
            if not data:
                return False
            size_bytes -= len(data)
        return True

    def _to_the_end(self) -> None:
        """Of gzip, so that its check counts; what follows the end mark means nothing."""
        while not isinstance(self._stream, Plain) and self._stream.read(BLOCK_BYTES):
            self._cancel.check()
            self._limits.check_bytes(self._stream.position, self._archive.size_bytes, self._address)

    def _text(self, data: bytes) -> str:
        if len(data) > MAX_NAME_BYTES:
            raise self._bad(f"a name of {len(data)} bytes")
        return data.decode("utf-8", "surrogateescape")

    def _bad(self, what: str, hint: str | None = None) -> BadArchive:
        kind = "tar" if self._gzip is None else "tar packed with gzip"
        return BadArchive(f"the archive can't be read as a {kind}: {what}", address=self._address, hint=hint)


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the entry that follows them."""

    name: str | None = None
    target: str | None = None
    size_bytes: int | None = None


def _first_bytes(archive: ArchiveBytes) -> bytes:
    stream: Bytes = Plain(archive, 0, archive.size_bytes)
    return stream.read(len(GZIP_MAGIC))
