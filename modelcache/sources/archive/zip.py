"""zip: a directory at the end that says where every file is (PKWARE APPNOTE 6.3.10)."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from modelcache.errors import BadArchive
from modelcache.patience import Cancellation
from modelcache.sources.archive.limits import MAX_NAME_BYTES, ArchiveLimits
from modelcache.sources.archive.members import ArchiveBytes, Bytes, Entry, Kind
from modelcache.sources.archive.streams import Inflated, Plain, read_exactly
from modelcache.units import MIB

STORED, DEFLATED = 0, 8
ENCRYPTED_BITS = 0x0001 | 0x0040 | 0x2000
UTF8_BIT = 0x0800
UNIX = 3
LARGE16, LARGE32 = 0xFFFF, 0xFFFFFFFF
_END = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_MAGIC = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC = b"PK\x06\x06"
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_MAGIC = b"PK\x01\x02"
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_COMMENT_BYTES = 0xFFFF


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory is. `shift`: bytes that stand before the archive (of a self-extracting one)."""

    start: int
    stop: int
    entries: int
    shift: int


@dataclass(frozen=True, slots=True)
class _Record:
    """One entry of the central directory."""

    name: bytes
    flags: int
    method: int
    crc32: int
    packed_bytes: int
    size_bytes: int
    mode: int
    at: int


