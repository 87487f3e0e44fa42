"""What a store is: verified, immutable bytes on one machine, with holds that keep them and rules that remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from modelcache.chunks import ChunkTable
from modelcache.digest import Digest
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange, RangeSet


class Route(StrEnum):
    """How bytes reach the disk: through the page cache (someone reads them next) or around it."""

    BUFFERED = "buffered"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class RefKey:
    """What a ref is filed under: canonical URI and origin, as text."""

    uri: str
    origin: str


@dataclass(frozen=True, slots=True)
class RefFile:
    """One file of a resolved ref.

    Attributes:
        validator: what the origin named this version by (may be empty).
        sha256: of its bytes, computed here.
        stated: digests that the origin stated and that were compared; empty means `digest: computed`.
        claimed: the sha256 is the origin's word: a blob of that name was here, and no byte of it was read there.
    """

    path: str
    size_bytes: int
    validator: str
    sha256: Digest
    stated: tuple[Digest, ...] = ()
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """What a URI at an origin resolved to.

    Attributes:
        revision: the origin's name of the version, or a fingerprint.
        immutable: never needs to be resolved again.
        manifest: names the snapshot.
        created_at_s: Unix time of the first resolution to this manifest.
        checked_at_s: Unix time at which the origin last confirmed it.
    """

    key: RefKey
    revision: str
    immutable: bool
    manifest: Digest
    files: tuple[RefFile, ...]
    created_at_s: float
    checked_at_s: float

    @property
    def head(self) -> RefHead:
        return RefHead(
            key=self.key,
            revision=self.revision,
            immutable=self.immutable,
            manifest=self.manifest,
            size_bytes=sum(item.size_bytes for item in self.files),
            file_count=len(self.files),
            created_at_s=self.created_at_s,
            checked_at_s=self.checked_at_s,
        )


@dataclass(frozen=True, slots=True)
class RefHead:
    """A ref without its list of files: all that a hit needs, whatever the number of files."""

    key: RefKey
    revision: str
    immutable: bool
    manifest: Digest
    size_bytes: int
    file_count: int
    created_at_s: float
    checked_at_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published directory of one manifest: complete, verified, read-only.

    Attributes:
        digest: the manifest's.
        path: the directory; files in it are hard links to blobs.
        stale: of an ensure: it was due to be compared with its origin, which could not be asked. The last version that is known.
    """

    digest: Digest
    path: Path
    stale: bool = False


