"""`isolation: namespace`: what a namespace shares with itself, and that it shares nothing with others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.abc.grants import Isolation
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig
from modelcache.patience import Cancellation
from modelcache.permission import Caller, Permission
from modelcache.testing.fetching import in_background, place
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.uri import UriSecrets
from tests.unit.permission.yards import MODEL, TRUSTED, WEIGHTS, Yard, everything, nothing

SIZE_BYTES = sum(map(len, MODEL.values()))


@pytest.fixture
def apart(yard: Yard) -> Yard:
    yard.trust = replace(yard.trust, isolation=Isolation.NAMESPACE)
    return yard


@pytest.fixture
def hub() -> MemorySource:
    """Trusted, and it states every sha256: without isolation a byte of each would do."""
    return MemorySource(MODEL, endpoint=TRUSTED, state=state_sha256)


def fetched_bytes(source: MemorySource) -> int:
    return sum(source.books.bytes.values())


def test_each_namespace_fetches_for_itself_once(apart: Yard, hub: MemorySource) -> None:
    owners = apart.own(hub)
    a = apart.ensure("a/one", GuardedSource(hub, everything))
    assert fetched_bytes(hub) == 2 * SIZE_BYTES
    assert (a.progress.hit, a.progress.bytes_reused) == (False, 0)  # as if nothing were here
    b = apart.ensure("b/one", GuardedSource(hub, everything))
    assert fetched_bytes(hub) == 3 * SIZE_BYTES
    assert len({found.snapshot.digest for found in (owners, a, b)}) == 3
    assert [apart.content(found) for found in (owners, a, b)] == [MODEL] * 3
    again = apart.ensure("a/two", GuardedSource(hub, everything))  # another credential of the same namespace proves a byte each
    assert again.snapshot == a.snapshot
    assert fetched_bytes(hub) == 3 * SIZE_BYTES + sum(1 for data in MODEL.values() if data)


def test_who_fetches_at_the_same_time_joins_nobody(apart: Yard, hub: MemorySource) -> None:
    gate = hub.gate(WEIGHTS, len(MODEL[WEIGHTS]) // 2)
    with in_background(lambda: apart.ensure("a/one", GuardedSource(hub, everything))):
        gate.await_readers()
        other = MemorySource(MODEL, endpoint=TRUSTED, state=state_sha256)
        assert apart.content(apart.ensure("b/one", GuardedSource(other, everything))) == MODEL
        assert fetched_bytes(other) == SIZE_BYTES
        gate.open()


def test_what_was_proved_without_isolation_opens_nothing_with_it(yard: Yard, hub: MemorySource) -> None:
    shared = yard.ensure("a/one", GuardedSource(hub, everything))
    yard.trust = replace(yard.trust, isolation=Isolation.NAMESPACE)
    admission = yard.admission("a/one", GuardedSource(hub, nothing))
    assert not admission.sees("", shared.snapshot.digest)
    with pytest.raises(AccessDenied):
        yard.ensure("a/one", GuardedSource(hub, nothing))
    own = yard.ensure("a/one", GuardedSource(hub, everything))
    assert own.snapshot.digest != shared.snapshot.digest
    yard.trust = replace(yard.trust, isolation=Isolation.NONE)
    assert yard.ensure("a/one", GuardedSource(hub, everything)).snapshot == shared.snapshot


def test_a_namespace_of_another_kind_of_name_is_refused(yard: Yard, hub: MemorySource) -> None:
    config = Config(root=Config.load({"HOME": "/nowhere"}).root, trust=replace(yard.trust, isolation=Isolation.NAMESPACE))
    permission = Permission(yard.store.grants, config)
    for name in ("../a", "Team", ""):
        with pytest.raises(BadConfig, match="namespace"):
            permission.admit(Caller(name, "default", b"", config), (place(), UriSecrets()), hub, again=False)
    admitted = permission.admit(Caller("team-a", "default", b"", config), (place(), UriSecrets()), hub, again=False)
    assert admitted.key.compartment == "team-a"
    admitted.prove([], Cancellation())


def test_the_setting() -> None:
    assert Config.load({"HOME": "/nowhere"}).trust.isolation is Isolation.NONE
    assert Config.load({"HOME": "/nowhere", "MODELCACHE_ISOLATION": "namespace"}).trust.isolation is Isolation.NAMESPACE
    with pytest.raises(BadConfig, match="MODELCACHE_ISOLATION"):
        Config.load({"HOME": "/nowhere", "MODELCACHE_ISOLATION": "pod"})
