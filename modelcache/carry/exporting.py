"""From snapshots to one file that holds everything an import needs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import xxhash

from modelcache.abc.snapshot import Ref, Snapshot
from modelcache.abc.store import Store
from modelcache.carry.contents import MAX_RECORD_BYTES, MAX_RECORDS_BYTES, Blob, Contents
from modelcache.carry.file import Place, Write, written
from modelcache.carry.holding import held_all
from modelcache.carry.tar import BLOCK_BYTES, END, header, padding
from modelcache.chunks import CHUNK_BYTES, ChunkTable
from modelcache.digest import Digest, sha256
from modelcache.errors import BadConfig, DamagedBlob
from modelcache.patience import Cancellation
from modelcache.store.direct import DiskReader
from modelcache.store.faults import disk_faults

BytesProgress = Callable[[int, int], None]
"""`progress(bytes_done, bytes_total)` of blobs."""
HOLDER = "export"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A snapshot to export, with the refs that go with it."""

    manifest: Digest
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export holds.

    Attributes:
        snapshots: in the order of their digits.
        uris: that lead to them.
        blobs_bytes: content, each once.
        size_bytes: of the export.
    """

    snapshots: tuple[Digest, ...]
    uris: tuple[str, ...]
    files: int
    blobs: int
    blobs_bytes: int
    size_bytes: int
    elapsed_s: float


def export(store: Store, chosen: Sequence[Chosen], place: Place, *, progress: BytesProgress | None, cancel: Cancellation) -> ExportReport:
    """Write these snapshots, held meanwhile, every byte compared with its digest on the way.

    Raises:
        NotCached: one was evicted before it could be held.
        DamagedBlob: the disk holds other bytes than it should.
        NoSpace, FileFault, Cancelled: and then there is no file of that name, or the one that was there.
    """
    started_s = time.monotonic()
    with held_all(store, [item.manifest for item in chosen], HOLDER) as (snapshots, renew):
        refs = {ref.key: ref for item in chosen for ref in item.refs}
        contents = Contents.of([store.manifest(digest) for digest in snapshots], tuple(refs.values()))
        _check_records(contents)
        size_bytes = contents.size_bytes
        with written(place, size_bytes, cancel) as put:

            def write(data: bytes | memoryview) -> None:
                renew()
                put(data)

            for name, data in contents.records():
                write(header(name, len(data)) + data + padding(len(data)))
            _Blobs(snapshots, write, contents.blobs_bytes, progress, cancel).put(contents.blobs)
            write(END)
    return ExportReport(
        snapshots=tuple(contents.manifests),
        uris=tuple(sorted({ref.key.uri for ref in contents.refs})),
        files=sum(len(manifest.files) for manifest in contents.manifests.values()),
        blobs=len(contents.blobs),
        blobs_bytes=contents.blobs_bytes,
        size_bytes=size_bytes,
        elapsed_s=time.monotonic() - started_s,
    )


def _check_records(contents: Contents) -> None:
    """No export that an import would refuse."""
    sizes = [len(data) for _, data in contents.records()]
    total_bytes = sum(sizes) + BLOCK_BYTES * len(sizes)
    if max(sizes) > MAX_RECORD_BYTES or total_bytes > MAX_RECORDS_BYTES:
        raise BadConfig(
            "these are too many files for one export",
            expected=f"records of at most {MAX_RECORD_BYTES} bytes each, and {MAX_RECORDS_BYTES} together",
            got=f"{max(sizes)} and {total_bytes}",
            hint="export fewer models at once",
        )


class _Blobs:
    """Writes blobs and their chunk tables."""

    def __init__(
        self, snapshots: dict[Digest, Snapshot], write: Write, total_bytes: int, progress: BytesProgress | None, cancel: Cancellation
    ) -> None:
        self._snapshots = snapshots
        self._write = write
        self._total_bytes = total_bytes
        self._progress = progress
        self._cancel = cancel
        self._done_bytes = 0

    def put(self, blobs: Sequence[Blob]) -> None:
        for blob in blobs:
            self._write(header(blob.name, blob.size_bytes))
            table = self._body(blob)
            self._write(padding(blob.size_bytes))
            if blob.has_table:
                data = table.encode()
                self._write(header(blob.table_name, len(data)) + data + padding(len(data)))

    def _body(self, blob: Blob) -> ChunkTable:
        """Its bytes from the disk; raises DamagedBlob before the last of them if they are not what they should be."""
        manifest, relative = blob.file
        path = self._snapshots[manifest].path / relative
        total = hashlib.sha256()
        marks: list[bytes] = []
        size_bytes = 0
        for view in _chunks(path):
            self._cancel.check()
            total.update(view)
            marks.append(xxhash.xxh3_128_digest(view))
            size_bytes += view.nbytes
            if size_bytes > blob.size_bytes:
                break
            self._write(view)
            self._told(view.nbytes)
        got = sha256(total.hexdigest())
        if got != blob.digest:
            raise DamagedBlob(f"`{path}` is not what it should be", address=str(path), expected=str(blob.digest), got=str(got))
        return ChunkTable(size_bytes, tuple(marks))

    def _told(self, count: int) -> None:
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)


def _chunks(path: Path) -> Iterator[memoryview]:
    """The bytes of a file from the disk; each view is good until the next."""
    with disk_faults(str(path)):
        reader = DiskReader(path, CHUNK_BYTES)
    with closing(reader):
        chunks = reader.chunks()
        while True:
            with disk_faults(str(path)):
                view = next(chunks, None)
            if view is None:
                return
            yield view
