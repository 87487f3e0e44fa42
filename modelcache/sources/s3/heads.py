"""What the headers of an answer, or a line of a listing, say about an object. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelcache.chunks import CHUNK_BYTES
from modelcache.digest import Algorithm, Digest
from modelcache.errors import AccessDenied, InvalidUri, ProtocolViolation
from modelcache.sources.s3.locator import NULL_VERSION, ObjectName

CHECKSUMS = {
    "x-amz-checksum-sha256": Algorithm.SHA256,
    "x-amz-checksum-sha1": Algorithm.SHA1,
    "x-amz-checksum-crc32": Algorithm.CRC32,
    "x-amz-checksum-crc32c": Algorithm.CRC32C,
    "x-amz-checksum-crc64nvme": Algorithm.CRC64NVME,
}
KNOWN_ALGORITHMS = frozenset({"SHA256", "SHA1", "CRC32", "CRC32C", "CRC64NVME"})
"""As listings write them. S3 API, Object."""
ARCHIVED_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects must be restored before a GET (GLACIER_IR needs no restore). S3 API, HeadObject."""
CHECKSUM_HEADERS = "x-amz-checksum-"
DIRECTORY_TYPE = "application/x-directory"
READY_CLASSES = frozenset({"", "STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"})
"""Storage classes whose objects can be read at once, whatever else is to be known of them. S3 API, Object."""
MAX_NAME_CHARACTERS = 1024
"""Of what names a version: S3's limit for ids of versions; ETags have some 40. A longer one is none: very many are in memory at once."""

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')  # RFC 9110 §8.8.3, without obsolete characters, which no request can name
_COMPOSITE = re.compile(r"-[0-9]+$")


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """One version of an object.

    Attributes:
        etag: strong, with its quotes; empty if the store gives none. It names the version and nothing else: it is an md5 of the
            bytes only for some ways of uploading and encrypting, so it is never compared with one.
        version_id: None where there is none or it doesn't last (`null`).
        versioned: the bucket keeps versions, or has kept some.
        digests: checksums over the whole object. A composite one (a checksum of the parts' checksums, `…-N`) says nothing
            about the bytes without the sizes of the parts and is left out.
        directory_marker: an empty object that some tools put for a folder.
    """

    size_bytes: int
    etag: str
    version_id: str | None
    digests: tuple[Digest, ...]
    directory_marker: bool
    versioned: bool = False


@dataclass(frozen=True, slots=True)
class ListedObject:
    """What ListObjectsV2 says of an object. Many stores leave the algorithms out.

    Attributes:
        algorithms: of the checksums that were made of it, as S3 writes them.
        modified_at_s: Unix time.
    """

    name: ObjectName
    size_bytes: int
    etag: str
    storage_class: str
    algorithms: frozenset[str]
    modified_at_s: float

    @property
    def says_enough(self) -> bool:
        """Whether HeadObject would tell nothing that is needed before the bytes are asked for.

        The bytes of an object of one chunk come with one request, whose answer states the same checksums as HeadObject's. A
        sha256 known before can spare that request; and the answers to requests for parts state none.
        """
        small = self.size_bytes <= CHUNK_BYTES
        return small and "SHA256" not in self.algorithms and self.storage_class in READY_CLASSES and self.head.etag != ""

    @property
    def head(self) -> ObjectHead:
        """As far as the listing tells."""
        return ObjectHead(self.size_bytes, _strong(self.etag), None, (), False)


def object_head(headers: Mapping[str, str], name: ObjectName) -> ObjectHead:
    """Read an answer's headers (lower-case names).

    Raises:
        AccessDenied: the object is archived and has to be restored first.
        ProtocolViolation: no size.
    """
    _check_restored(headers, name)
    size = headers.get("content-length", "")
    if not (size.isascii() and size.isdecimal()):
        raise ProtocolViolation("the store states no size of an object", address=name.address, got=ascii(size[:40]))
    version_id = headers.get("x-amz-version-id")
    return ObjectHead(
        size_bytes=int(size),
        etag=_strong(headers.get("etag", "")),
        version_id=version_id if version_id and version_id != NULL_VERSION and len(version_id) <= MAX_NAME_CHARACTERS else None,
        digests=stated_digests(headers, name),
        versioned=version_id is not None,
        directory_marker=size == "0" and headers.get("content-type", "").startswith(DIRECTORY_TYPE),
    )


def stated_digests(headers: Mapping[str, str], name: ObjectName) -> tuple[Digest, ...]:
    """The checksums over the whole object that an answer states. Raises ProtocolViolation: one that can't be read."""
    if headers.get("x-amz-checksum-type", "").upper() == "COMPOSITE":
        return ()
    found = []
    for header in sorted(header for header in headers if header.startswith(CHECKSUM_HEADERS)):
        algorithm, value = CHECKSUMS.get(header), headers[header]
        if algorithm is None or _COMPOSITE.search(value):
            continue
        try:
            found.append(Digest.of_base64(algorithm, value))
        except InvalidUri as error:
            raise ProtocolViolation(f"the store's checksum can't be read: {error.message}", address=name.address) from None
    return tuple(found)


def _strong(etag: str) -> str:
    return etag if len(etag) <= MAX_NAME_CHARACTERS and _STRONG_ETAG.fullmatch(etag) else ""


def _check_restored(headers: Mapping[str, str], name: ObjectName) -> None:
    archived = headers.get("x-amz-storage-class") in ARCHIVED_CLASSES or "x-amz-archive-status" in headers
    restore = headers.get("x-amz-restore", "")
    if archived and 'ongoing-request="false"' not in restore:
        under_way = 'ongoing-request="true"' in restore
        raise AccessDenied(
            f"the object is archived and {'still being restored' if under_way else 'not restored'} (InvalidObjectState)",
            address=name.address,
            hint="pull again when the restore is done" if under_way else "restore it first: `aws s3api restore-object --help`",
        )
