"""Taking things out of the store: snapshots, ended ingests, and the blobs that nothing names afterwards."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from modelcache.abc.snapshot import RefHead
from modelcache.abc.store import Evicted
from modelcache.digest import Digest, sha256
from modelcache.errors import InUse, NotCached
from modelcache.store import records
from modelcache.store.blobs import EMPTY
from modelcache.store.inventory import Inventory
from modelcache.store.layout import TEMP_PREFIX
from modelcache.store.parts import Parts
from modelcache.store.withdrawn import is_dangling, of_no_use
from modelcache.store.workspace import JOURNAL, PLAN, TREE, ingest_directories, is_owned

GRACE_S = 24 * 3600
"""How long an ended ingest waits to be gone on with, and a ref for its snapshot to come back."""


class Removal:
    """Removes in two steps: a rename into the trash under the exclusive store lock, and the deletion after it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._layout = parts.root.layout

    # -- snapshots ------------------------------------------------------------------------------------------------

    def evict(self, digest: Digest, *, dry_run: bool) -> Evicted:
        """Remove one snapshot that nobody holds.

        Raises:
            InUse, NotCached; DamagedRecord: a lease can't be read.
        """
        if dry_run:
            return self._judged(digest)
        self._parts.refs.every()  # Parsed before the lock is taken, so that under it only what changed is.
        with self._parts.root.lock.exclusive():
            evicted = self._judged(digest)
            summary = self._parts.snapshots.summary(digest)
            self._withdraw([digest])
        self.drop({summary.compartment: summary.links})
        return evicted

    def evict_all(self, digests: Sequence[Digest]) -> bool:
        """Remove these snapshots together; False, and nothing changed, if one of them is held or gone by now."""
        names: defaultdict[str, set[str]] = defaultdict(set)
        self._parts.refs.every()  # As in `evict`.
        with self._parts.root.lock.exclusive():
            held = {lease.manifest for lease in self._parts.leases.deciding()}
            if any(digest in held or self._parts.snapshots.find(digest) is None for digest in digests):
                return False
            for digest in digests:
                summary = self._parts.snapshots.summary(digest)
                names[summary.compartment].update(summary.links)
            self._withdraw(digests)
        self.drop(names)
        return True

    def withdraw_damaged(self, digests: Iterable[Digest]) -> tuple[list[Digest], list[Digest]]:
        """Take snapshots out of service but keep their refs; those withdrawn, and those that are held. Under the exclusive lock."""
        shown = [digest for digest in digests if self._parts.snapshots.find(digest) is not None]
        leases, unclear = self._parts.leases.holding()
        held = set(shown) if unclear else {lease.manifest for lease in leases}
        withdrawn = [digest for digest in shown if digest not in held]
        self._parts.snapshots.withdraw(withdrawn)
        return withdrawn, [digest for digest in shown if digest in held]

    def drop(self, names: Mapping[str, Collection[str]]) -> None:
        """Delete what is in the trash, and then those of these blobs (hex digits, by compartment) that nothing names."""
        self._parts.trash.empty()
        unclear = any(len(digits) != len(EMPTY.hex) for of_one in names.values() for digits in of_one)  # of a damaged manifest
        dropped = 0
        for compartment in self._parts.compartments() if unclear else map(self._parts.compartment, names):
            known = (sha256(digits) for digits in sorted(names.get(compartment.name, ())))
            dropped += compartment.blobs.drop_unnamed((digest for digest, _ in compartment.blobs.unnamed()) if unclear else known)
        if dropped:
            self._parts.trash.empty()

    def _judged(self, digest: Digest) -> Evicted:
        if self._parts.snapshots.find(digest) is None:
            raise NotCached(f"there is no snapshot `{digest}`", address=str(self._layout.root))
        holders = sorted({lease.holder for lease in self._parts.leases.deciding() if lease.manifest == digest})
        if holders:
            raise InUse(f"snapshot `{digest}` is held by {', '.join(f'`{holder}`' for holder in holders)}")
        queue, _ = Inventory.of(self._parts, digest).queue(held=())
        return Evicted(digest, tuple(ref.key.uri for ref in self._parts.refs.of_manifest(digest)), queue.evictable_bytes)

    def _withdraw(self, digests: Iterable[Digest]) -> None:
        """The trees go first: from then on nobody finds the snapshots, and what is left says only that they were here once."""
        gone = set(digests)
        keys = [ref.key for ref in self._parts.refs.every() if ref.manifest in gone]
        self._parts.snapshots.withdraw(gone)
        self._parts.refs.remove_all(keys)

    # -- ingests --------------------------------------------------------------------------------------------------

    def ended(self, *, grace_s: float) -> list[Path]:
        """Ingests without an owner that are older than the grace (0: all), or of no use to anybody."""
        now = self._parts.root.clock()
        with self._parts.root.lock.exclusive():  # To ask, the lock of an ingest is tried: nobody may want to take it over just then.
            ended = [path for path in ingest_directories(self._parts.root) if not is_owned(path)]
        return [path for path in ended if grace_s == 0 or not _is_useful(path) or now - _touched_at_s(path) >= grace_s]

    def remove_ingests(self, paths: Iterable[Path]) -> None:
        """Remove ended ingests, unless they found an owner meanwhile; their blobs are left to `unnamed`."""
        with self._parts.root.lock.exclusive():
            for path in paths:
                if not is_owned(path):
                    self._parts.trash.take(path)
        self._parts.trash.empty()

    # -- what crashes leave ---------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove temporary files, ended leases and grants, halves of snapshots, tables of nothing, and refs of no use."""
        unsealed, of_use_to_nobody = self._parts.snapshots.unsealed(), of_no_use(self._parts)
        with self._parts.root.lock.exclusive():  # Whoever makes such names holds it shared: those seen here are nobody's.
            for directory in (*self._layout.record_directories, *(item.home for item in self._parts.compartments() if item.name)):
                for name in os.listdir(directory):
                    if name.startswith(TEMP_PREFIX):
                        records.remove(directory / name)
            self._parts.leases.sweep(self._parts.snapshots.traces)
            leases, unclear = self._parts.leases.holding()
            if not unclear:
                held = {lease.manifest for lease in leases}
                self._parts.snapshots.withdraw(digest for digest in self._parts.snapshots.incomplete() if digest not in held)
            self._parts.snapshots.seal(unsealed)
            self._sweep_refs(of_use_to_nobody)
            self._parts.grants.sweep()
        for compartment in self._parts.compartments():
            compartment.blobs.drop_tables()

    def _sweep_refs(self, heads: Iterable[RefHead]) -> None:
        now = self._parts.root.clock()
        for head in heads:
            if is_dangling(self._parts, head) and now - _mtime_s(self._layout.ref(head.key)) >= GRACE_S:
                self._parts.refs.remove(head.key)


def _is_useful(ingest: Path) -> bool:
    """Whether somebody could go on with it: with its files, or with what its journal says of the blobs that it made."""
    return (ingest / PLAN).is_file() and ((ingest / TREE).is_dir() or (ingest / JOURNAL).is_file())


def _touched_at_s(ingest: Path) -> float:
    """When the ingest was last written to."""
    return max(_mtime_s(ingest / name) for name in (JOURNAL, PLAN))


def _mtime_s(path: Path) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0
