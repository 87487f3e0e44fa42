"""What an export holds, in which order and under which names (`docs/format.md`, Exports). Pure: no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from modelcache.abc.snapshot import Ref
from modelcache.carry.tar import END, header, member_bytes
from modelcache.chunks import MARK_BYTES, ChunkTable, chunk_count
from modelcache.digest import Digest
from modelcache.manifest import Manifest
from modelcache.store.blobs import EMPTY
from modelcache.store.layout import half_digest
from modelcache.store.refs import encode_ref
from modelcache.units import MIB

MARKER_NAME = "modelcache-export"
FORMAT = b"modelcache export 1\n"
MAX_MARKER_BYTES = 1024
MAX_RECORD_BYTES = 64 * MIB
"""A manifest or ref: one of 300,000 files. What is larger is not read into memory on a stranger's word."""
MAX_RECORDS_BYTES = 256 * MIB
"""All manifests and refs of an export, with a header each: of a million files or so."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that an export carries once, however many files show them.

    Attributes:
        digest: their sha256.
        file: where a snapshot of the export shows them: its manifest and the path in it.
    """

    digest: Digest
    size_bytes: int
    file: tuple[Digest, str]

    @property
    def name(self) -> str:
        return f"blobs/sha256/{self.digest.hex[:2]}/{self.digest.hex}"

    @property
    def table_name(self) -> str:
        return f"chunks/sha256/{self.digest.hex[:2]}/{self.digest.hex}"

    @property
    def has_table(self) -> bool:
        """A blob of one chunk has no table: its digest says the same."""
        return chunk_count(self.size_bytes) > 1

    @property
    def table_bytes(self) -> int:
        return len(ChunkTable(0, ()).encode()) + chunk_count(self.size_bytes) * MARK_BYTES


@dataclass(frozen=True)
class Contents:
    """The records of an export, and the blobs that follow from them.

    Attributes:
        manifests: by digest, in the order of its digits.
        refs: in the order of their names.
    """

    manifests: Mapping[Digest, Manifest]
    refs: tuple[Ref, ...]

    @classmethod
    def of(cls, manifests: Sequence[Manifest], refs: Sequence[Ref]) -> Contents:
        ordered = {manifest.digest: manifest for manifest in sorted(manifests, key=lambda manifest: manifest.digest.hex)}
        return cls(ordered, tuple(sorted(refs, key=ref_name)))

    @cached_property
    def blobs(self) -> tuple[Blob, ...]:
        """Each content once, in the order of manifests and of the files in them; empty files have none."""
        found: dict[Digest, Blob] = {}
        for digest, manifest in self.manifests.items():
            for item in manifest.files:
                if item.sha256 != EMPTY:
                    found.setdefault(item.sha256, Blob(item.sha256, item.size_bytes, (digest, item.path)))
        return tuple(found.values())

    @property
    def blobs_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)

    @cached_property
    def digest(self) -> str:
        """Hex digits that name this set of snapshots."""
        return hashlib.sha256("".join(digest.hex for digest in self.manifests).encode()).hexdigest()

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of what stands before the blobs."""
        yield MARKER_NAME, self.marker
        yield from self._marked()

    @cached_property
    def marker(self) -> bytes:
        """The format, and a digest over the records behind it: nothing else would tell that one is altered or gone."""
        total = hashlib.sha256()
        for name, data in self._marked():
            total.update(header(name, len(data)) + data)
        return FORMAT + f"records {total.hexdigest()}\n".encode()

    def _marked(self) -> Iterator[tuple[str, bytes]]:
        for digest, manifest in self.manifests.items():
            yield manifest_name(digest), manifest.encode()
        for ref in self.refs:
            yield ref_name(ref), encode_ref(ref)

    @property
    def size_bytes(self) -> int:
        """Of the whole export."""
        records = sum(member_bytes(name, len(data)) for name, data in self.records())
        blobs = sum(member_bytes(blob.name, blob.size_bytes) for blob in self.blobs)
        tables = sum(member_bytes(blob.table_name, blob.table_bytes) for blob in self.blobs if blob.has_table)
        return records + blobs + tables + len(END)


def manifest_name(digest: Digest) -> str:
    return f"manifests/{digest.hex}.json"


def ref_name(ref: Ref) -> str:
    return f"refs/{half_digest(ref.key.uri)}{half_digest(ref.key.origin)}.json"
