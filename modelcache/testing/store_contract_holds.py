"""Store contract: leases, pins and holds against eviction."""

from __future__ import annotations

import pytest

from modelcache.abc.store import LeaseKind, Store, new_lease_id
from modelcache.digest import sha256
from modelcache.errors import BadConfig, InUse, NotCached
from modelcache.testing.store_filling import fill
from modelcache.testing.store_fixtures import MODEL, Clock, Leftovers

NOWHERE = sha256("0" * 64)


class HoldContract:
    def test_a_lease_holds_until_its_end(self, store: Store, clock: Clock, leftovers: Leftovers) -> None:
        snapshot = fill(store, MODEL)
        lease = store.lease(snapshot.digest, holder="pod-1", ttl_s=60)
        assert (lease.kind, lease.manifest, lease.holder) == (LeaseKind.LEASE, snapshot.digest, "pod-1")
        assert (lease.created_at_s, lease.expires_at_s) == (clock(), clock() + 60)
        assert store.leases() == [lease] == list(store.list()[0].leases)
        with pytest.raises(InUse, match="pod-1"):
            store.evict(snapshot.digest)
        clock.pass_(50)
        renewed = store.renew(lease.id, ttl_s=60)
        assert (renewed.id, renewed.expires_at_s) == (lease.id, clock() + 60)
        clock.pass_(59)
        with pytest.raises(InUse):
            store.evict(snapshot.digest, dry_run=True)
        clock.pass_(2)
        assert store.leases() == []
        assert not store.release(lease.id)
        with pytest.raises(NotCached):
            store.renew(lease.id, ttl_s=60)
        store.evict(snapshot.digest)
        store.collect()
        assert leftovers() == []

    def test_release(self, store: Store) -> None:
        snapshot = fill(store, MODEL)
        lease, other = (store.lease(snapshot.digest, holder="pod", ttl_s=60) for _ in range(2))
        assert store.release(lease.id)
        assert not store.release(lease.id)
        assert not store.release("no-such-lease")
        assert not store.release("../format")
        with pytest.raises(NotCached):
            store.renew(lease.id, ttl_s=60)
        assert store.leases() == [other]

    def test_who_names_a_lease_can_release_it_unheard(self, store: Store, clock: Clock) -> None:
        snapshot, named = fill(store, MODEL), new_lease_id()
        lease = store.lease(snapshot.digest, holder="pod", ttl_s=60, lease_id=named)
        assert (lease.id, store.leases()) == (named, [lease])
        for wrong in (named, "../format", "pin-" + "0" * 32, "lease-1", f"{new_lease_id()}\n"):
            with pytest.raises(BadConfig):
                store.lease(snapshot.digest, holder="another", ttl_s=60, lease_id=wrong)
        assert store.leases() == [lease]
        assert (store.release(named), store.release(named)) == (True, False)
        store.lease(snapshot.digest, holder="pod", ttl_s=60, lease_id=named)
        clock.pass_(61)
        assert store.leases() == []

    def test_pins(self, store: Store, clock: Clock) -> None:
        snapshot = fill(store, MODEL)
        pin = store.pin(snapshot.digest, holder="user")
        assert (pin.kind, pin.expires_at_s) == (LeaseKind.PIN, None)
        clock.pass_(1_000_000)
        assert store.pin(snapshot.digest, holder="user") == pin
        store.pin(snapshot.digest, holder="usér \udcff")
        assert not store.release(pin.id)
        assert len(store.leases()) == 2
        assert store.usage().pinned_bytes >= len(MODEL["weights/model.safetensors"])
        with pytest.raises(InUse):
            store.evict(snapshot.digest)
        assert store.unpin(snapshot.digest, holder="nobody") == 0
        assert store.unpin(snapshot.digest, holder="usér \udcff") == 1
        assert store.unpin(snapshot.digest) == 1
        assert store.unpin(snapshot.digest) == 0
        store.evict(snapshot.digest)

    def test_a_hold_ends_with_its_block(self, store: Store, leftovers: Leftovers) -> None:
        snapshot = fill(store, MODEL)
        with store.hold(snapshot.digest, holder="reader") as held:
            assert held == snapshot
            assert [lease.kind for lease in store.leases()] == [LeaseKind.PROCESS]
            with pytest.raises(InUse, match="reader"):
                store.evict(snapshot.digest)
            assert store.collect(need_bytes=1 << 60).evicted == ()
        assert store.leases() == []
        with pytest.raises(KeyError), store.hold(snapshot.digest, holder="reader"):
            raise KeyError
        assert store.leases() == []
        store.evict(snapshot.digest)
        assert leftovers() == []

    def test_nothing_holds_what_is_not_there(self, store: Store, leftovers: Leftovers) -> None:
        with pytest.raises(NotCached):
            store.lease(NOWHERE, holder="x", ttl_s=60)
        with pytest.raises(NotCached):
            store.pin(NOWHERE, holder="x")
        with pytest.raises(NotCached), store.hold(NOWHERE, holder="x"):
            pass
        assert store.unpin(NOWHERE) == 0
        assert leftovers() == []

    def test_holding_counts_as_use_from_its_beginning_to_its_end(self, store: Store, clock: Clock) -> None:
        snapshot = fill(store, MODEL)
        lease = store.lease(snapshot.digest, holder="x", ttl_s=1000)
        for use in (
            lambda: store.lease(snapshot.digest, holder="x", ttl_s=1),
            lambda: store.pin(snapshot.digest, holder="x"),
            lambda: store.snapshot(snapshot.digest),
            lambda: store.renew(lease.id, ttl_s=1000),
            lambda: store.release(lease.id),
        ):
            clock.pass_(10)
            use()
            assert store.list()[0].last_used_at_s == clock()
        with store.hold(snapshot.digest, holder="x"):
            clock.pass_(10)
        assert store.list()[0].last_used_at_s == clock()
