"""Archives for tests: read from a file without a store, and written with headers that no honest tool writes."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.source import Listing, Source
from modelcache.digest import Digest, sha256
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange


class MemoryArchive:
    """The bytes of an archive, as a store would have them at hand."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size_bytes = len(data)
        self.sha256: Digest | None = sha256(hashlib.sha256(data).hexdigest())

    def read(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + buffer.nbytes > self.size_bytes:
            raise AssertionError(f"[{offset}, {offset + buffer.nbytes}) is outside of {self.size_bytes} bytes")
        buffer[:] = self._data[offset : offset + buffer.nbytes]


def bring_from(source: Source) -> Callable[[Listing, Cancellation], MemoryArchive]:
    """What stands in for the store below an `ArchiveSource`: reads the listed file into memory."""

    def bring(listing: Listing, cancel: Cancellation) -> MemoryArchive:
        [file] = listing.files
        data = bytearray()
        if file.size_bytes:
            body = source.open(file, ByteRange(0, file.size_bytes), cancel)
            buffer = memoryview(bytearray(1 << 20))
            while count := body.readinto(buffer):
                data += buffer[:count]
            body.close()
        return MemoryArchive(bytes(data))

    return bring


@dataclass(frozen=True)
class Written:
    """One entry to write.

    Attributes:
        kind: a tar type flag; of zip, `tarfile.SYMTYPE`, `DIRTYPE` and `FIFOTYPE` become modes.
        target: of a link.
    """

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""


def tar_of(entries: Sequence[Written], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with exactly these headers, whatever they say."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.linkname, info.size = entry.kind, entry.target, len(entry.data)
            archive.addfile(info, io.BytesIO(entry.data))
    return packed.getvalue()


def zip_of(entries: Sequence[Written], *, method: int = zipfile.ZIP_DEFLATED, level: int | None = None) -> bytes:
    """A zip with exactly these names, whatever they say."""
    packed = io.BytesIO()
    modes = {tarfile.SYMTYPE: 0o120777, tarfile.FIFOTYPE: 0o010644, tarfile.DIRTYPE: 0o040755}
    with zipfile.ZipFile(packed, "w", method, compresslevel=level) as archive:
        for entry in entries:
            info = zipfile.ZipInfo("x")
            info.filename = entry.name
            info.create_system, info.compress_type = 3, method
            info.external_attr = modes.get(entry.kind, 0o100644) << 16
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # a name that occurs twice
                archive.writestr(info, os.fsencode(entry.target) if entry.kind == tarfile.SYMTYPE else entry.data, compresslevel=level)
    return packed.getvalue()


def write_tree(directory: Path, files: Mapping[str, bytes]) -> None:
    """Files below a directory, for real tools to pack."""
    for path, data in files.items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def contents(directory: Path) -> dict[str, bytes]:
    """Path → bytes of every regular file below a directory."""
    found = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            place = Path(parent) / name
            found[place.relative_to(directory).as_posix()] = place.read_bytes()
    return found
