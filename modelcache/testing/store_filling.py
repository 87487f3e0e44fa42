"""Put models into any `Store` without a source: what its contract, and tests of what stands above it, fill it with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from modelcache.abc.ingest import IncomingFile, Ingest, IngestFile, Route
from modelcache.abc.snapshot import Ref, RefFile, RefKey, Snapshot
from modelcache.abc.store import Store
from modelcache.chunks import ChunkTable, chunk_count, chunk_range
from modelcache.digest import Digest, sha256
from modelcache.manifest import Manifest, ManifestFile

URI = "s3://models/tiny"
ORIGIN = "https://s3.example.org:443"
VERSION = "origin locator etag-1"


def content(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that don't repeat; the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def digest_of(data: bytes) -> Digest:
    return sha256(hashlib.sha256(data).hexdigest())


def mark_of(data: bytes) -> bytes:
    """The mark of one chunk."""
    return xxhash.xxh3_128_digest(data)


def table_of(data: bytes) -> ChunkTable:
    return ChunkTable(len(data), tuple(mark_of(chunk_of(data, index)) for index in range(chunk_count(len(data)))))


def chunk_of(data: bytes, index: int) -> bytes:
    span = chunk_range(index, len(data))
    return data[span.start : span.stop]


def manifest_of(files: Mapping[str, bytes], compartment: str = "") -> Manifest:
    return Manifest.of((ManifestFile(path, len(data), digest_of(data)) for path, data in files.items()), compartment)


def ref_of(
    files: Mapping[str, bytes],
    *,
    uri: str = URI,
    origin: str = ORIGIN,
    revision: str = "main",
    at_s: float = 1_700_000_000.0,
    compartment: str = "",
) -> Ref:
    return Ref(
        key=RefKey(uri, origin, compartment),
        revision=revision,
        immutable=False,
        manifest=manifest_of(files, compartment).digest,
        files=tuple(RefFile(path, len(data), VERSION, digest_of(data)) for path, data in sorted(files.items())),
        created_at_s=at_s,
        checked_at_s=at_s,
    )


def version_of(data: bytes) -> str:
    """Names these exact bytes, as a version does."""
    return f"{VERSION} {digest_of(data).hex[:16]}"


def wanted(files: Mapping[str, bytes], *, known: bool = False, version: str | None = None, compartment: str = "") -> list[IngestFile]:
    """What to ask `Store.ingest` for; `known`: with digests, so that blobs that are here are linked."""
    return [
        IngestFile(path, len(data), version_of(data) if version is None else version, digest_of(data) if known else None, compartment)
        for path, data in files.items()
    ]


def write_chunks(file: IncomingFile, data: bytes, chunks: Sequence[int] | None = None, route: Route = Route.BUFFERED) -> None:
    """Write and mark these chunks of `data` (None: all)."""
    for index in range(chunk_count(len(data))) if chunks is None else chunks:
        part = chunk_of(data, index)
        file.write(chunk_range(index, len(data)).start, memoryview(part), route)
        file.mark(index, mark_of(part))


def complete_all(ingest: Ingest, files: Mapping[str, bytes], route: Route = Route.BUFFERED) -> None:
    """Write and complete every file of the ingest that is not complete yet, whoever else brings it."""
    ingest.book(ingest.claim([file for file in ingest.files if file.sha256 is None and not file.claimed], anyway=True))
    for file in ingest.files:
        if file.sha256 is None:
            data = files[file.path]
            write_chunks(file, data, route=route)
            file.complete(digest_of(data), table_of(data))


def complete_all_written(incoming: Iterable[IncomingFile], files: Mapping[str, bytes]) -> None:
    """Complete files of which every byte is written."""
    for file in incoming:
        file.complete(digest_of(files[file.path]), table_of(files[file.path]))


def fill(
    store: Store,
    files: Mapping[str, bytes],
    *,
    uri: str = URI,
    origin: str = ORIGIN,
    known: bool = False,
    route: Route = Route.BUFFERED,
    compartment: str = "",
) -> Snapshot:
    """Ingest and publish these files as one snapshot."""
    ref = ref_of(files, uri=uri, origin=origin, compartment=compartment)
    ingest = store.ingest(ref.key, wanted(files, known=known, compartment=compartment))
    try:
        complete_all(ingest, files, route)
        return ingest.publish(manifest_of(files, compartment), ref)
    finally:
        ingest.discard()
