"""Digests and checksums: what names bytes (sha256) and what origins state about them."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import StrEnum

from modelcache.errors import InvalidUri


class Algorithm(StrEnum):
    """What a value was computed with. Only SHA256 is identity; the others are compared, never used as a name."""

    SHA256 = "sha256"
    SHA1 = "sha1"
    MD5 = "md5"
    CRC32 = "crc32"
    CRC32C = "crc32c"
    CRC64NVME = "crc64nvme"
    GIT_SHA1 = "git-sha1"
    """sha1 over `blob <size>\\0` and the bytes: git's object id, what the Hub states of files outside LFS."""


HEX_LENGTHS = {
    Algorithm.SHA256: 64,
    Algorithm.SHA1: 40,
    Algorithm.MD5: 32,
    Algorithm.CRC32: 8,
    Algorithm.CRC32C: 8,
    Algorithm.CRC64NVME: 16,
    Algorithm.GIT_SHA1: 40,
}
_HEX = re.compile(r"[0-9a-f]+")
FEWEST_DIGITS = 8
"""Of a sha256, that a name may be."""
_SHORT = re.compile(rf"(?:sha256:)?([0-9a-f]{{{FEWEST_DIGITS},64}})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """One algorithm's value over all bytes of a file; printed as `sha256:9f2c…`, lower-case hex."""

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != HEX_LENGTHS[self.algorithm] or not _HEX.fullmatch(self.hex):
            raise InvalidUri(
                f"`{self.hex}` is not a {self.algorithm} digest: {HEX_LENGTHS[self.algorithm]} lower-case hex digits are needed",
                got=self.hex,
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `algorithm:hex`; upper-case hex is accepted and made lower.

        Raises:
            InvalidUri: an unknown algorithm or a wrong number of hex digits.
        """
        name, _, value = text.partition(":")
        try:
            algorithm = Algorithm(name)
        except ValueError:
            known = ", ".join(Algorithm)
            raise InvalidUri(f"`{text}` is not a digest", got=text, hint=f"write ALGORITHM:HEX with one of {known}") from None
        return cls(algorithm, value.lower())

    @classmethod
    def of_base64(cls, algorithm: Algorithm, text: str) -> Digest:
        """The same from base64, the form of `x-amz-checksum-*`, `x-goog-hash` and `Repr-Digest`.

        Raises:
            InvalidUri: not base64, or of another length.
        """
        try:
            return cls(algorithm, base64.b64decode(text, validate=True).hex())
        except (binascii.Error, ValueError):
            raise InvalidUri(f"`{text}` is not base64 of a {algorithm} digest", got=text) from None


def sha256(hex_digits: str) -> Digest:
    """Short for `Digest(Algorithm.SHA256, …)`."""
    return Digest(Algorithm.SHA256, hex_digits)


def digits_of(name: str) -> str | None:
    """The hex digits of a name that is a sha256 (`sha256:…` or not) or its first 8 or more digits; None: it is something else.

    Raises InvalidUri: it begins as a digest and is none.
    """
    found = _SHORT.fullmatch(name)
    if found is None and name.startswith("sha256:"):
        hint = "write 64 hex digits in small letters, or the first 8 or more; a file of that name is `./sha256:…`"
        raise InvalidUri(f"`{name}` is not a digest", got=name, hint=hint)
    return None if found is None else found.group(1)


def nearly_digits(name: str) -> str | None:
    """Why a name of nothing but hex digits is no digest, for who finds no path of that name, either; None: it is one, or no such name."""
    if not re.fullmatch("[0-9A-Fa-f]+", name) or digits_of(name) is not None:
        return None
    if len(name) < FEWEST_DIGITS:
        return f"`{name}` is too short for a digest: {FEWEST_DIGITS} or more hex digits are needed"
    if len(name) > HEX_LENGTHS[Algorithm.SHA256]:
        return f"`{name}` is too long for a digest: it has {HEX_LENGTHS[Algorithm.SHA256]} hex digits, these are {len(name)}"
    return f"`{name}` is no digest: write its hex digits in small letters"
