"""What every `Store` must do: a suite that is subclassed once per store, with fixtures around the store under test."""

from __future__ import annotations

from modelcache.testing.store_contract_claims import ClaimContract
from modelcache.testing.store_contract_compartments import CompartmentContract
from modelcache.testing.store_contract_holds import HoldContract
from modelcache.testing.store_contract_ingests import IngestContract
from modelcache.testing.store_contract_room import RoomContract
from modelcache.testing.store_contract_snapshots import SnapshotContract
from modelcache.testing.store_contract_verify import VerifyContract


class StoreContract(SnapshotContract, IngestContract, ClaimContract, CompartmentContract, HoldContract, RoomContract, VerifyContract):
    """The whole suite.

    A subclass gives these fixtures:
        clock: the `Clock` that the store reads.
        make_store: `Limits` → a store, empty at the first call; the same content at every further one.
        store: one without limits.
        read: (snapshot, path) → the bytes of a file of it.
        leftovers: names of everything that is no snapshot, no ref and nothing that these need, found by looking at the disk and
            not through the store.
        damage: (digest, offset) → flips a byte of the blob at rest.
    """
