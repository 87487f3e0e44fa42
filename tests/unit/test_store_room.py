"""What is decided without the lock is looked at again under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache.abc.store import Limits
from modelcache.digest import Digest
from modelcache.errors import NoSpace
from modelcache.store.making_room import MakingRoom
from modelcache.store.parts import Parts
from modelcache.store.removal import Removal
from modelcache.store.root import open_root
from modelcache.store.store import LocalStore
from modelcache.testing.store_filling import fill, ref_of, wanted
from modelcache.testing.store_fixtures import NO_LIMITS, model
from modelcache.units import MIB


def test_victims_go_together_or_not_at_all(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root", NO_LIMITS)
    digests = [fill(store, model(seed, 5000), uri=f"s3://b/{seed}").digest for seed in range(3)]
    removal = Removal(Parts.of(open_root(store.root, create=False)))
    with store.hold(digests[1], holder="pod"):
        assert not removal.evict_all(digests)
    assert not removal.evict_all([*digests, Digest.parse("sha256:" + "0" * 64)])
    assert len(store.list()) == len(store.refs()) == 3
    assert removal.evict_all(digests)
    assert (store.list(), store.refs(), store.usage().blobs_bytes) == ([], [], 0)


@pytest.mark.parametrize("times", [1, 100])
def test_a_lease_taken_between_choice_and_removal_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    now = [1_000_000.0]
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0), clock=lambda: now[0])
    digests = []
    for seed in range(3):
        now[0] += 1
        digests.append(fill(store, model(seed), uri=f"s3://b/{seed}").digest)
    evict_all = Removal.evict_all
    taken: list[Digest] = []

    def late(self: Removal, victims: list[Digest]) -> bool:
        """Somebody holds the first victim at the last moment."""
        if victims and len(taken) < times:
            store.lease(victims[0], holder="late", ttl_s=60)
            taken.append(victims[0])
        return evict_all(self, victims)

    monkeypatch.setattr(Removal, "evict_all", late)
    key, files = ref_of(model(9), uri="s3://b/9").key, wanted(model(9, MIB + MIB // 2))
    if times == 1:
        store.ingest(key, files).discard()
        assert [ref.key.uri for ref in store.refs()] == ["s3://b/0", "s3://b/2"]
    else:
        with pytest.raises(NoSpace) as caught:
            store.ingest(key, files)
        assert caught.value.held_bytes == 3 * MIB
        assert len(store.refs()) == 3
    assert taken == digests[: len(taken)]


def test_rounds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that stay in use after an eviction (reflinks outside of the store) end in a refusal, not in a loop."""
    store = LocalStore(tmp_path / "root", Limits(max_bytes=4 * MIB, high_watermark=1.0, low_watermark=1.0))
    fill(store, model(1, 3 * MIB))
    rounds: list[int] = []
    monkeypatch.setattr(MakingRoom, "_make_some", lambda self, need_bytes, room: rounds.append(need_bytes))
    with pytest.raises(NoSpace):
        store.ingest(ref_of(model(2)).key, wanted(model(2, 3 * MIB)))
    assert 1 <= len(rounds) <= 10
