"""What a store is: verified, immutable bytes on one machine, with holds that keep them and rules that remove them."""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from modelcache.abc.ingest import Ingest, IngestFile
from modelcache.abc.snapshot import Ref, RefHead, RefKey, Snapshot
from modelcache.digest import Digest
from modelcache.errors import BadConfig
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation

_LEASE_ID = re.compile(r"lease-[0-9a-f]{32}")


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


def new_lease_id() -> str:
    """One that nobody else has."""
    return f"lease-{secrets.token_hex(16)}"


def expect_lease_id(lease_id: str) -> None:
    """Raises BadConfig: no lease has such an id."""
    if not _LEASE_ID.fullmatch(lease_id):
        raise BadConfig("this is no id of a lease", expected="`lease-` and 32 hex digits", got=lease_id[:80])


CLUSTERS = "cluster:"
"""In front of the holders of pins that a node's agent makes for its cluster: by them it knows what it may end, and what pods are given."""


def clean(holder: str) -> str:
    """A holder's name as it is kept: what is not UTF-8 (an argument of another encoding) is spelled out."""
    return holder.encode("utf-8", "backslashreplace").decode("utf-8")


def expect_own(holder: str) -> None:
    """Raises BadConfig: nobody is named, or a pin of this holder would be taken for the cluster's."""
    if not holder.strip():
        raise BadConfig(
            "a pin has a holder, and this one's name is empty", got=holder, hint="name who keeps it: it is shown to who would remove it"
        )
    if holder.startswith(CLUSTERS):
        raise BadConfig(f"in the name of `{CLUSTERS}…` the node's agent pins, and nobody else", got=holder, hint="pin it in another name")


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
        aside: where a damaged blob is kept now; None: it is where it was.
    """

    path: Path
    digest: Digest | None
    reason: str
    chunks: tuple[int, ...]
    withdrawn: tuple[Digest, ...]
    still_held: tuple[Digest, ...]
    ref: RefKey | None = None
    aside: Path | None = None


@dataclass(frozen=True, slots=True)
class OutOfService:
    """A snapshot that damage took away, now or earlier: names lead to it, and it is not here until it is fetched again.

    Attributes:
        digest: of the snapshot.
        uris: that lead to it; `ModelCache.evict` forgets them.
    """

    digest: Digest
    uris: tuple[str, ...]


def by_snapshot(refs: Iterable[Ref]) -> tuple[OutOfService, ...]:
    """What a `VerifyReport` says of refs whose snapshots are out of service."""
    uris: defaultdict[Digest, set[str]] = defaultdict(set)
    for ref in refs:
        uris[ref.manifest].add(ref.key.uri)
    return tuple(OutOfService(digest, tuple(sorted(uris[digest]))) for digest in sorted(uris))


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Attributes:
    out_of_service: when it was over; if one snapshot was asked for, that and what was withdrawn with it.
    """

    snapshots: int
    blobs: int
    bytes_read: int
    damages: tuple[Damage, ...]
    out_of_service: tuple[OutOfService, ...] = ()


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

    def has_blob(self, digest: Digest, compartment: str = "") -> bool:
        """Whether these bytes are in this part of the store. A look, not a hold."""
        ...

    def ingest(self, key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None = None) -> Ingest:
        """Hold every blob that is here, take over an interrupted ingest of the same ref, claim the rest, and book room for what
        could be claimed. All of it within the compartment of `key`, which is that of each of `files`, too.

        Evicts by LRU when that is what it takes.

        Args:
            cancel: ends every wait of the ingest for others who reserve just then.

        Raises:
            NoSpace: it can't fit; nothing was changed.
            Cancelled: by `cancel`. StoreBusy: others reserve for longer than anybody waits.
            StoreReadOnly: the store can't be written.
        """
        ...

    def lease(self, manifest: Digest, *, holder: str, ttl_s: float, lease_id: str | None = None) -> Lease:
        """Hold a snapshot until a time; durable.

        Args:
            lease_id: of `new_lease_id`, for who may not hear the answer: with it the lease can be released all the same.

        Raises:
            NotCached: it is gone.
            BadConfig: not such an id, or one of a lease that is in force.
        """
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
        passed or `need_bytes` don't fit, unleased snapshots, least recently used first.

        Raises:
            StoreReadOnly: nothing can be removed; not in a dry run.
        """
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
