"""The parts of an open store, made once and shared by what works on them."""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.store.blobs import Blobs
from modelcache.store.grants import LocalGrants
from modelcache.store.leases import HeldElsewhere, Leases
from modelcache.store.refs import Refs
from modelcache.store.root import Root
from modelcache.store.snapshots import Snapshots
from modelcache.store.trash import Trash
from modelcache.store.verified import Verified


@dataclass(frozen=True)
class Parts:
    root: Root
    trash: Trash
    blobs: Blobs
    snapshots: Snapshots
    refs: Refs
    leases: Leases
    verified: Verified
    grants: LocalGrants

    @classmethod
    def of(cls, root: Root, elsewhere: HeldElsewhere = tuple) -> Parts:
        trash = Trash(root.layout)
        snapshots, leases = Snapshots(root, trash), Leases(root, elsewhere)
        return cls(root, trash, Blobs(root, trash), snapshots, Refs(root), leases, Verified(root), LocalGrants(root))
