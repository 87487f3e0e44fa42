"""From a file that nobody vouches for to snapshots: all of it verified, or nothing of it kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import xxhash

from modelcache.abc.ingest import IncomingFile, Ingest, IngestFile, Route
from modelcache.abc.snapshot import Ref, RefKey, Snapshot
from modelcache.abc.store import Store
from modelcache.carry.contents import Blob, Contents
from modelcache.carry.exporting import BytesProgress
from modelcache.carry.file import Place, address_of, opened
from modelcache.carry.reading import ExportReader
from modelcache.chunks import CHUNK_BYTES, ChunkTable
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedBlob, DamagedExport
from modelcache.fetch.small_files import BATCH_FILES
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation

IMPORT_URI = "import:"
"""What the ingest of an import is filed under, with the digest of its contents for an origin: no URI of a model."""

GONE_HINT = "a verify took it out of service: import the file again, which writes the blob anew"


@dataclass(frozen=True, slots=True)
class Imported:
    """One snapshot of an import.

    Attributes:
        uris: that lead to it now.
        superseded: URIs whose ref here was confirmed later than the file's, and stayed.
        hit: it was here before.
    """

    snapshot: Snapshot
    uris: tuple[str, ...]
    superseded: tuple[str, ...]
    size_bytes: int
    files: int
    hit: bool


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        written_bytes: of blobs that were not here.
        reused_bytes: of blobs that were; compared all the same.
        read_bytes: of the file.
    """

    snapshots: tuple[Imported, ...]
    written_bytes: int
    reused_bytes: int
    read_bytes: int
    elapsed_s: float


def import_file(store: Store, place: Place, *, progress: BytesProgress | None, cancel: Cancellation) -> ImportReport:
    """Bring in everything that an export holds, after every byte of it was verified.

    Raises:
        DamagedExport: it is cut off, altered, or no export; nothing of it is kept.
        DamagedBlob: a blob that was here was found damaged meanwhile; again, and it is written anew.
        NoSpace: it doesn't fit; told before the first blob.
        FileFault, StoreError, Cancelled: nothing of it is kept.
    """
    started_s = time.monotonic()
    with opened(place, cancel) as readinto:
        reader = ExportReader(readinto, address_of(place))
        contents = reader.contents()
        ingest = store.ingest(RefKey(IMPORT_URI, contents.digest), [_wanted(blob) for blob in contents.blobs])
        try:
            brought = [file for file in ingest.files if file.sha256 is None and not file.claimed]
            ingest.book(ingest.claim(brought, anyway=True))  # the bytes are at hand: whoever fetches some of them is not waited for
            filling = _Filling(ingest, reader, contents, progress, cancel)
            filling.fill(address_of(place))
            reader.end()
            cancel.check()
            snapshots = tuple(_publish(store, manifest, contents.refs) for manifest in contents.manifests.values())
        finally:
            ingest.discard()  # blobs that a snapshot names stay
    return ImportReport(
        snapshots=snapshots,
        written_bytes=filling.written_bytes,
        reused_bytes=contents.blobs_bytes - filling.written_bytes,
        read_bytes=reader.read_bytes,
        elapsed_s=time.monotonic() - started_s,
    )


def _wanted(blob: Blob) -> IngestFile:
    return IngestFile(f"{blob.digest.hex[:2]}/{blob.digest.hex}", blob.size_bytes, str(blob.digest), blob.digest)


