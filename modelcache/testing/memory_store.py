"""A store whose disk is a dict: the same promises as `LocalStore` within one process, for tests of what stands above a store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import xxhash

from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import Ref, RefHead, RefKey, Snapshot
from modelcache.abc.store import CollectReport, Damage, Evicted, Lease, LeaseKind, Limits, SnapshotInfo, Usage, VerifyReport, by_snapshot
from modelcache.chunks import ChunkTable, chunk_range
from modelcache.digest import Digest
from modelcache.errors import InUse, NoSpace, NotCached
from modelcache.manifest import Manifest
from modelcache.paths import check_tree
from modelcache.patience import Cancellation
from modelcache.testing.memory_grants import MemoryGrants
from modelcache.testing.memory_ingest import Content, MemoryBlob, MemoryIngest, MemoryShelf, bare, content_of, digest_of
from modelcache.testing.memory_leases import MemoryLeases

EMPTY = digest_of(b"")
GRACE_S = 24 * 3600
UNLIMITED = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)


class MemoryStore:
    """`Store` in memory. Snapshot paths are names, not directories: read files with `file`."""

    def __init__(self, limits: Limits = UNLIMITED, *, size_bytes: int = 1 << 40, clock: Callable[[], float] = time.time) -> None:
        self.limits = limits
        self.size_bytes = size_bytes
        self.clock = clock
        self.grants = MemoryGrants(clock)
        self.shelf = MemoryShelf(self._add_snapshot, self._forget_unnamed, self._make_room, clock)
        self.shelf.blobs[EMPTY] = MemoryBlob(b"", ChunkTable(0, ()))
        self._lock = self.shelf.lock
        self._refs: dict[RefKey, Ref] = {}
        self._manifests: dict[Digest, Manifest] = {}
        self._leases = MemoryLeases(clock, self._lock)
        self._last_used = self._leases.last_used

    def file(self, digest: Digest, path: str) -> bytes:
        """The bytes of one file of a snapshot."""
        manifest = self.manifest(digest)
        return self.shelf.blobs[next(content_of(item.sha256, manifest.compartment) for item in manifest.files if item.path == path)].data

    def leftovers(self) -> list[str]:
        """Names of everything that is neither a snapshot, its blobs, nor a ref."""
        with self._lock:
            found = [f"ingest {ingest.id}" for ingest in (*self.shelf.open_ingests.values(), *self.shelf.kept.values())]
            found += [f"blob {digest}" for digest in self._unnamed()]
            return found + [f"lease {lease_id}" for lease_id in self._leases.all_ids()]

    def damage(self, digest: Digest, offset: int) -> None:
        """Flip the bits of one byte of a blob, as a dying disk would."""
        blob = self.shelf.blobs[digest]
        blob.data = blob.data[:offset] + bytes([blob.data[offset] ^ 0xFF]) + blob.data[offset + 1 :]

    def close(self) -> None:
        """Nothing to close."""

    # -- refs -----------------------------------------------------------------------------------------------------

    def head(self, key: RefKey) -> RefHead | None:
        found = self._refs.get(key)
        return None if found is None else found.head

    def ref(self, key: RefKey) -> Ref | None:
        return self._refs.get(key)

    def refs(self, uri: str | None = None) -> list[Ref]:
        with self._lock:
            return [ref for ref in self._refs.values() if uri in (None, ref.key.uri)]

    def touch(self, ref: Ref, *, checked_at_s: float) -> Ref:
        with self._lock:
            renewed = replace(ref, checked_at_s=checked_at_s)
            kept = self._refs.get(ref.key)
            if kept is not None and (kept.manifest, kept.revision) == (ref.manifest, ref.revision):
                self._refs[ref.key] = renewed
            return renewed

    def attach(self, ref: Ref) -> Snapshot | None:
        with self._lock:
            if ref.manifest not in self._manifests:
                return None
            self._refs[ref.key] = ref
            return self.snapshot(ref.manifest)

    def forget(self, key: RefKey) -> bool:
        return self._refs.pop(key, None) is not None

    # -- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self, manifest: Digest) -> Snapshot | None:
        with self._lock:
            if manifest not in self._manifests:
                return None
            self._last_used[manifest] = self.clock()
            return self._snapshot(manifest)

    def manifest(self, digest: Digest) -> Manifest:
        found = self._manifests.get(digest)
        if found is None:
            raise NotCached(f"no snapshot `{digest}`")
        return found

    def has_blob(self, digest: Digest, compartment: str = "") -> bool:
        return digest == EMPTY or content_of(digest, compartment) in self.shelf.blobs

    def ingest(self, key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None = None) -> MemoryIngest:
        check_tree(file.path for file in files)
        if any(file.compartment != key.compartment for file in files):
            raise ValueError("a file is of another compartment than its ref")
        with self._lock:
            self.shelf.blobs.setdefault(content_of(EMPTY, key.compartment), MemoryBlob(b"", ChunkTable(0, ())))
            earlier = self.shelf.kept.get(key)
            ingest = MemoryIngest(self.shelf, key, files, earlier)
            try:
                ingest.book(ingest.claim([file for file in ingest.files if file.sha256 is None]))
            except BaseException:
                ingest.let_go()
                raise
            self.shelf.kept.pop(key, None)
            self.shelf.open_ingests[ingest.id] = ingest
            return ingest

    # -- holds ----------------------------------------------------------------------------------------------------

    def lease(self, manifest: Digest, *, holder: str, ttl_s: float, lease_id: str | None = None) -> Lease:
        return self._add_lease(manifest, holder, LeaseKind.LEASE, self.clock() + ttl_s, lease_id)

    def renew(self, lease_id: str, *, ttl_s: float) -> Lease:
        return self._leases.renew(lease_id, ttl_s)

    def release(self, lease_id: str) -> bool:
        return self._leases.release(lease_id)

    @contextmanager
    def hold(self, manifest: Digest, *, holder: str) -> Iterator[Snapshot]:
        lease = self._add_lease(manifest, holder, LeaseKind.PROCESS, None)
        try:
            yield self._snapshot(manifest)
        finally:
            self._leases.end(lease)
            self._last_used[manifest] = self.clock()

    def pin(self, manifest: Digest, *, holder: str) -> Lease:
        with self._lock:
            for lease in self._leases.pins(manifest, holder):
                return lease
            return self._add_lease(manifest, holder, LeaseKind.PIN, None)

    def unpin(self, manifest: Digest, *, holder: str | None = None) -> int:
        with self._lock:
            ended = self._leases.pins(manifest, holder)
            for lease in ended:
                self._leases.end(lease)
            return len(ended)

    def leases(self) -> list[Lease]:
        return self._leases.living()

    # -- room -----------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        with self._lock:
            held = {lease.manifest for lease in self.leases()}
            infos = [self._info(digest) for digest in self._manifests]
            showing = Counter(digest for name in self._manifests for digest in self._named({name}))
            return Usage(
                snapshots=len(infos),
                apart_bytes=sum(info.size_bytes for info in infos),
                content_bytes=sum(len(blob.data) for blob in self.shelf.blobs.values()),
                own_bytes=sum(info.own_bytes for info in infos),
                shared_bytes=sum(len(self.shelf.blobs[digest].data) for digest, count in showing.items() if count > 1),
                doubly_used_bytes=0,
                blobs_bytes=sum(len(blob.data) for blob in self.shelf.blobs.values()),
                ingest_bytes=self._booked_bytes(),
                trash_bytes=0,
                quarantine_bytes=0,
                leased_bytes=self._content_bytes(held),
                pinned_bytes=self._content_bytes({lease.manifest for lease in self.leases() if lease.kind is LeaseKind.PIN}),
                evictable_bytes=self._content_bytes(set(self._manifests)) - self._content_bytes(held),
                file_system_bytes=self.size_bytes,
                free_bytes=self.size_bytes - self._used_bytes(),
                available_bytes=self._available_bytes(),
                limits=self.limits,
            )

    def evict(self, manifest: Digest, *, dry_run: bool = False) -> Evicted:
        with self._lock:
            self.manifest(manifest)
            holders = sorted({lease.holder for lease in self.leases() if lease.manifest == manifest})
            if holders:
                raise InUse(f"snapshot `{manifest}` is held by {', '.join(holders)}")
            info = self._info(manifest)
            if not dry_run:
                self._remove(manifest)
            return Evicted(manifest, tuple(ref.key.uri for ref in info.refs), info.own_bytes)

    def collect(self, *, need_bytes: int = 0, dry_run: bool = False) -> CollectReport:
        with self._lock:
            ended = [key for key, ingest in self.shelf.kept.items() if self.clock() - ingest.kept_at_s >= GRACE_S]
            kept = self.shelf.kept
            freed = sum(kept[key].room_bytes for key in ended)
            self.shelf.kept = {key: ingest for key, ingest in kept.items() if key not in ended}
            unnamed = self._unnamed()
            freed += sum(len(self.shelf.blobs[digest].data) for digest in unnamed)
            lacking = need_bytes - self._room_bytes()
            evicted = self._victims(lacking, unnamed)
            if need_bytes and sum(item.freed_bytes for item in evicted) < lacking - freed:
                evicted = []
            if dry_run:
                self.shelf.kept = kept
            else:
                for item in evicted:
                    self._remove(item.digest)
                self._forget_unnamed()
                self._leases.forget_ended()
            freed += sum(item.freed_bytes for item in evicted)
            return CollectReport(tuple(evicted), len(ended), len(unnamed), freed, dry_run)

    def verify(self, manifest: Digest | None, cancel: Cancellation, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        with self._lock:
            names = list(self._manifests) if manifest is None else [self.manifest(manifest).digest]
            blobs = sorted(self._named(set(names)) & self.shelf.blobs.keys(), key=str)
            total = sum(len(self.shelf.blobs[digest].data) for digest in blobs)
            done, damages = 0, []
            for digest in blobs:
                cancel.check()
                data = self.shelf.blobs[digest].data
                done += len(data)
                if digest_of(data) != bare(digest):
                    damages.append(self._withdraw(digest))
                if progress is not None:
                    progress(done, total)
            asked = set().union(*(found.withdrawn for found in damages)) if manifest else {ref.manifest for ref in self._refs.values()}
            gone = (ref for ref in self._refs.values() if ref.manifest in asked - self._manifests.keys())
            return VerifyReport(len(names), len(blobs), total, tuple(damages), by_snapshot(gone))

    # -- inside ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _snapshot(digest: Digest) -> Snapshot:
        return Snapshot(digest, Path("/memory/snapshots") / digest.hex)

    def _add_snapshot(self, manifest: Manifest, ref: Ref) -> Snapshot:
        if ref.manifest != manifest.digest:
            raise ValueError("the ref names another manifest")
        with self._lock:
            self._manifests.setdefault(manifest.digest, manifest)
            self._last_used[manifest.digest] = self.clock()
            self._refs[ref.key] = ref
        return self._snapshot(manifest.digest)

    def _add_lease(self, manifest: Digest, holder: str, kind: LeaseKind, expires_at_s: float | None, lease_id: str | None = None) -> Lease:
        with self._lock:
            self.manifest(manifest)
            return self._leases.add(manifest, holder, kind, expires_at_s, lease_id)

    def _info(self, digest: Digest) -> SnapshotInfo:
        manifest = self._manifests[digest]
        refs = tuple(
            sorted((ref.head for ref in self._refs.values() if ref.manifest == digest), key=lambda ref: (ref.key.uri, ref.key.origin))
        )
        leases = tuple(lease for lease in self.leases() if lease.manifest == digest)
        others = {name for name in self._manifests if name != digest} | {None}
        own_bytes = self._content_bytes({digest, *others}) - self._content_bytes(others)
        return SnapshotInfo(
            digest=digest,
            path=self._snapshot(digest).path,
            size_bytes=manifest.size_bytes,
            own_bytes=own_bytes,
            shared_bytes=self._content_bytes({digest}) - own_bytes,
            freed_bytes=own_bytes,
            file_count=len(manifest.files),
            refs=refs,
            leases=leases,
            last_used_at_s=self._last_used[digest],
        )

    def _named(self, names: set[Digest | None] | set[Digest]) -> set[Content]:
        """Blobs of these snapshots; None stands for the ingests."""
        shown = [self._manifests[name] for name in names if name is not None]
        found = {content_of(item.sha256, manifest.compartment) for manifest in shown for item in manifest.files}
        if None in names:
            ingests = (*self.shelf.open_ingests.values(), *self.shelf.kept.values())
            files = ((ingest.key.compartment, file.sha256) for ingest in ingests for file in ingest.files)
            found |= {content_of(digest, compartment) for compartment, digest in files if digest is not None}
        return found

    def _content_bytes(self, names: set[Digest | None] | set[Digest]) -> int:
        return sum(len(self.shelf.blobs[digest].data) for digest in self._named(names) if digest in self.shelf.blobs)

    def _unnamed(self) -> list[Content]:
        named = self._named({*self._manifests, None})
        return [content for content in self.shelf.blobs if content not in named and bare(content) != EMPTY]

    def _forget_unnamed(self) -> None:
        with self._lock:
            for digest in self._unnamed():
                del self.shelf.blobs[digest]

    def _booked_bytes(self) -> int:
        return sum(ingest.room_bytes for ingest in (*self.shelf.open_ingests.values(), *self.shelf.kept.values()))

    def _used_bytes(self) -> int:
        return self._booked_bytes() + sum(len(blob.data) for blob in self.shelf.blobs.values())

    def _room_bytes(self) -> int:
        """What is left under every limit; negative when one is passed."""
        cap = int(self.size_bytes * self.limits.high_watermark)
        return min(cap, self.limits.max_bytes if self.limits.max_bytes is not None else cap) - self._used_bytes()

    def _available_bytes(self) -> int:
        return max(0, self._room_bytes())

    def _victims(self, lacking_bytes: int, unnamed: Iterable[Content]) -> list[Evicted]:
        """Least recently used snapshots that free so much, each counted with those before it gone; `unnamed` is gone already."""
        held = {lease.manifest for lease in self.leases()}
        gone: set[Digest] = set()
        lacking_bytes -= sum(len(self.shelf.blobs[digest].data) for digest in unnamed)
        found: list[Evicted] = []
        for info in reversed(self.list()):
            if sum(item.freed_bytes for item in found) >= lacking_bytes or info.digest in held:
                continue
            left: set[Digest | None] = {None, *self._manifests} - gone
            freed = self._content_bytes(left) - self._content_bytes(left - {info.digest})
            gone.add(info.digest)
            found.append(Evicted(info.digest, tuple(ref.key.uri for ref in info.refs), freed))
        return [item for item in found if item.freed_bytes]

    def _make_room(self, ingest: MemoryIngest, needed: int) -> None:
        """Evict what this ingest needs beyond what its predecessor has booked."""
        begins = ingest.id not in self.shelf.open_ingests
        returned = ingest.key if begins else None
        earlier = self.shelf.kept.get(ingest.key) if begins else None
        needed -= 0 if earlier is None else earlier.room_bytes
        if needed <= self._available_bytes():
            return
        holding = {content_of(file.sha256, ingest.key.compartment) for file in ingest.files if file.sha256 is not None}
        held = {lease.manifest for lease in self.leases()} | {name for name in self._manifests if self._named({name}) & holding}
        available = self._available_bytes()
        evictable = self._content_bytes(set(self._manifests)) - self._content_bytes(held)
        ended = [key for key, ingest in self.shelf.kept.items() if key != returned]
        droppable = sum(self.shelf.kept[key].room_bytes for key in ended) if needed > available + evictable else 0
        if needed > available + evictable + droppable:
            raise NoSpace(
                f"{needed} bytes are needed, {available} are available and {evictable} could be freed",
                needed_bytes=needed,
                available_bytes=available,
                evictable_bytes=evictable + droppable,
                held_bytes=self._content_bytes(held),
            )
        if droppable:
            for key in ended:
                del self.shelf.kept[key]
            self._forget_unnamed()
        for info in reversed(self.list()):
            if self._available_bytes() < needed and info.digest not in held:
                self._remove(info.digest)

    def _remove(self, digest: Digest) -> None:
        del self._manifests[digest]
        self._last_used.pop(digest)
        self._refs = {key: ref for key, ref in self._refs.items() if ref.manifest != digest}
        self._forget_unnamed()

    def _withdraw(self, content: Content) -> Damage:
        blob, digest = self.shelf.blobs.pop(content), bare(content)
        showing, held = [name for name in self._manifests if content in self._named({name})], {lease.manifest for lease in self.leases()}
        withdrawn = tuple(name for name in showing if name not in held)
        for name in withdrawn:
            del self._manifests[name]
        bad = [
            index
            for index, mark in enumerate(blob.table.marks)
            if xxhash.xxh3_128_digest(blob.data[chunk_range(index, len(blob.data)).start : chunk_range(index, len(blob.data)).stop]) != mark
        ]
        still_held = tuple(name for name in showing if name in held)
        return Damage(Path("/memory/blobs") / digest.hex, digest, "other bytes than its digest names", tuple(bad), withdrawn, still_held)

    def list(self) -> list[SnapshotInfo]:
        with self._lock:
            return sorted((self._info(digest) for digest in self._manifests), key=lambda info: -info.last_used_at_s)

    def info(self, manifest: Digest) -> SnapshotInfo | None:
        with self._lock:
            return self._info(manifest) if manifest in self._manifests else None