@dataclass(frozen=True, slots=True)
class IngestFile:
    """One file that an ingest is to end up with.

    Attributes:
        version: names these exact bytes at their origin (origin, locator and validator in one text); a journal of an
            earlier ingest counts only for the same version. Empty: never resumed.
        sha256: known before the fetch and allowed to be used; the blob is linked if it is here. None: not known.
    """

    path: str
    size_bytes: int
    version: str
    sha256: Digest | None

    @property
    def identity(self) -> str:
        """What says, before they are fetched, that two files have the same bytes; empty if nothing does."""
        return self.version if self.sha256 is None else str(self.sha256)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What can be seen of a file that another ingest brings, of this process or of another one.

    Attributes:
        here_bytes: how much of it that ingest has marked.
        sha256: once its blob is here: `IncomingFile.link` takes it.
        pulse: changes whenever the ingest that brings it gets on with any of its files.
    """

    here_bytes: int
    sha256: Digest | None
    pulse: tuple[int, ...]


class IncomingFile(Protocol):
    """A file of an ingest, being filled. Ranges may be written by many threads; each byte by one of them.

    Life: `write` puts bytes down, `mark` says a chunk of them is whole, `complete` publishes the file as a blob. Nobody else
    sees it before that. A crash keeps marked chunks as hints.
    """

    @property
    def path(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> Digest | None:
        """Set once the file is complete (held from the start, or after `complete`)."""
        ...

    @property
    def claimed(self) -> bool:
        """Whether it is for this ingest to bring the file. If not, another one does, and nothing may be written here."""
        ...

    def hints(self) -> Mapping[int, bytes]:
        """Chunk → xxh3-128 that an earlier, interrupted ingest journalled. True only if the disk still says so: check each."""
        ...

    def write(self, offset: int, data: memoryview, route: Route) -> None:
        """Write all of `data` at `offset`. DIRECT is a wish: a file system or alignment that can't falls back to BUFFERED.

        Raises:
            NoSpace: the disk filled up in spite of the reservation.
            StoreFault: EIO and the like.
        """
        ...

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what was written at `offset`. Raises StoreFault if the file is shorter."""
        ...

    def mark(self, chunk: int, mark: bytes) -> None:
        """Chunk `chunk` is written and has this xxh3-128: journal it, and wake those who wait for its range."""
        ...

    def ranges(self) -> RangeSet:
        """Which ranges are here (marked or checked hints; the whole file once complete)? A copy."""
        ...

    def wait(self, span: ByteRange, timeout_s: float, cancel: Cancellation) -> bool:
        """Wait until `span` is here; False when the time is over first.

        Raises:
            Cancelled: by `cancel`, or because the ingest ended without this range.
        """
        ...

    def complete(self, sha256: Digest, table: ChunkTable) -> None:
        """All bytes are written and have this sha256: make them durable and publish them as a blob.

        If the blob is here already, this file becomes a link to it and its own bytes are given back.
        """
        ...

    def link(self, sha256: Digest) -> bool:
        """Become a link to this blob if it is here now (another fetch published it meanwhile), giving the room booked for this
        file back; False if it is not here, and then nothing changed. The size must agree."""
        ...

    def restart(self) -> None:
        """Forget every byte and mark (the final digest was wrong); the reservation stays."""
        ...


class Ingest(Protocol):
    """A model on its way in: a reserved, invisible tree. Owned by this process; ends by `publish`, `keep` or `discard`.

    Of all ingests of the store, whatever their process, one at a time has the *claim* on a file of one identity: it brings it,
    without waiting for anything that another has claimed, and the others link it when it is published. Claims end with their
    ingest, or with its process, whatever ended that; who has the next one goes on with what was left.
    """

    @property
    def id(self) -> str: ...

    @property
    def files(self) -> Sequence[IncomingFile]:
        """In the order of the IngestFiles asked for."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """What was booked for the files that were not here and that nobody else brings."""
        ...

    def elsewhere(self, files: Sequence[IncomingFile]) -> list[Elsewhere]:
        """How far others are with these files that this ingest has no claim on."""
        ...

    def claim(self, files: Sequence[IncomingFile], *, anyway: bool = False) -> list[IncomingFile]:
        """Try to get the claims on these files; those of which this ingest has them now. Of these, some may turn out to be here
        (`sha256` is set); the others are to be booked before anything is written.

        `anyway`: take the others too, for they don't get on, or what they brought is not what is wanted. What they have written
        stays with them; what they say that the file became is not believed.
        """
        ...

    def book(self, files: Sequence[IncomingFile]) -> None:
        """Book room for these claimed files, and take over what ended ingests left of them: `hints` are new.

        Raises:
            NoSpace: as of `Store.ingest`.
        """
        ...

    def flush(self, files: Sequence[IncomingFile]) -> None:
        """Optional help: make these small complete-to-be files' data durable together (one syncfs) before their `complete`."""
        ...

    def publish(self, manifest: Manifest, ref: Ref) -> Snapshot:
        """Every file is complete: publish the tree as the snapshot of `manifest`, then the ref. Ends the ingest.

        Safe against another who publishes the same: the first tree stays, both get it.

        Raises:
            DamagedBlob: a blob that a file became was found damaged since (`verify`), and is out of service. The ingest has not
                ended: after `keep`, the next one of the same versions asks for that file alone.
        """
        ...

    def keep(self) -> None:
        """Stop here and keep what is marked for the next ingest of the same versions; room booked behind it is given back.
        Idempotent."""
        ...

    def discard(self) -> None:
        """Drop everything and give the room back. Idempotent."""
        ...


