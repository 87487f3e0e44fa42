"""A digest that an origin only claims: what it opens to a caller, and what it saves."""

from __future__ import annotations

import pytest

from modelcache.abc.snapshot import RefKey
from modelcache.ensure import Ensured
from modelcache.errors import AccessDenied, DigestMismatch
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import in_background, place
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_ingest import MemoryIngest
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.store_filling import content, digest_of
from tests.unit.permission.yards import TRUSTED, TTL_S, Yard, claiming, everything, nothing

SECRET = content(6 * CHUNK + 3, 7)
FORGED = content(6 * CHUNK + 3, 8)


@pytest.fixture
def private(yard: Yard) -> Ensured:
    """A's file, which B may not read."""
    return yard.ensure("a/reader", GuardedSource(MemorySource({"s": SECRET}, endpoint="memory://private:1"), everything))


@pytest.mark.parametrize("serves", ["nothing", "other bytes"])
def test_a_digest_that_is_only_claimed_opens_nothing(yard: Yard, private: Ensured, serves: str) -> None:
    evil = MemorySource({"s": FORGED}, endpoint="memory://evil:1", state=claiming({FORGED: digest_of(SECRET)}))
    view = GuardedSource(evil, everything if serves == "other bytes" else nothing)
    linked: list[str] = []
    begin = yard.store.ingest
    yard.store.ingest = lambda key, files, cancel=None: _looked(begin(key, files, cancel), linked)  # type: ignore[method-assign]
    with pytest.raises(DigestMismatch if serves == "other bytes" else AccessDenied):
        yard.ensure("b/evil", view)
    assert linked == []
    assert yard.granted("b/evil") == 0
    assert yard.store.refs(str(place())) == [yard.store.ref(RefKey(str(place()), "memory://private:1"))]


def test_what_is_here_is_proved_before_it_is_linked(yard: Yard, private: Ensured) -> None:
    """Also of a model of which the rest is still to come."""
    hub = MemorySource({"s": SECRET, "t": FORGED}, endpoint=TRUSTED, state=state_sha256)
    linked: list[str] = []
    begin = yard.store.ingest
    yard.store.ingest = lambda key, files, cancel=None: _looked(begin(key, files, cancel), linked)  # type: ignore[method-assign]
    with pytest.raises(AccessDenied):
        yard.ensure("b/partly", GuardedSource(hub, lambda path: path == "t"))
    assert linked == []
    view = GuardedSource(hub, everything)
    assert yard.content(yard.ensure("b/reader", view)) == {"s": SECRET, "t": FORGED}
    assert linked == ["s"]
    assert sum(span.size_bytes for _, span in view.opened) == 1 + len(FORGED)


def _looked(ingest: MemoryIngest, linked: list[str]) -> MemoryIngest:
    linked += [file.path for file in ingest.files if file.sha256 is not None]
    return ingest


@pytest.mark.parametrize("in_uri", [False, True])
def test_who_serves_what_it_claims_is_fetched_and_stored_once(yard: Yard, private: Ensured, in_uri: bool) -> None:
    other = MemorySource({"s": SECRET}, endpoint="memory://other:1", state=(lambda data: ()) if in_uri else state_sha256)
    found = yard.ensure("b/reader", GuardedSource(other, everything), digest=digest_of(SECRET) if in_uri else None)
    assert other.books.bytes["s"] == len(SECRET)
    assert found.snapshot == private.snapshot
    assert list(yard.store.shelf.blobs) == [digest_of(b""), digest_of(SECRET)]


def test_a_claim_does_not_join_a_fetch_in_progress(yard: Yard) -> None:
    private = MemorySource({"s": SECRET}, endpoint="memory://private:1", state=state_sha256)
    evil = MemorySource({"s": FORGED}, endpoint="memory://evil:1", state=claiming({FORGED: digest_of(SECRET)}))
    gate = private.gate("s", 3 * CHUNK)
    with in_background(lambda: yard.ensure("a/reader", GuardedSource(private, everything))):
        gate.await_readers()
        with pytest.raises(DigestMismatch):
            yard.ensure("b/evil", GuardedSource(evil, everything))
        gate.open()
    assert yard.granted("b/evil") == 0


@pytest.mark.parametrize("serves", [False, True])
def test_a_trusted_origin_s_claim_saves_the_fetch_once_it_is_proved(yard: Yard, private: Ensured, serves: bool) -> None:
    hub = MemorySource({"s": SECRET}, endpoint=TRUSTED, state=state_sha256)
    view = GuardedSource(hub, everything if serves else nothing)
    if not serves:
        with pytest.raises(AccessDenied):
            yard.ensure("b/reader", view)
        assert yard.granted("b/reader") == 0
    else:
        assert yard.ensure("b/reader", view).snapshot == private.snapshot
        assert view.opened == [("s", ByteRange(0, 1))]


def test_a_claim_of_what_the_namespace_may_read_anyway_saves_the_fetch(yard: Yard, private: Ensured) -> None:
    other = MemorySource({"s": SECRET}, endpoint="memory://other:1", state=state_sha256)
    view = GuardedSource(other, everything)
    assert yard.ensure("a/other", view).snapshot == private.snapshot
    assert view.opened == [("s", ByteRange(0, 1))]
    with pytest.raises(AccessDenied):
        yard.ensure("a/lister", GuardedSource(other, nothing))
    yard.clock.pass_(TTL_S)
    other.put("s", SECRET)
    yard.ensure("a/other", view)
    assert sum(span.size_bytes for _, span in view.opened) == 1 + len(SECRET)


def test_what_the_owner_believed_of_an_origin_is_no_proof_for_a_caller(yard: Yard, private: Ensured) -> None:
    """The only owner of a store links what an origin claims; the ref says so, and callers fetch."""
    evil = MemorySource({"s": FORGED}, endpoint="memory://evil:1", state=claiming({FORGED: digest_of(SECRET)}))
    assert yard.own(evil).snapshot == private.snapshot
    evil.state = lambda data: ()
    found = yard.ensure("b/evil", GuardedSource(evil, everything))
    assert yard.content(found) == {"s": FORGED}


def test_two_origins_with_one_uri_and_one_version_are_two_things(yard: Yard) -> None:
    """Same names, sizes and validators: what one origin has is never handed out for the other's."""
    first, second = MemorySource({"s": SECRET}), MemorySource({"s": FORGED}, endpoint="memory://origin:2")
    for who, origin, data in (("a/x", first, SECRET), ("b/x", second, FORGED), ("a/x", first, SECRET), ("b/y", second, FORGED)):
        assert yard.content(yard.ensure(who, GuardedSource(origin, everything))) == {"s": data}
