"""A wall clock that jumps: what is held stays held, and nothing young counts as old."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache.errors import InUse
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import fill, ref_of, wanted, write_chunks
from modelcache.testing.store_fixtures import MODEL, NO_LIMITS, Clock

DAY_S = 24 * 3600.0


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(os.stat(tmp_path).st_mtime // 1)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS, clock=clock)


@pytest.mark.parametrize("jumps", [(-30 * DAY_S,), (-30 * DAY_S, 30 * DAY_S), (-60.0, -3600.0, 50.0)])
def test_a_lease_outlives_every_jump_back(store: LocalStore, clock: Clock, jumps: tuple[float, ...]) -> None:
    snapshot = fill(store, MODEL)
    lease = store.lease(snapshot.digest, holder="pod", ttl_s=600.0)
    for jump in jumps:
        clock.pass_(jump)
        assert [found.id for found in store.leases()] == [lease.id]
        assert store.collect(need_bytes=1 << 60).evicted == ()
        with pytest.raises(InUse):
            store.evict(snapshot.digest)
    renewed = store.renew(lease.id, ttl_s=600.0)
    assert renewed.expires_at_s == clock.now_s + 600.0


def test_pins_and_open_snapshots_know_no_time(store: LocalStore, clock: Clock) -> None:
    snapshot = fill(store, MODEL)
    for jump in (-400 * DAY_S, 4000 * DAY_S):
        with store.hold(snapshot.digest, holder="open"):
            clock.pass_(jump)
            assert store.collect(need_bytes=1 << 60).evicted == ()
        store.pin(snapshot.digest, holder="user")
        clock.pass_(-jump)
        assert store.collect(need_bytes=1 << 60).evicted == ()
        store.unpin(snapshot.digest)


def test_an_interrupted_ingest_from_the_future_is_young(store: LocalStore, clock: Clock) -> None:
    ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
    write_chunks(ingest.files[1], MODEL["weights/model.safetensors"], [0])
    ingest.keep()
    clock.pass_(-30 * DAY_S)
    assert store.collect().ingests_removed == 0
    clock.pass_(30 * DAY_S)
    again = store.ingest(ref_of(MODEL).key, wanted(MODEL))
    assert set(again.files[1].hints()) == {0}
    again.discard()
