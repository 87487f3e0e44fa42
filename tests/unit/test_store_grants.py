"""Grants on disk: what is read back, what counts, what ends them."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.abc.grants import Grant, Grants, Holder
from modelcache.abc.snapshot import RefKey
from modelcache.digest import sha256
from modelcache.errors import DamagedRecord, StoreReadOnly
from modelcache.patience import Cancellation
from modelcache.store import durable
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.memory_grants import MemoryGrants
from modelcache.testing.store_fixtures import NO_LIMITS, Clock

NOW_S = 1_700_000_000.0
DAY_S = 86_400.0
KEY = RefKey("s3://models/tiny", "https://s3.example:443")
HOLDER = Holder("team-a", "default", "ab" * 32)
GRANT = Grant(HOLDER, KEY, "commit-1", sha256("0" * 64), (sha256("1" * 64), sha256("2" * 64)), NOW_S, NOW_S + DAY_S)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW_S)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LocalStore:
    return LocalStore(tmp_path / "root", NO_LIMITS, clock=clock)


@pytest.fixture(params=["disk", "memory"])
def grants(request: pytest.FixtureRequest, clock: Clock) -> Grants:
    """Those of a store on disk, and those that tests of what stands above use."""
    if request.param == "memory":
        return MemoryGrants(clock)
    found: LocalStore = request.getfixturevalue("store")
    return found.grants


def kept(store: LocalStore) -> list[Path]:
    return sorted((store.root / "grants").iterdir())


def test_grants_are_read_back_by_holder_and_by_namespace(grants: Grants) -> None:
    newer = replace(GRANT, revision="commit-2", created_at_s=NOW_S - 1)
    others = [
        replace(GRANT, holder=replace(HOLDER, namespace="team-b")),
        replace(GRANT, holder=replace(HOLDER, service_account="other")),
        replace(GRANT, holder=replace(HOLDER, credential="cd" * 32)),
        replace(GRANT, key=replace(KEY, uri="s3://models/other")),
        replace(GRANT, key=replace(KEY, origin="https://evil.example:443")),
    ]
    for grant in (newer, GRANT, *others):
        grants.put(grant)
    *same_age, last = grants.of_holder(HOLDER, KEY.uri)
    assert (set(same_age), last) == ({GRANT, others[4]}, newer)
    assert set(grants.of_namespace("team-a")) == {GRANT, newer, *others[1:]}
    assert list(grants.of_namespace("team")) == []


def test_revoking_ends_every_version_of_the_ref_for_this_holder_alone(grants: Grants) -> None:
    other = replace(GRANT, holder=replace(HOLDER, service_account="other"))
    elsewhere = replace(GRANT, key=replace(KEY, origin="https://else.example:443"))
    for grant in (GRANT, replace(GRANT, revision="commit-2"), other, elsewhere):
        grants.put(grant)
    assert grants.revoke(HOLDER, KEY) == 2
    assert grants.revoke(HOLDER, KEY) == 0
    assert set(grants.of_namespace("team-a")) == {other, elsewhere}


def test_a_later_proof_of_the_same_takes_the_place_of_the_earlier(grants: Grants, clock: Clock) -> None:
    grants.put(GRANT)
    clock.pass_(DAY_S - 1)
    later = replace(GRANT, created_at_s=clock(), expires_at_s=clock() + DAY_S)
    grants.put(later)
    assert grants.now_s() == clock()
    assert list(grants.of_namespace("team-a")) == [later]
    clock.pass_(DAY_S - 1)
    assert list(grants.of_holder(HOLDER, KEY.uri)) == [later]
    clock.pass_(1)
    assert list(grants.of_holder(HOLDER, KEY.uri)) == []


def test_one_of_the_future_is_none_and_none_for_good(grants: Grants, clock: Clock) -> None:
    grants.put(GRANT)
    clock.pass_(-1)
    assert list(grants.of_holder(HOLDER, KEY.uri)) == []
    clock.pass_(1)
    assert list(grants.of_holder(HOLDER, KEY.uri)) == []


def test_credentials_are_told_apart_and_not_kept(grants: Grants) -> None:
    assert grants.mac(b"secret") == grants.mac(b"secret")
    assert len({grants.mac(one) for one in (b"", b"secret", b"secret2")}) == 3
    assert re.fullmatch(r"[0-9a-f]{64}", grants.mac(b""))


def test_a_grant_ends_with_its_time_and_is_swept(store: LocalStore, clock: Clock) -> None:
    store.grants.put(GRANT)
    assert audit(store.root, Moment.SETTLED) == []
    clock.pass_(DAY_S - 1)
    assert store.grants.of_holder(HOLDER, KEY.uri) == [GRANT]
    store.collect()
    assert len(kept(store)) == 1
    clock.pass_(1)
    assert store.grants.of_holder(HOLDER, KEY.uri) == []
    store.collect()
    assert kept(store) == []


@pytest.mark.parametrize("look", ["read", "collect"])
def test_a_clock_that_is_set_back_ends_grants_for_good(store: LocalStore, clock: Clock, look: str) -> None:
    store.grants.put(GRANT)
    clock.pass_(-3600)
    if look == "read":
        assert store.grants.of_holder(HOLDER, KEY.uri) == []
    else:
        store.collect()
    clock.pass_(3600)
    assert store.grants.of_holder(HOLDER, KEY.uri) == []
    assert kept(store) == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda data: data[:-20],
    "expiry as text": lambda data: data.replace(b"1700086400.0", b'"for ever"'),
    "longer": lambda data: data.replace(b"1700086400.0", b"9999999999.00"),
    "another holder": lambda data: data.replace(b"team-a", b"team-b"),
    "another ref": lambda data: data.replace(b"models/tiny", b"models/huge"),
    "blobs as text": lambda data: data.replace(b'["1', b'[7,"1'),
    "not JSON": lambda data: b"\xff" * 40,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_grant_that_cannot_be_read_is_no_right(store: LocalStore, name: str) -> None:
    store.grants.put(GRANT)
    (path,) = kept(store)
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    assert store.grants.of_holder(HOLDER, KEY.uri) == []
    assert store.grants.of_namespace("team-a") == []
    assert store.grants.of_namespace("team-b") == []
    assert [damage.path for damage in store.verify(None, Cancellation()).damages] == [path]
    assert kept(store) == []


def test_the_key_is_made_once_and_tells_credentials_and_stores_apart(store: LocalStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        macs = set(threads.map(lambda _: LocalStore(store.root, NO_LIMITS).grants.mac(b"secret"), range(16)))
    path = store.root / "node.key"
    assert len(macs) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"secret" not in b"".join(each.read_bytes() for each in store.root.rglob("*") if each.is_file())
    assert store.grants.mac(b"secret2") not in macs
    assert LocalStore(tmp_path / "other", NO_LIMITS).grants.mac(b"secret") not in macs
    assert audit(store.root, Moment.SETTLED) == []


@pytest.mark.parametrize("data", [b"", b"\n", b"0" * 64, b"0" * 63 + b"\n", b"G" * 64 + b"\n"])
def test_a_damaged_key_makes_no_grant(store: LocalStore, data: bytes) -> None:
    store.grants.mac(b"secret")
    path = store.root / "node.key"
    path.write_bytes(data)
    with pytest.raises(DamagedRecord) as caught:
        store.grants.mac(b"secret")
    assert caught.value.address == str(path)


def test_where_nothing_can_be_written_there_are_no_grants(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of before there were grants, on a disk that is read-only now."""
    (store.root / "grants").rmdir()
    assert store.grants.of_namespace("team-a") == []
    assert store.grants.revoke(HOLDER, KEY) == 0

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(durable, "create", refuse)
    with pytest.raises(StoreReadOnly):
        store.grants.mac(b"secret")
    with pytest.raises(StoreReadOnly):
        store.grants.put(GRANT)


def test_another_process_s_grants_and_revocations_are_seen(store: LocalStore, clock: Clock) -> None:
    other = LocalStore(store.root, NO_LIMITS, clock=clock)
    for _ in range(3):
        other.grants.put(GRANT)
        assert store.grants.of_holder(HOLDER, KEY.uri) == [GRANT]
        assert store.grants.revoke(HOLDER, KEY) == 1
        assert other.grants.of_holder(HOLDER, KEY.uri) == []


def test_many_threads_look_while_others_prove_and_revoke(store: LocalStore) -> None:
    def prove(number: int) -> None:
        key = replace(KEY, uri=f"s3://models/{number}")
        for _ in range(5):
            store.grants.put(replace(GRANT, key=key))
            assert [grant.key for grant in store.grants.of_holder(HOLDER, key.uri)] == [key]
            assert store.grants.revoke(HOLDER, key) == 1
            assert store.grants.of_holder(HOLDER, key.uri) == []

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(prove, range(8)))
