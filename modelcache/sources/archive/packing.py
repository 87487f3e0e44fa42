"""What an archive is packed as: told by how it begins, because names are often wrong about that; by its name where that tells nothing."""

from __future__ import annotations

import tarfile

from modelcache.errors import BadArchive
from modelcache.patience import Cancellation
from modelcache.sources.archive.limits import ArchiveLimits
from modelcache.sources.archive.members import ArchiveBytes
from modelcache.sources.archive.streams import GZIP_MAGIC, Plain
from modelcache.sources.archive.tar import TarEntries
from modelcache.sources.archive.zip import ZipEntries

ZIP_SUFFIX, ZIP_MAGIC = ".zip", b"PK"
OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "packed as 7z",
    b"Rar!\x1a\x07": "packed as rar",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\0": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
"""Beginnings of files that are called archives and aren't one that is unpacked here: 7-Zip's 7zFormat.txt, RARLAB's technote.txt, the
.xz file format 1.2.1, RFC 8878 (zstd), bzip2's manual."""


def entries_of(archive: ArchiveBytes, name: str, limits: ArchiveLimits, cancel: Cancellation, *, address: str) -> TarEntries | ZipEntries:
    """What is in it.

    Args:
        name: of the archive's file.

    Raises:
        BadArchive: it is packed in another way, or is no archive.
    """
    head = Plain(archive, 0, archive.size_bytes).read(tarfile.BLOCKSIZE)
    if head.startswith(ZIP_MAGIC):
        return ZipEntries(archive, limits, cancel, address=address)
    if head.startswith(GZIP_MAGIC) or _begins_tar(head):
        return TarEntries(archive, limits, cancel, address=address)
    for beginning, what in OTHERS.items():
        if head.startswith(beginning):
            hint = "pack it anew, or keep it as the file that it is: #unpack=false"
            raise BadArchive(f"{name!a} is {what}, and no tar, tar.gz or zip", address=address, hint=hint)
    kind = ZipEntries if name.lower().endswith(ZIP_SUFFIX) else TarEntries  # they tell what is wrong with it
    return kind(archive, limits, cancel, address=address)


def _begins_tar(head: bytes) -> bool:
    if head == bytes(tarfile.BLOCKSIZE):
        return True  # the end of one that holds nothing
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True