class LeaseKind(StrEnum):
    LEASE = "lease"
    """Ends at `expires_at_s`, or when released."""
    PIN = "pin"
    """A lease without end."""
    PROCESS = "process"
    """Ends with the process that took it (it keeps a locked file open)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A named hold on a snapshot: while it lives the snapshot is not evicted."""

    id: str
    manifest: Digest
    holder: str
    kind: LeaseKind
    created_at_s: float
    expires_at_s: float | None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as `ls` shows it.

    Attributes:
        size_bytes: content of all its files, however often it has the same.
        own_bytes: content, each once, that nothing else needs: no other snapshot, no ingest, no link from outside.
        shared_bytes: content, each once, that others need, too.
        freed_bytes: blocks that evicting it alone gives back; at most these, where a file system shares blocks between files.
        leases: living holds, pins among them.
        last_used_at_s: Unix time of the last hit, lease or publish.
    """

    digest: Digest
    path: Path
    size_bytes: int
    own_bytes: int
    shared_bytes: int
    freed_bytes: int
    file_count: int
    refs: tuple[RefHead, ...]
    leases: tuple[Lease, ...]
    last_used_at_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the store may take. Defaults live in `modelcache.config`.

    Attributes:
        max_bytes: cap over all that the store holds; None: only the file system's size counts.
        high_watermark: share of the file system that may be used in all (by anyone) once a reservation stands.
        low_watermark: eviction, once it must start, goes on until use is under this share.
    """

    max_bytes: int | None
    high_watermark: float
    low_watermark: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Where the room went, in bytes; `statvfs` for the file system, allocated blocks for the store's own.

    Attributes:
        snapshots: how many.
        apart_bytes: sum of their sizes, each as if it shared nothing.
        content_bytes: of all blobs, each content once, to the byte; `blobs_bytes` are its blocks.
        own_bytes: of it, what a single snapshot needs: the sum of all `SnapshotInfo.own_bytes`.
        shared_bytes: of it, what several snapshots show.
        doubly_used_bytes: of `blobs_bytes`, blocks that are counted for more than one file (XFS, btrfs): the disk has them once.
    """

    snapshots: int
    apart_bytes: int
    content_bytes: int
    own_bytes: int
    shared_bytes: int
    blobs_bytes: int
    doubly_used_bytes: int
    ingest_bytes: int
    trash_bytes: int
    quarantine_bytes: int
    leased_bytes: int
    pinned_bytes: int
    evictable_bytes: int
    file_system_bytes: int
    free_bytes: int
    available_bytes: int
    """What a reservation could get without evicting: under every limit."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Evicted:
    """One snapshot that was removed (or, in a dry run, would be)."""

    digest: Digest
    uris: tuple[str, ...]
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What `collect` did: evicted snapshots, ended ingests, blobs that nothing named, old trash."""

    evicted: tuple[Evicted, ...]
    ingests_removed: int
    blobs_removed: int
    freed_bytes: int
    dry_run: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged thing: a blob (with the indexes of its bad chunks) or a record.

    Attributes:
        withdrawn: snapshots taken out of service because of it.
        still_held: snapshots that hold it under a lease and so still show it.
        ref: of a damaged ref that could be written anew from what was left of it.
    """

    path: Path
    digest: Digest | None
    reason: str
    chunks: tuple[int, ...]
    withdrawn: tuple[Digest, ...]
    still_held: tuple[Digest, ...]
    ref: RefKey | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    snapshots: int
    blobs: int
    bytes_read: int
    damages: tuple[Damage, ...]


