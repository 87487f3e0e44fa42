"""An archive in memory, and what comes out of it."""

from __future__ import annotations

import gzip
import random
import zipfile

from modelcache.abc.source import Listing, Origin, RemoteFile
from modelcache.fetch.checksums import Verification
from modelcache.patience import Cancellation
from modelcache.sources.archive import ArchiveLimits, ArchiveSource
from modelcache.testing.archives import MemoryArchive, Written, tar_of, zip_of
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.source_contract import read
from modelcache.uri import StorageUri

LIMITS = ArchiveLimits()
ADDRESS = "memory://origin/model.tar"


def opened(
    data: bytes, *, name: str = "model.tar", limits: ArchiveLimits = LIMITS, include: tuple[str, ...] = ()
) -> tuple[ArchiveSource, tuple[RemoteFile, ...]]:
    """A source over one archive, and what it lists."""
    archive = MemoryArchive(data)
    source = ArchiveSource(MemorySource({name: data}), lambda listing, cancel: archive, lambda revision, listing, cancel: None, limits)
    found: Listing = source.list(StorageUri("memory", "origin", name, include=include), Cancellation())
    assert found.origin == Origin("memory://origin:1")
    return source, found.files


def unpacked(data: bytes, *, name: str = "model.tar", limits: ArchiveLimits = LIMITS, include: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Path → bytes, compared with what the archive states of them."""
    source, files = opened(data, name=name, limits=limits, include=include)
    found = {}
    for file in files:
        content = read(source, file) if file.size_bytes else b""
        check = Verification(file.size_bytes, file.digests)
        check.update(memoryview(content))
        check.result(file.path, file.size_bytes)
        found[file.path] = content
    return found


def gz(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


MEMBERS = [Written("config.json", b"{}"), Written("w.bin", random.Random(1).randbytes(3000) + bytes(3000)), Written("d/empty", b"")]
EXPECTED = {entry.name: entry.data for entry in MEMBERS}
GOOD = {
    "tar": tar_of(MEMBERS),
    "tgz": gz(tar_of(MEMBERS)),
    "zip": zip_of(MEMBERS),
    "stored zip": zip_of(MEMBERS, method=zipfile.ZIP_STORED),
}
