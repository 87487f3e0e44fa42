"""The store on disk: `modelcache.abc.store.Store` over a directory of format 1 (`docs/format.md`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import Ref, RefHead, RefKey, Snapshot
from modelcache.abc.store import CollectReport, Evicted, Lease, LeaseKind, Limits, SnapshotInfo, Usage, VerifyReport, clean, new_lease_id
from modelcache.abc.upkeep import DedupeReport, ScrubLimits
from modelcache.digest import Digest
from modelcache.errors import NotCached
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation
from modelcache.store.blobs import EMPTY
from modelcache.store.budget import Budget, unshared_bytes
from modelcache.store.faults import disk_faults, guarded, unless_unwritable
from modelcache.store.grants import LocalGrants
from modelcache.store.ingest import LocalIngest
from modelcache.store.intake import Intake
from modelcache.store.inventory import Inventory, pinned
from modelcache.store.leases import HeldElsewhere
from modelcache.store.making_room import Made, MakingRoom
from modelcache.store.mending import Mending
from modelcache.store.parts import Parts
from modelcache.store.removal import Removal
from modelcache.store.root import LOCK_TIMEOUT_S, open_root
from modelcache.store.scrub import Scrub
from modelcache.store.sharing import Sharing
from modelcache.store.withdrawn import out_of_service


class LocalStore:
    """`Store` in a directory of this machine. Opening it reads three lines; nothing is cached that the directory could contradict."""

    def __init__(
        self,
        root: Path,
        limits: Limits,
        *,
        create: bool = True,
        allow_fuse: bool = False,
        clock: Callable[[], float] = time.time,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        elsewhere: HeldElsewhere = tuple,
    ) -> None:
        """Open the store at `root`, or make one there.

        Args:
            create: whether a new or empty directory becomes a store; False where a missing store means an unmounted disk.
            allow_fuse: a FUSE file system there is this machine's alone: `modelcache.store.filesystem.check_place`.
            clock: Unix time in seconds.
            lock_timeout_s: how long to wait for the store lock.
            elsewhere: holds that no lease here tells of; they keep snapshots from eviction, too.

        Raises:
            StoreLocation, StoreFormat, StoreOwner, StoreReadOnly, StoreFault: `modelcache.store.root.open_root`.
        """
        with disk_faults(str(root)):
            self._root = open_root(root, create=create, allow_fuse=allow_fuse, clock=clock, lock_timeout_s=lock_timeout_s)
        self._parts = Parts.of(self._root, elsewhere)
        self._budget = Budget(self._parts, limits)
        self._removal = Removal(self._parts)
        self._making_room = MakingRoom(self._parts, self._budget, self._removal)
        self._intake = Intake(self._parts, self._budget, self._making_room)
        self._mending = Mending(self._parts)
        self._scrub = Scrub(self._parts, self._removal, self._mending)
        self._sharing = Sharing(self._parts)

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between calls; ingests and holds are ended by who began them."""

    @property
    def root(self) -> Path:
        """The directory, without symbolic links."""
        return self._root.layout.root

    @property
    def store_id(self) -> str:
        """32 hex digits that tell this store from another that is mounted in its place."""
        return self._root.store_id

    @property
    def read_only(self) -> bool:
        return self._root.read_only

    @property
    def address(self) -> str:
        return self._root.address

    @property
    def grants(self) -> LocalGrants:
        """Who proved what (`modelcache.abc.grants`)."""
        return self._parts.grants

    # -- refs -----------------------------------------------------------------------------------------------------

    @guarded
    def head(self, key: RefKey) -> RefHead | None:
        return self._parts.refs.head(key)

    @guarded
    def ref(self, key: RefKey) -> Ref | None:
        return self._parts.refs.get(key)

    @guarded
    def refs(self, uri: str | None = None) -> list[Ref]:
        return self._parts.refs.whole() if uri is None else self._parts.refs.of_uri(uri)

    @guarded
    def touch(self, ref: Ref, *, checked_at_s: float) -> Ref:
        with unless_unwritable(), self._root.lock.shared():
            self._parts.refs.touch(ref, checked_at_s)
        return replace(ref, checked_at_s=checked_at_s)

    @guarded
    def attach(self, ref: Ref) -> Snapshot | None:
        with self._root.lock.shared():
            found = self._parts.snapshots.use(ref.manifest)
            if found is not None:
                self._parts.refs.put(ref)
            return found

    @guarded
    def forget(self, key: RefKey) -> bool:
        with self._root.lock.shared():
            return self._parts.refs.remove(key)

    # -- snapshots ------------------------------------------------------------------------------------------------

    @guarded
    def snapshot(self, manifest: Digest) -> Snapshot | None:
        return self._parts.snapshots.use(manifest)

    @guarded
    def manifest(self, digest: Digest) -> Manifest:
        return self._parts.snapshots.manifest(digest)

    @guarded
    def has_blob(self, digest: Digest, compartment: str = "") -> bool:
        return self._parts.compartment(compartment).blobs.has(digest)

    @guarded
    def ingest(self, key: RefKey, files: Sequence[IngestFile], cancel: Cancellation | None = None) -> LocalIngest:
        return self._intake.begin(key, files, cancel)

    # -- holds ----------------------------------------------------------------------------------------------------

    @guarded
    def lease(self, manifest: Digest, *, holder: str, ttl_s: float, lease_id: str | None = None) -> Lease:
        with self._root.lock.shared():
            return self._looked_again(self._parts.leases.put_lease(manifest, holder, ttl_s, lease_id or new_lease_id()))

    @guarded
    def renew(self, lease_id: str, *, ttl_s: float) -> Lease:
        with self._root.lock.shared():
            renewed = self._parts.leases.renew(lease_id, ttl_s)
            self._parts.snapshots.use(renewed.manifest)
            return renewed

    @guarded
    def release(self, lease_id: str) -> bool:
        with self._root.lock.shared():
            released = self._parts.leases.release(lease_id)
            if released is not None:
                self._parts.snapshots.use(released.manifest)  # until now
            return released is not None

    @contextmanager
    def hold(self, manifest: Digest, *, holder: str) -> Iterator[Snapshot]:
        with disk_faults(self.address):
            with self._root.lock.shared():
                held = self._parts.leases.put_process(manifest, holder)
                try:
                    found = self._parts.snapshots.use(manifest)
                except BaseException:
                    held.end()
                    raise
            if found is None:
                held.end()
                raise self._not_cached(manifest)
        try:
            yield found
        finally:
            with disk_faults(self.address):
                held.end()
                self._parts.snapshots.use(manifest)

    @guarded
    def pin(self, manifest: Digest, *, holder: str) -> Lease:
        with self._root.lock.shared():
            return self._looked_again(self._parts.leases.put_pin(manifest, holder))

    @guarded
    def unpin(self, manifest: Digest, *, holder: str | None = None) -> int:
        who = None if holder is None else clean(holder)
        with self._root.lock.shared():
            pins = [lease for lease in self._parts.leases.living() if lease.kind is LeaseKind.PIN and lease.manifest == manifest]
            return sum(self._parts.leases.remove(pin.id) for pin in pins if who in (None, pin.holder))

    @guarded
    def leases(self) -> list[Lease]:
        return self._parts.leases.living()

    def _looked_again(self, lease: Lease) -> Lease:
        """Hold first, look second: a lease on what was evicted just before is taken back."""
        if self._parts.snapshots.use(lease.manifest) is None:
            self._parts.leases.remove(lease.id)
            raise self._not_cached(lease.manifest)
        return lease

    def _not_cached(self, manifest: Digest) -> NotCached:
        return NotCached(f"there is no snapshot `{manifest}`", address=self.address)

    # -- room -----------------------------------------------------------------------------------------------------

    @guarded
    def usage(self) -> Usage:
        inventory = Inventory.read(self._parts)
        leases, unclear = self._parts.leases.holding()
        leased = {lease.manifest for lease in leases}
        held = inventory.digests if unclear else leased
        totals = inventory.totals(leased=leased, pinned=pinned(leases), held=held)
        room = self._budget.room()
        return Usage(
            snapshots=len(inventory.snapshots),
            apart_bytes=sum(listed.size_bytes for listed in inventory.snapshots),
            content_bytes=totals.content_bytes,
            own_bytes=totals.own_bytes,
            shared_bytes=totals.shared_bytes,
            doubly_used_bytes=self._sharing.doubly_used_bytes(),
            blobs_bytes=totals.blobs_bytes,
            ingest_bytes=self._budget.ingest_bytes(),
            trash_bytes=unshared_bytes(self._root.layout.trash),
            quarantine_bytes=sum(unshared_bytes(compartment.home / "quarantine") for compartment in self._parts.compartments()),
            leased_bytes=totals.leased_bytes,
            pinned_bytes=totals.pinned_bytes,
            evictable_bytes=totals.evictable_bytes,
            file_system_bytes=room.total_bytes,
            free_bytes=room.free_bytes,
            available_bytes=max(0, room.available_bytes),
            limits=self._budget.limits,
        )

    @guarded
    def evict(self, manifest: Digest, *, dry_run: bool = False) -> Evicted:
        return self._removal.evict(manifest, dry_run=dry_run)

    def change_limits(self, limits: Limits) -> None:
        """How much the store may take, from now on. What was booked before stays booked."""
        self._budget.limits = limits

    @property
    def made_room(self) -> Made:
        """What was evicted for what came."""
        return self._making_room.made

    @guarded
    def collect(self, *, need_bytes: int = 0, dry_run: bool = False) -> CollectReport:
        return self._making_room.collect(need_bytes, dry_run=dry_run)

    @guarded
    def verify(
        self,
        manifest: Digest | None,
        cancel: Cancellation,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:
        return self._scrub.verify(manifest, cancel, progress)

    # -- upkeep (`modelcache.abc.upkeep`) ---------------------------------------------------------------------------

    @guarded
    def scrub(self, limits: ScrubLimits, cancel: Cancellation, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        return self._scrub.scrub(limits, cancel, progress)

    @guarded
    def verified_at_s(self, manifest: Digest) -> float | None:
        found = self._parts.snapshots.manifest(manifest)
        return self._parts.compartment(found.compartment).verified.oldest_s({item.sha256 for item in found.files} - {EMPTY})

    @guarded
    def dedupe(self, cancel: Cancellation, progress: Callable[[DedupeReport], None] | None = None) -> DedupeReport:
        return self._sharing.dedupe(cancel, progress)

    @guarded
    def heads(self) -> list[RefHead]:
        return self._parts.refs.every()

    @guarded
    def out_of_service(self, besides: Collection[Digest] = ()) -> list[Ref]:
        return out_of_service(self._parts, besides)

    def salvage(self, digest: Digest, cancel: Cancellation, compartment: str = "") -> Iterator[tuple[int, memoryview]]:
        with disk_faults(self.address):
            yield from self._mending.salvage(digest, cancel, self._parts.compartment(compartment).blobs)

    @guarded
    def mend(self, manifest: Digest) -> tuple[str, ...]:
        return self._mending.tree(manifest)

    @guarded
    def list(self) -> list[SnapshotInfo]:
        return Inventory.read(self._parts).infos(self._parts, self._parts.refs.every, self._parts.leases.living())

    @guarded
    def info(self, manifest: Digest) -> SnapshotInfo | None:
        refs, leases = self._parts.refs.of_manifest(manifest), self._parts.leases.living()
        of_it = [lease for lease in leases if lease.manifest == manifest]
        [info] = Inventory.of(self._parts, manifest).infos(self._parts, lambda: refs, of_it)
        return info if self._parts.snapshots.find(manifest) is not None else None  # looked for last: it may go meanwhile