class _Filling:
    """Reads blobs, and writes those that are not here."""

    def __init__(
        self, ingest: Ingest, reader: ExportReader, contents: Contents, progress: BytesProgress | None, cancel: Cancellation
    ) -> None:
        self._ingest = ingest
        self._reader = reader
        self._contents = contents
        self._progress = progress
        self._cancel = cancel
        self._done_bytes = 0
        self._small: list[tuple[IncomingFile, Digest, ChunkTable]] = []
        self.written_bytes = 0

    def fill(self, address: str) -> None:
        total_bytes = self._contents.blobs_bytes
        for blob, file in zip(self._contents.blobs, self._ingest.files, strict=True):
            missing = file.sha256 is None
            total = hashlib.sha256()
            marks: list[bytes] = []
            for number, view in enumerate(self._reader.blob(blob)):
                self._cancel.check()
                total.update(view)
                marks.append(xxhash.xxh3_128_digest(view))
                if missing:
                    file.write(number * CHUNK_BYTES, view, Route.DIRECT)
                    file.mark(number, marks[-1])
                    self.written_bytes += view.nbytes
                self._done_bytes += view.nbytes
                if self._progress is not None:
                    self._progress(self._done_bytes, total_bytes)
            table = ChunkTable(blob.size_bytes, tuple(marks))
            self._compare(blob, sha256(total.hexdigest()), table, address)
            if missing:
                self._complete(file, blob.digest, table)
        self._flush()

    def _compare(self, blob: Blob, got: Digest, table: ChunkTable, address: str) -> None:
        stated = self._reader.table(blob) if blob.has_table else None
        if got == blob.digest and stated in (None, table):
            return
        bad = [index for index, mark in enumerate(table.marks) if stated is not None and stated.marks[index] != mark]
        where = f"; chunks of 4 MiB that differ: {', '.join(map(str, bad[:20]))}" if bad else ""
        thing = blob.name if got != blob.digest else blob.table_name
        message = f"`{thing}` of the export doesn't match its digest: expected {blob.digest}, got {got}{where}"
        raise DamagedExport(message, address=address, expected=str(blob.digest), got=str(got))

    def _complete(self, file: IncomingFile, digest: Digest, table: ChunkTable) -> None:
        if file.size_bytes > CHUNK_BYTES:
            file.complete(digest, table)
            return
        self._small.append((file, digest, table))
        if len(self._small) == BATCH_FILES:
            self._flush()

    def _flush(self) -> None:
        """Small files become durable together."""
        self._ingest.complete(self._small)
        self._small.clear()


def _publish(store: Store, manifest: Manifest, refs: Sequence[Ref]) -> Imported:
    """Publish a snapshot whose blobs are all held, and file the refs that lead to it."""
    mine = [_claimed(ref) for ref in refs if ref.manifest == manifest.digest]
    newer = [ref for ref in mine if _is_superseded(store, ref)]
    filed = [ref for ref in mine if ref not in newer]
    snapshot = store.snapshot(manifest.digest)
    hit = snapshot is not None
    if snapshot is None:
        snapshot = _link(store, manifest, filed[0] if filed else None)
    for ref in filed:
        if not _is_confirmed(store, ref):
            store.attach(ref)
    return Imported(
        snapshot=snapshot,
        uris=tuple(sorted({ref.key.uri for ref in filed})),
        superseded=tuple(sorted({ref.key.uri for ref in newer})),
        size_bytes=manifest.size_bytes,
        files=len(manifest.files),
        hit=hit,
    )


def _claimed(ref: Ref) -> Ref:
    """A time that is still to come would keep the ref from ever being the older one; one before 1970 is of no calendar, or of no clock."""
    now_s = time.time()
    return replace(ref, created_at_s=min(max(ref.created_at_s, 0.0), now_s), checked_at_s=min(max(ref.checked_at_s, 0.0), now_s))


def _is_superseded(store: Store, ref: Ref) -> bool:
    here = store.ref(ref.key)
    return here is not None and here.manifest != ref.manifest and here.checked_at_s > ref.checked_at_s


def _is_confirmed(store: Store, ref: Ref) -> bool:
    """Whether a ref here says the same, and was confirmed no earlier."""
    here = store.ref(ref.key)
    return here is not None and here.manifest == ref.manifest and here.checked_at_s >= ref.checked_at_s


def _link(store: Store, manifest: Manifest, ref: Ref | None) -> Snapshot:
    """The snapshot, published. Without a ref it is found by its digest alone.

    The ingest has a key of its own: under the ref's it would take over what an interrupted pull of the URI has kept, and drop it.

    Raises:
        DamagedBlob: a blob of it was found damaged meanwhile, and taken out of service.
    """
    key = RefKey(IMPORT_URI, manifest.digest.hex)
    nameless = Ref(key, "", False, manifest.digest, (), 0.0, 0.0)
    wanted = [IngestFile(item.path, item.size_bytes, "", item.sha256) for item in manifest.files]
    ingest = store.ingest(key, wanted)
    try:
        for file in ingest.files:
            if file.sha256 is None:
                raise DamagedBlob(f"the blob of `{file.path}` went while it was imported", hint=GONE_HINT)
        return ingest.publish(manifest, ref or nameless)
    finally:
        ingest.discard()
        if ref is None:
            store.forget(key)
