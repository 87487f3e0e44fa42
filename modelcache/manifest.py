"""The manifest: path, size and sha256 of every file of one exact version; its own sha256 names the snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from modelcache.digest import Algorithm, Digest, sha256
from modelcache.errors import DamagedRecord, ModelCacheError
from modelcache.paths import check_tree, checked_compartment

VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class ManifestFile:
    """One file: relative POSIX path, size, and the sha256 that names its blob."""

    path: str
    size_bytes: int
    sha256: Digest

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or self.sha256.algorithm is not Algorithm.SHA256:
            raise ValueError(f"not a file of a manifest: {self.size_bytes} bytes, {self.sha256.algorithm}")


@dataclass(frozen=True)
class Manifest:
    """The files of a snapshot, sorted by the bytes of their path; equal content gives equal bytes and so an equal digest.

    Attributes:
        compartment: the namespace whose own inodes the snapshot shows; its name is another one for that. Empty: it shows those that
            all share.
    """

    files: tuple[ManifestFile, ...]
    compartment: str = ""

    @classmethod
    def of(cls, files: Iterable[ManifestFile], compartment: str = "") -> Manifest:
        """A manifest of these files in canonical order.

        Raises:
            UnsafePath: the paths can't form one tree.
        """
        unordered = list(files)
        check_tree(item.path for item in unordered)
        return cls(tuple(sorted(unordered, key=lambda item: item.path.encode("utf-8"))), compartment)

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.files)

    def encode(self) -> bytes:
        """Canonical JSON (`docs/format.md`): UTF-8, sorted keys, no spaces, one newline at the end."""
        record: dict[str, object] = {
            "files": [{"path": item.path, "sha256": item.sha256.hex, "size_bytes": item.size_bytes} for item in self.files],
            "version": VERSION,
        }
        if self.compartment:
            record["compartment"] = checked_compartment(self.compartment)
        return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8") + b"\n"

    @cached_property
    def digest(self) -> Digest:
        """sha256 of `encode()`: the name of the snapshot."""
        return sha256(hashlib.sha256(self.encode()).hexdigest())

    @classmethod
    def decode(cls, data: bytes, *, expect: Digest | None = None, address: str | None = None) -> Manifest:
        """Read `encode()`'s bytes back.

        Raises:
            DamagedRecord: not canonical, of another version, or of another digest than `expect`.
        """
        try:
            record = json.loads(data)
            if record["version"] != VERSION:
                raise DamagedRecord(f"manifest of version {record['version']!r}, known is {VERSION}", address=address)
            files = [ManifestFile(str(item["path"]), int(item["size_bytes"]), sha256(item["sha256"])) for item in record["files"]]
            manifest = cls.of(files, checked_compartment(record["compartment"]) if "compartment" in record else "")
        except DamagedRecord:
            raise
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ModelCacheError) as error:
            raise DamagedRecord(f"not a manifest ({error})", address=address) from error
        if manifest.encode() != data or (expect is not None and manifest.digest != expect):
            raise DamagedRecord(
                "manifest does not match its digest",
                address=address,
                expected=str(expect or manifest.digest),
                got=f"sha256:{hashlib.sha256(data).hexdigest()}",
            )
        return manifest
