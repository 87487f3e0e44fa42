"""Checksums that HTTP servers state about a whole file, in the headers of an answer to a GET."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping

from modelcache.digest import Algorithm, Digest
from modelcache.errors import InvalidUri

_ALGORITHMS = {
    "sha-256": Algorithm.SHA256,
    "sha": Algorithm.SHA1,
    "md5": Algorithm.MD5,
    "crc32c": Algorithm.CRC32C,
}
"""Names of the HTTP digest registry (RFC 9530 §7.2, RFC 3230 §4.1.1) and of `x-goog-hash`."""
_AMAZON = {
    "x-amz-checksum-sha256": Algorithm.SHA256,
    "x-amz-checksum-sha1": Algorithm.SHA1,
    "x-amz-checksum-crc32": Algorithm.CRC32,
    "x-amz-checksum-crc32c": Algorithm.CRC32C,
    "x-amz-checksum-crc64nvme": Algorithm.CRC64NVME,
}
_HEX_HEADERS = {
    "x-checksum-sha256": Algorithm.SHA256,
    "x-checksum-sha1": Algorithm.SHA1,
    "x-checksum-md5": Algorithm.MD5,
}
"""Artifactory and Nexus."""
_LINKED_ETAG = re.compile(r'"?([0-9a-fA-F]{64})"?')
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_log = logging.getLogger(__name__)


def stated_digests(status: int, headers: Mapping[str, str], redirects: tuple[Mapping[str, str], ...] = ()) -> tuple[Digest, ...]:
    """Every digest of the whole file that an answer states, one per algorithm.

    `Content-Digest`, `Content-MD5` and `x-amz-checksum-*` are of the bytes in the answer, so they count in a 200 only; the others
    are of the file also in a 206. `X-Linked-Etag` (Hugging Face: the sha256 of a file in LFS) also counts on a redirect. One that
    can't be read is left out, with a warning.

    Args:
        status: 200 or 206.
        headers: looked up without regard to case.
    """
    found: dict[Algorithm, Digest] = {}
    for name, read in _readers(status, headers):
        text = headers.get(name)
        if text is None:
            continue
        try:
            for digest in read(text):
                found.setdefault(digest.algorithm, digest)
        except InvalidUri:
            _log.warning("header `%s` holds no readable digest: %s", name, ascii(text[:100]))
    for answer in (headers, *redirects):
        match = _LINKED_ETAG.fullmatch(answer.get("x-linked-etag", ""))
        if match:
            found.setdefault(Algorithm.SHA256, Digest(Algorithm.SHA256, match.group(1).lower()))
    return tuple(sorted(found.values()))


def _readers(status: int, headers: Mapping[str, str]) -> Iterator[tuple[str, Callable[[str], Iterator[Digest]]]]:
    yield "repr-digest", _dictionary
    yield "digest", _list
    for name, algorithm in _HEX_HEADERS.items():
        yield name, _hex_of(algorithm)
    # Google's is of the object as stored; without this header it is stored as it was served.
    if headers.get("x-goog-stored-content-encoding", "identity") == "identity":
        yield "x-goog-hash", _list
    yield "x-ms-blob-content-md5", _base64_of(Algorithm.MD5)
    if status == 200:
        yield "content-digest", _dictionary
        yield "content-md5", _base64_of(Algorithm.MD5)
        if headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
            for name, algorithm in _AMAZON.items():
                yield name, _base64_of(algorithm)


def _dictionary(text: str) -> Iterator[Digest]:
    """`sha-256=:base64:, …` (RFC 9530, a dictionary of RFC 8941)."""
    for name, value in _pairs(text):
        if name in _ALGORITHMS:
            match = _BYTES.fullmatch(value.partition(";")[0].strip())
            yield Digest.of_base64(_ALGORITHMS[name], match.group(1) if match else value)


def _list(text: str) -> Iterator[Digest]:
    """`SHA-256=base64,md5=base64` (RFC 3230, `x-goog-hash`)."""
    for name, value in _pairs(text):
        if name in _ALGORITHMS:
            yield Digest.of_base64(_ALGORITHMS[name], value)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        yield name.strip().lower(), value.strip()


def _hex_of(algorithm: Algorithm) -> Callable[[str], Iterator[Digest]]:
    def read(text: str) -> Iterator[Digest]:
        yield Digest(algorithm, text.strip().lower())

    return read


def _base64_of(algorithm: Algorithm) -> Callable[[str], Iterator[Digest]]:
    def read(text: str) -> Iterator[Digest]:
        # S3 ends the checksum of a multipart upload's parts with their number; that is none of the whole.
        if not re.search(r"-[0-9]+$", text):
            yield Digest.of_base64(algorithm, text.strip())

    return read
