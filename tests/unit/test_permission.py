"""What a caller of a shared store gets, and on what proof: over a store and origins that are dicts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from modelcache.abc.grants import Holder, Trust
from modelcache.abc.ingest import Route
from modelcache.abc.snapshot import RefKey
from modelcache.abc.source import Origin
from modelcache.abc.store import Limits
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured, last
from modelcache.errors import AccessDenied, AccessUnproved, BodyCut, Cancelled, DigestMismatch, OriginUnreachable
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.permission import CallersAdmission
from modelcache.ranges import ByteRange
from modelcache.sources.witnessed import WitnessedSource
from modelcache.testing.fetching import in_background, place, running_engine, small_chunks
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_ingest import MemoryIngest
from modelcache.testing.memory_source import MemorySource, State, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from modelcache.testing.store_fixtures import Clock

CHUNK = 4096
MODEL = {"config.json": b"{}", "empty": b"", "model.safetensors": content(9 * CHUNK + 7, 1), "other.safetensors": content(5 * CHUNK, 2)}
WEIGHTS = "model.safetensors"
READABLE = sorted(path for path, data in MODEL.items() if data)
TTL_S = 1000.0
TRUSTED = "memory://hub:1"


def everything(path: str) -> bool:
    return True


def nothing(path: str) -> bool:
    return False


class Yard:
    """A store of several callers, with an engine and a clock."""

    def __init__(self, engine: FetchEngine) -> None:
        self.clock = Clock(1_700_000_000.0)
        self.store = MemoryStore(clock=self.clock)
        self.engine = engine
        self.trust = Trust(grant_ttl_s=TTL_S, origins=(TRUSTED,), proof_requests=3)

    def admission(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> CallersAdmission:
        """`who` is `namespace/service account`; its name is its credential."""
        namespace, _, account = who.partition("/")
        holder = Holder(namespace, account, self.store.grants.mac(who.encode()))
        uri = replace(place(), digest=digest)
        return CallersAdmission(self.store.grants, self.trust, holder, WitnessedSource(source, source.origin), uri, again=again)

    def prepare(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> Ensure:
        admission = self.admission(who, source, again=again, digest=digest)
        uri = replace(place(), digest=digest)
        return Ensure(self.store, self.engine, admission.source, uri, priority=Priority.WAITING, route=Route.BUFFERED, admission=admission)

    def ensure(self, who: str, source: GuardedSource, *, again: bool = False, digest: Digest | None = None) -> Ensured:
        return self.prepare(who, source, again=again, digest=digest).run(Cancellation())

    def own(self, source: MemorySource, digest: Digest | None = None) -> Ensured:
        """As the store's owner."""
        uri = replace(place(), digest=digest)
        return Ensure(self.store, self.engine, source, uri, priority=Priority.WAITING, route=Route.BUFFERED).run(Cancellation())

    def content(self, ensured: Ensured) -> dict[str, bytes]:
        digest = ensured.snapshot.digest
        return {item.path: self.store.file(digest, item.path) for item in self.store.manifest(digest).files}

    def granted(self, who: str) -> int:
        return len(self.store.grants.of_holder(self.admission(who, GuardedSource(MemorySource({}), nothing))._holder, str(place())))


@pytest.fixture
def yard() -> Iterator[Yard]:
    with small_chunks(CHUNK), running_engine(3) as engine:
        yield Yard(engine)


@pytest.fixture
def origin() -> MemorySource:
    return MemorySource(MODEL)


@pytest.fixture
def reader(origin: MemorySource) -> GuardedSource:
    return GuardedSource(origin, everything)


@pytest.fixture
def lister(origin: MemorySource) -> GuardedSource:
    return GuardedSource(origin, nothing)


def claiming(claims: dict[bytes, Digest]) -> State:
    """States of these bytes another digest, of all others nothing."""
    return lambda data: (claims[data],) if data in claims else ()


# -- proof -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", [False, True])
def test_who_may_only_list_gets_nothing_whether_the_bytes_are_here_or_not(
    yard: Yard, reader: GuardedSource, lister: GuardedSource, here: bool
) -> None:
    if here:
        yard.ensure("a/reader", reader)
    with pytest.raises(AccessDenied):
        yard.ensure("b/lister", lister)
    assert yard.granted("b/lister") == 0
    assert yard.granted("a/reader") == here
    with pytest.raises(AccessUnproved):
        last(yard.store, yard.admission("b/lister", lister), 0.0)


def test_one_object_that_may_not_be_read_is_enough(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    partly = GuardedSource(origin, lambda path: path != "config.json")
    with pytest.raises(AccessDenied):
        yard.ensure("b/partly", partly)
    assert yard.granted("b/partly") == 0


def test_what_is_here_costs_one_byte_of_each_object_and_then_nothing(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    for who in ("a/other", "b/reader"):
        view = GuardedSource(origin, everything)
        found = yard.ensure(who, view)
        assert yard.content(found) == MODEL
        assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]
        assert yard.granted(who) == 1
        view.opened.clear()
        yard.ensure(who, view)
        assert view.opened == []
        yard.ensure(who, view, again=True)
        assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]