class Store(Protocol):
    """A store of one owner on one machine. Safe for many threads; what it promises also holds against other processes.

    Life of a snapshot: `ingest` books room and holds what is here, `publish` makes it appear whole and durable, `lease` keeps
    it, `evict` removes it when nobody holds it. Before `publish` returns no reader sees it; afterwards it never changes.
    """

    def head(self, key: RefKey) -> RefHead | None:
        """The head of a ref; None if there is none, or its head is damaged. Its files are not looked at."""
        ...

    def ref(self, key: RefKey) -> Ref | None:
        """The whole ref; None if there is none, or any of it is damaged."""
        ...

    def refs(self, uri: str | None = None) -> list[Ref]:
        """All refs, or those of one canonical URI at whatever origin. A damaged one is left out and shown by `verify`."""
        ...

    def touch(self, ref: Ref, *, checked_at_s: float) -> Ref:
        """The origin confirmed the ref at this time; returns it renewed."""
        ...

    def attach(self, ref: Ref) -> Snapshot | None:
        """File a ref to a snapshot that is already published; None if it is gone."""
        ...

    def forget(self, key: RefKey) -> bool:
        """Remove a ref; the snapshot stays until it is evicted. False if there was none."""
        ...

    def snapshot(self, manifest: Digest) -> Snapshot | None:
        """The published snapshot, or None. Counts as a use."""
        ...

    def manifest(self, digest: Digest) -> Manifest:
        """Raises NotCached, or DamagedRecord."""
        ...

    def has_blob(self, digest: Digest) -> bool:
        """A look, not a hold."""
        ...

    def ingest(self, key: RefKey, files: Sequence[IngestFile]) -> Ingest:
        """Hold every blob that is here, take over an interrupted ingest of the same ref, claim the rest, and book room for what
        could be claimed.

        Evicts by LRU when that is what it takes.

        Raises:
            NoSpace: it can't fit; nothing was changed.
            StoreReadOnly: the store can't be written.
        """
        ...

    def lease(self, manifest: Digest, *, holder: str, ttl_s: float) -> Lease:
        """Hold a snapshot until a time; durable. Raises NotCached if it is gone."""
        ...

    def renew(self, lease_id: str, *, ttl_s: float) -> Lease: ...

    def release(self, lease_id: str) -> bool:
        """End a lease (not a pin). False if there was none."""
        ...

    def hold(self, manifest: Digest, *, holder: str) -> AbstractContextManager[Snapshot]:
        """Hold a snapshot for the block, or until this process ends. Raises NotCached if it is gone."""
        ...

    def pin(self, manifest: Digest, *, holder: str) -> Lease:
        """Hold without end. Pinning twice by one holder gives the same pin."""
        ...

    def unpin(self, manifest: Digest, *, holder: str | None = None) -> int:
        """End pins (of one holder, or all); how many."""
        ...

    def leases(self) -> list[Lease]:
        """Living leases, pins and process holds."""
        ...

    def list(self) -> list[SnapshotInfo]:
        """Every snapshot, most recently used first."""
        ...

    def info(self, manifest: Digest) -> SnapshotInfo | None:
        """What `list` says of one snapshot, without looking at the others' files; None if it is not here."""
        ...

    def usage(self) -> Usage: ...

    def evict(self, manifest: Digest, *, dry_run: bool = False) -> Evicted:
        """Remove a snapshot and its refs, and every blob that nothing else names.

        Raises:
            InUse: a lease or pin holds it.
            NotCached: there is no such snapshot.
        """
        ...

    def collect(self, *, need_bytes: int = 0, dry_run: bool = False) -> CollectReport:
        """Remove what nobody needs: ended ingests older than their grace, unnamed blobs, trash; then, if the watermark is
        passed or `need_bytes` don't fit, unleased snapshots, least recently used first."""
        ...

    def verify(
        self,
        manifest: Digest | None,
        cancel: Cancellation,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:
        """Read every byte of one snapshot (or of all, None) from the disk and compare. Damaged blobs go to quarantine and
        snapshots that show them are withdrawn unless leased. `progress(bytes_done, bytes_total)`."""
        ...
