"""Running checksums of a file, beside its sha256: whatever the origin states and this installation can compute.

awscrt computes CRC32C and CRC64NVME at 25 GiB per core-second and without the GIL (measured against google_crc32c 11, zlib 4); it
comes with the `s3` extra. What can't be computed here is not counted as compared.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

from modelcache.digest import Algorithm, Digest, sha256
from modelcache.errors import DigestMismatch

_HASHLIB: dict[Algorithm, str] = {Algorithm.SHA256: "sha256", Algorithm.SHA1: "sha1", Algorithm.MD5: "md5"}


class Running(Protocol):
    """A checksum fed in file order."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc:
    def __init__(self, function: Callable[[memoryview, int], int], digits: int) -> None:
        self._function = function
        self._digits = digits
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"


def running(algorithm: Algorithm, size_bytes: int) -> Running | None:
    """A fresh checksum, or None where nothing here computes it."""
    name = _HASHLIB.get(algorithm)
    if name is not None:
        return hashlib.new(name, usedforsecurity=False)
    if algorithm is Algorithm.GIT_SHA1:
        return hashlib.sha1(f"blob {size_bytes}\0".encode(), usedforsecurity=False)
    if algorithm is Algorithm.CRC32:
        return _Crc(zlib.crc32, 8)
    return _awscrt(algorithm)


def _awscrt(algorithm: Algorithm) -> Running | None:
    try:
        from awscrt import checksums
    except ImportError:
        return None
    if algorithm is Algorithm.CRC32C:
        return _Crc(checksums.crc32c, 8)
    return _Crc(checksums.crc64nvme, 16)


class Verification:
    """sha256 of a file and everything its origin states, fed in file order. Not thread-safe; `update` lets the GIL go."""

    def __init__(self, size_bytes: int, stated: Iterable[Digest]) -> None:
        self._sha256 = hashlib.sha256()
        self._stated = tuple(stated)
        self._others: dict[Algorithm, Running] = {}
        for digest in self._stated:
            made = None if digest.algorithm is Algorithm.SHA256 else running(digest.algorithm, size_bytes)
            if made is not None:
                self._others[digest.algorithm] = made

    def update(self, data: memoryview) -> None:
        self._sha256.update(data)
        for other in self._others.values():
            other.update(data)

    @property
    def compared(self) -> tuple[Digest, ...]:
        """What the origin stated and `result` compares."""
        return tuple(item for item in self._stated if item.algorithm is Algorithm.SHA256 or item.algorithm in self._others)

    def result(self, address: str, size_bytes: int) -> Digest:
        """The sha256, once all bytes were fed.

        Raises:
            DigestMismatch: it, or another checksum, is not what was stated.
        """
        computed = sha256(self._sha256.hexdigest())
        for stated in self.compared:
            other = self._others.get(stated.algorithm)
            got = computed if other is None else Digest(stated.algorithm, other.hexdigest())
            if got != stated:
                raise DigestMismatch(
                    f"content of `{address}` does not match its digest: expected {stated}, got {got} ({size_bytes:,} bytes read)",
                    address=address,
                    expected=str(stated),
                    got=str(got),
                )
        return computed