def test_a_fetch_is_its_own_proof(yard: Yard, reader: GuardedSource) -> None:
    assert yard.content(yard.ensure("a/reader", reader)) == MODEL
    assert yard.granted("a/reader") == 1
    read = {path: sum(span.size_bytes for name, span in reader.opened if name == path) for path in READABLE}
    assert read == {path: len(MODEL[path]) for path in READABLE}


def test_a_file_without_versions_is_proved_by_its_first_byte(yard: Yard) -> None:
    origin = MemorySource({"a": content(2 * CHUNK, 1)}, resumable=False, state=state_sha256)
    yard.trust = replace(yard.trust, origins=(str(origin.origin),))
    yard.ensure("a/reader", GuardedSource(origin, everything))
    origin.piece_bytes, before = 1, origin.books.bytes["a"]
    view = GuardedSource(origin, everything)
    assert yard.ensure("b/reader", view).progress.hit
    assert view.opened == [("a", ByteRange(0, 2 * CHUNK))]
    assert origin.books.bytes["a"] - before == 1
    assert origin.open_bodies == 0


def test_what_was_interrupted_and_is_whole_by_now_is_proved_too(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """Another one's ingest is taken over: chunks that are here are not read again, and still have to be readable."""
    origin.cut("other.safetensors", 5 * CHUNK - 1)
    many = yard.engine
    with running_engine(1) as yard.engine, pytest.raises(BodyCut):
        yard.ensure("a/reader", reader)
    yard.engine = many
    with pytest.raises(AccessDenied):
        yard.ensure("b/partly", GuardedSource(origin, lambda path: path != WEIGHTS))
    before = origin.books.bytes.copy()
    view = GuardedSource(origin, everything)
    assert yard.content(yard.ensure("b/reader", view)) == MODEL
    assert {path: origin.books.bytes[path] - before[path] for path in ("config.json", WEIGHTS)} == {"config.json": 1, WEIGHTS: 1}


def test_who_joins_a_fetch_proves_what_it_brings(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    view, refused = GuardedSource(origin, everything), GuardedSource(origin, lambda path: path != WEIGHTS)
    outcome: list[Ensured] = []
    with in_background(lambda: yard.ensure("a/reader", reader)):
        gate.await_readers()
        with (
            in_background(lambda: outcome.append(yard.ensure("b/reader", view))),
            pytest.raises(AccessDenied),
            in_background(lambda: yard.ensure("c/refused", refused)),
        ):
            gate.open()
    assert yard.content(outcome[0]) == MODEL
    assert (WEIGHTS, ByteRange(0, 1)) in view.opened
    assert [yard.granted(who) for who in ("a/reader", "b/reader", "c/refused")] == [1, 1, 0]
    assert origin.books.bytes[WEIGHTS] <= len(MODEL[WEIGHTS]) + 2


def test_who_waits_for_another_s_fetch_of_the_same_books_nothing(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """Room for one is enough; who waits has proved its right before, sees the progress, and lends its hurry."""
    yard.store.limits = Limits(sum(map(len, MODEL.values())) + CHUNK, 1.0, 1.0)
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    first, second = yard.prepare("a/reader", reader), yard.prepare("b/reader", view := GuardedSource(origin, everything))
    first._priority = Priority.PREWARM
    hurried = _hurried(first)
    outcomes: list[Ensured] = []
    with in_background(lambda: outcomes.append(first.run(Cancellation()))):
        gate.await_readers()
        with pytest.raises(AccessDenied):
            yard.ensure("c/refused", GuardedSource(origin, nothing))
        with in_background(lambda: outcomes.append(second.run(Cancellation()))):
            assert hurried.wait(20)
            assert first._priority is Priority.WAITING
            assert second.look().phase is Phase.FETCHING
            assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]
            assert len(yard.store.shelf.open_ingests) == 1
            assert second.look().bytes_total == first.look().bytes_total
            gate.open()
    assert [yard.content(outcome) for outcome in outcomes] == [MODEL, MODEL]
    assert sum(origin.books.bytes.values()) == sum(map(len, MODEL.values())) + len(READABLE)
    assert [yard.granted(who) for who in ("a/reader", "b/reader", "c/refused")] == [1, 1, 0]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_who_waits_goes_on_where_the_other_ended(yard: Yard, origin: MemorySource, reader: GuardedSource, ending: str) -> None:
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    first, second = yard.prepare("a/reader", reader), yard.prepare("b/reader", view := GuardedSource(origin, everything))
    hurried, cancel = _hurried(first), Cancellation()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(first.run, cancel)
        gate.await_readers()
        waiting = threads.submit(second.run, Cancellation())
        assert hurried.wait(20)
        if ending == "cancelled":
            cancel.cancel()
        else:
            assert first._fetch is not None
            first._fetch.fail(AccessDenied("the credential ended"))
        gate.open()
        with pytest.raises(Cancelled if ending == "cancelled" else AccessDenied):
            running.result(20)
        outcome = waiting.result(20)
    assert yard.content(outcome) == MODEL
    assert outcome.progress.bytes_fetched < sum(map(len, MODEL.values()))
    assert [yard.granted(who) for who in ("a/reader", "b/reader")] == [0, 1]
    assert (WEIGHTS, ByteRange(0, 1)) in view.opened


def _hurried(ensure: Ensure) -> threading.Event:
    """Set when somebody who waits for this one has lent it their hurry."""
    came, hurry = threading.Event(), ensure.hurry

    def lend(priority: Priority) -> None:
        hurry(priority)
        came.set()

    ensure.hurry = lend  # type: ignore[method-assign]
    return came


# -- claimed digests -------------------------------------------------------------------------------------------------

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
    yard.store.ingest = lambda key, files: _looked(begin(key, files), linked)  # type: ignore[method-assign]
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
    yard.store.ingest = lambda key, files: _looked(begin(key, files), linked)  # type: ignore[method-assign]
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


# -- time, outages, revocation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("passed_s", [TTL_S, -1.0])
def test_a_grant_that_ended_is_proved_again(yard: Yard, reader: GuardedSource, passed_s: float) -> None:
    yard.ensure("a/reader", reader)
    reader.opened.clear()
    yard.clock.pass_(passed_s)
    yard.ensure("a/reader", reader)
    assert sorted(reader.opened) == [(path, ByteRange(0, 1)) for path in READABLE]


def test_a_refusal_ends_what_was_granted(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    rights = {"a/reader": everything, "a/other": everything}
    views = {who: GuardedSource(origin, lambda path, who=who: rights[who](path)) for who in rights}  # type: ignore[misc]
    for who in rights:
        yard.ensure(who, views[who])
    rights["a/reader"] = nothing
    yard.ensure("a/reader", views["a/reader"])  # its grant counts still
    with pytest.raises(AccessDenied):
        yard.ensure("a/reader", views["a/reader"], again=True)
    assert [yard.granted(who) for who in rights] == [0, 1]
    with pytest.raises(AccessDenied):
        yard.ensure("a/reader", views["a/reader"])


def test_an_outage_shows_the_last_version_to_who_proved_it(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    fresh = yard.ensure("a/reader", reader)
    assert not fresh.snapshot.stale
    reader.reachable = False
    stale = yard.ensure("a/reader", reader)
    assert (stale.snapshot, stale.progress.stale, stale.progress.hit) == (replace(fresh.snapshot, stale=True), True, True)
    assert isinstance(stale.unavailable, OriginUnreachable)
    yard.clock.pass_(TTL_S)
    with pytest.raises(AccessUnproved):
        yard.ensure("a/reader", reader)


def test_an_outage_tells_others_the_same_whether_it_is_here_or_not(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    dark = GuardedSource(origin, everything)
    dark.reachable = False

    def told() -> dict[str, object]:
        with pytest.raises(AccessUnproved) as caught:
            yard.ensure("b/reader", dark)
        assert caught.value.retryable
        return caught.value.as_dict()

    before = told()
    yard.ensure("a/reader", reader)
    assert told() == before


def test_an_outage_shows_each_caller_its_own_last_version(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    origin.put("config.json", b"[]")
    newer = GuardedSource(origin, everything)
    yard.ensure("b/reader", newer)
    reader.reachable = newer.reachable = False
    assert yard.content(yard.ensure("a/reader", reader)) == MODEL
    assert yard.content(yard.ensure("b/reader", newer)) == MODEL | {"config.json": b"[]"}


def test_an_owner_s_outage_shows_the_last_version(yard: Yard, origin: MemorySource) -> None:
    yard.own(origin)

    def unreachable() -> None:
        raise OriginUnreachable("nobody answers")

    origin.on_list = unreachable
    found = yard.own(origin)
    assert found.snapshot.stale
    yard.store.evict(manifest_of(MODEL).digest)
    with pytest.raises(OriginUnreachable):
        yard.own(origin)


def test_a_proof_that_fails_ends_the_others(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """And leaves no body open, and no thread behind."""
    yard.ensure("a/reader", reader)
    gate = origin.gate(WEIGHTS, 0)
    view = GuardedSource(origin, _refused_once(gate.await_readers))
    with pytest.raises(AccessDenied):
        yard.ensure("b/reader", view)
    assert origin.open_bodies == 0
    assert isinstance(view.origin, Origin)


def _refused_once(wait: Callable[[], None]) -> Callable[[str], bool]:
    def may_read(path: str) -> bool:
        if path == "other.safetensors":
            wait()
            return False
        return True

    return may_read