class ZipEntries:
    """The entries of a zip. `Entry.start` works for as long as the archive does."""

    def __init__(self, archive: ArchiveBytes, limits: ArchiveLimits, cancel: Cancellation, *, address: str) -> None:
        self._archive = archive
        self._limits = limits
        self._cancel = cancel
        self._address = address

    def __iter__(self) -> Iterator[Entry]:
        """Raises BadArchive: it is no zip, is damaged, cut off or encrypted, passes a limit, or is packed in a way that is not known."""
        directory = self._directory()
        self._limits.check_entries(directory.entries, self._address)
        total, taken = 0, []
        for count, record in enumerate(self._records(directory), start=1):
            self._cancel.check()
            self._limits.check_entries(count, self._address)
            total += record.size_bytes
            self._limits.check_bytes(total, self._archive.size_bytes, self._address)
            start = self._data_start(record)
            stop = start + record.packed_bytes
            if stop > directory.start:
                raise self._bad(f"the bytes of {record.name[:80]!r} go on into its directory")
            taken.append((record.at, stop))
            yield self._entry(record, start)
        taken.sort()
        ends = [*(start for start, _ in taken[1:]), directory.start]
        if any(stop > end for (_, stop), end in zip(taken, ends, strict=bool(taken))):
            raise self._bad("entries overlap")

    # -- the directory ----------------------------------------------------------------------------------------------

    def _directory(self) -> _Directory:
        size_bytes = self._archive.size_bytes
        tail_at = max(0, size_bytes - _END.size - _COMMENT_BYTES)
        tail = self._read(tail_at, size_bytes - tail_at)
        at = tail.rfind(_END_MAGIC)
        while at >= 0:
            if at + _END.size <= len(tail):
                _, disk, first_disk, here, entries, length, offset, comment = _END.unpack_from(tail, at)
                if at + _END.size + comment == len(tail):
                    break
            at = tail.rfind(_END_MAGIC, 0, at)
        else:
            raise self._bad("it has no end: it was cut off, or is no zip")
        stop = tail_at + at
        if LARGE16 in (disk, first_disk, here, entries) or LARGE32 in (length, offset):
            stop, disk, first_disk, here, entries, length, offset = self._directory64(stop)
        shift = stop - length - offset
        if disk or first_disk or here != entries:
            raise self._bad("it is one of several parts")
        if shift < 0:
            raise self._bad("its directory is cut off")
        return _Directory(stop - length, stop, entries, shift)

    def _directory64(self, end: int) -> tuple[int, int, int, int, int, int, int]:
        """Stop of the directory and the numbers of the 64-bit end record, which stands right before its locator."""
        locator_at = end - _LOCATOR.size
        magic, _, offset, _ = _LOCATOR.unpack(self._read(locator_at, _LOCATOR.size))
        if magic != _LOCATOR_MAGIC:
            return self._no_directory64()
        for at in {offset, locator_at - _END64.size}:  # the offset counts from the archive's start, which may not be the file's
            if 0 <= at <= locator_at - _END64.size:
                magic, size, _, _, disk, first_disk, here, entries, length, start = _END64.unpack(self._read(at, _END64.size))
                if magic == _END64_MAGIC and at + 12 + size == locator_at:
                    return at, disk, first_disk, here, entries, length, start
        return self._no_directory64()

    def _no_directory64(self) -> tuple[int, int, int, int, int, int, int]:
        raise self._bad("its directory can't be found")

    def _records(self, directory: _Directory) -> Iterator[_Record]:
        stream = _Buffered(self._archive, directory.start, directory.stop)
        count = 0
        while stream.left_bytes:
            fixed = stream.take(_CENTRAL.size)
            if len(fixed) < _CENTRAL.size or fixed[:4] != _CENTRAL_MAGIC:
                raise self._bad("its directory is damaged")
            fields = _CENTRAL.unpack(fixed)
            made_by, flags, method, crc32 = fields[1], fields[3], fields[4], fields[7]
            name_bytes, extra_bytes, comment_bytes = fields[10:13]
            attributes, at = fields[15:17]
            if name_bytes > MAX_NAME_BYTES:
                raise self._bad(f"a name of {name_bytes} bytes")
            name, extra = stream.take(name_bytes), stream.take(extra_bytes)
            if len(stream.take(comment_bytes)) < comment_bytes:
                raise self._bad("its directory is damaged")
            size_bytes, packed_bytes, at = self._sizes64(extra, fields[9], fields[8], at)
            mode = attributes >> 16 if made_by >> 8 == UNIX else 0
            yield _Record(name, flags, method, crc32, packed_bytes, size_bytes, mode, at + directory.shift)
            count += 1
        if count != directory.entries:
            raise self._bad(f"its directory has {count} entries, not {directory.entries}")

    def _sizes64(self, extra: bytes, size_bytes: int, packed_bytes: int, at: int) -> tuple[int, int, int]:
        """The numbers that don't fit in 32 bits stand in an extra field, in this order (APPNOTE 4.5.3)."""
        numbers = [size_bytes, packed_bytes, at]
        if LARGE32 not in numbers:
            return size_bytes, packed_bytes, at
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<2H", extra)
            field, extra = extra[4 : 4 + length], extra[4 + length :]
            if kind == 1 and len(field) >= 8 * numbers.count(LARGE32):
                wide = iter(struct.unpack_from(f"<{numbers.count(LARGE32)}Q", field))
                first, second, third = (next(wide) if number == LARGE32 else number for number in numbers)
                return first, second, third
        raise self._bad("a 64-bit size is missing")

    # -- one entry --------------------------------------------------------------------------------------------------

    def _data_start(self, record: _Record) -> int:
        """Where its bytes begin: behind a local header, which has to name the same file."""
        header = self._read(record.at, _LOCAL.size)
        if header[:4] != _LOCAL_MAGIC:
            raise self._bad(f"{record.name[:80]!r} is not where the directory says")
        name_bytes, extra_bytes = _LOCAL.unpack(header)[9:11]
        if self._read(record.at + _LOCAL.size, name_bytes) != record.name:
            raise self._bad(f"{record.name[:80]!r} has another name in the directory than beside its bytes")
        return record.at + _LOCAL.size + int(name_bytes) + int(extra_bytes)

    def _entry(self, record: _Record, start: int) -> Entry:
        name = _name(record)
        if record.flags & ENCRYPTED_BITS:
            raise self._bad(f"{name[:80]!a} is encrypted", "decrypt it, and pack it without a password")
        if name.endswith("/"):
            return Entry(name, Kind.DIRECTORY)
        kind = stat.S_IFMT(record.mode)
        if kind == stat.S_IFDIR:
            return Entry(name, Kind.DIRECTORY)
        if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
            return Entry(name, Kind.DEVICE)
        if record.method not in (STORED, DEFLATED) or (record.method == STORED and record.packed_bytes != record.size_bytes):
            raise self._bad(f"{name[:80]!a} is packed with method {record.method}; stored (0) and deflated (8) can be read")
        if record.size_bytes == 0 and (record.crc32 != 0 or self._has_bytes(record, start)):
            raise self._bad(f"{name[:80]!a} has no size, and bytes")
        entry = self._file(name, record, start)
        if kind != stat.S_IFLNK:
            return entry
        return Entry(name, Kind.SYMBOLIC_LINK, target=self._target(entry))

    def _file(self, name: str, record: _Record, start: int) -> Entry:
        archive, address = self._archive, self._address
        stop = start + record.packed_bytes
        if record.method == STORED:
            return Entry(
                name,
                Kind.FILE,
                record.size_bytes,
                start=lambda offset: Plain(archive, start + offset, stop),
                ranged=True,
                crc32=record.crc32,
            )
        return Entry(
            name,
            Kind.FILE,
            record.size_bytes,
            start=lambda offset: Inflated(archive, start, stop, gzip=False, address=address),
            crc32=record.crc32,
        )

    def _has_bytes(self, record: _Record, start: int) -> bool:
        """Of what says that it is empty, and is never read."""
        if record.packed_bytes == 0:
            return False
        stream = Inflated(self._archive, start, start + record.packed_bytes, gzip=False, address=self._address)
        return bool(stream.read(1)) or stream.input_left_bytes > 0

    def _target(self, link: Entry) -> str:
        if link.size_bytes > MAX_NAME_BYTES or link.start is None:
            raise self._bad(f"{link.name[:80]!a} is a link with a target of {link.size_bytes} bytes")
        return read_exactly(link.start(0), link.size_bytes).decode("utf-8", "surrogateescape")

    def _read(self, at: int, size_bytes: int) -> bytes:
        if at < 0 or at + size_bytes > self._archive.size_bytes:
            raise self._bad("it points behind its end")
        return read_exactly(Plain(self._archive, at, at + size_bytes), size_bytes)

    def _bad(self, what: str, hint: str | None = None) -> BadArchive:
        return BadArchive(f"the archive can't be read as a zip: {what}", address=self._address, hint=hint)


def _name(record: _Record) -> str:
    """UTF-8 where it says so, and where it is so (Info-ZIP and macOS don't say); else the code page of the format."""
    try:
        return record.name.decode("utf-8")
    except UnicodeDecodeError:
        return record.name.decode("utf-8" if record.flags & UTF8_BIT else "cp437", "surrogateescape")


class _Buffered:
    """A piece of the archive, read in blocks and taken in small parts."""

    def __init__(self, archive: ArchiveBytes, start: int, stop: int) -> None:
        self._stream: Bytes = Plain(archive, start, stop)
        self._block, self._at = b"", 0
        self.left_bytes = stop - start

    def take(self, want: int) -> bytes:
        """This many bytes, or fewer at the end."""
        if len(self._block) - self._at < want:
            self._block = self._block[self._at :] + read_exactly(self._stream, MIB)
            self._at = 0
        data = self._block[self._at : self._at + want]
        self._at += len(data)
        self.left_bytes -= len(data)
        return data
