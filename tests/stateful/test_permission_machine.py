"""Callers, origins and models at random, against a plain account of who may read what: nobody gets a byte that they could not read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcache.abc.grants import Holder, Trust
from modelcache.abc.ingest import Route
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured
from modelcache.errors import AccessDenied, AccessUnproved, BodyCut, DigestMismatch, OriginUnreachable
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.permission import CallersAdmission
from modelcache.sources.witnessed import WitnessedSource
from modelcache.testing.fetching import place, running_engine, small_chunks
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource, state_nothing, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from modelcache.testing.store_fixtures import Clock

CHUNK = 4096
TTL_S = 100.0
CALLERS = ("a/x", "a/y", "b/x", "c/x")
ORIGINS = ("hub", "silent", "stating", "evil")
PATHS = ("f", "g")
SIZES = (0, 5, 2 * CHUNK + 1)
CONTENTS = st.builds(content, st.sampled_from(SIZES), st.integers(0, 3))
Files = dict[str, bytes]


@dataclass
class Proof:
    """What a caller has shown to be able to read: the files, as they were named and as they were given.

    Attributes:
        certain: False once the clock was set back before it: it is forgotten for good, if anybody asked about the namespace meanwhile.
    """

    versions: dict[str, str]
    files: Files
    at_s: float
    certain: bool = True


class PermissionMachine(RuleBasedStateMachine):
    """The hub is trusted, two origins are honest, and one claims and changes what it likes under any name."""

    @initialize(resumable=st.booleans(), requests=st.integers(1, 3))
    def begin(self, resumable: bool, requests: int) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(small_chunks(CHUNK))
        self.engine = self.stack.enter_context(running_engine(requests))
        self.clock = Clock(1_700_000_000.0)
        self.store = MemoryStore(clock=self.clock)
        self.claims: dict[bytes, Digest] = {}
        states = {"hub": state_sha256, "stating": state_sha256, "silent": state_nothing, "evil": self.claim_of}
        self.origins = {
            name: MemorySource({"f": content(5, 0)}, endpoint=f"memory://{name}:1", resumable=resumable, state=states[name])
            for name in ORIGINS
        }
        self.files: dict[str, Files] = {name: {"f": content(5, 0)} for name in ORIGINS}
        self.served: dict[tuple[str, str, str], set[bytes]] = {}
        """What each origin has handed out, or would have, under a path and version."""
        self.closed: set[tuple[str, str, str]] = set()
        """What a caller may not read: (caller, origin, path)."""
        self.proofs: dict[tuple[str, str], list[Proof]] = {}

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def claim_of(self, data: bytes) -> tuple[Digest, ...]:
        return (self.claims[data],) if data in self.claims else ()

    # -- what happens in the world ----------------------------------------------------------------------------------

    @rule(origin=st.sampled_from(ORIGINS), path=st.sampled_from(PATHS), data=CONTENTS)
    def put(self, origin: str, path: str, data: bytes) -> None:
        self.origins[origin].put(path, data)
        self.files[origin][path] = data

    @rule(path=st.sampled_from(PATHS), data=CONTENTS)
    def change_secretly(self, path: str, data: bytes) -> None:
        """Other bytes of the same size under the same version."""
        before = self.files["evil"].get(path)
        if before is not None and len(before) == len(data):
            self.versions("evil")
            self.origins["evil"].put(path, data, keep_version=True)
            self.files["evil"][path] = data

    @rule(path=st.sampled_from(PATHS), data=CONTENTS)
    def claim(self, path: str, data: bytes) -> None:
        """The evil origin says that its file has another's digest."""
        if path in self.files["evil"]:
            self.claims[self.files["evil"][path]] = digest_of(data)

    @rule(caller=st.sampled_from(CALLERS), origin=st.sampled_from(ORIGINS), path=st.sampled_from(PATHS), opened=st.booleans())
    def turn_the_key(self, caller: str, origin: str, path: str, opened: bool) -> None:
        (self.closed.discard if opened else self.closed.add)((caller, origin, path))

    @rule(seconds=st.sampled_from([TTL_S / 3, TTL_S, -5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.pass_(seconds)
        for key, proofs in self.proofs.items():
            self.proofs[key] = [replace(proof, certain=proof.certain and proof.at_s <= self.clock()) for proof in proofs]

    @rule(number=st.integers(0, 5))
    def evict(self, number: int) -> None:
        infos = self.store.list()
        if number < len(infos):
            self.store.evict(infos[number].digest)

    # -- what is asked ----------------------------------------------------------------------------------------------

    def prepare(self, caller: str, origin: str, again: bool) -> tuple[Ensure, GuardedSource]:
        view = GuardedSource(self.origins[origin], lambda path: (caller, origin, path) not in self.closed)
        namespace, _, account = caller.partition("/")
        holder = Holder(namespace, account, self.store.grants.mac(caller.encode()))
        trust = Trust(TTL_S, ("memory://hub:1",), proof_requests=2)
        witnessed = WitnessedSource(view, view.origin)
        admission = CallersAdmission(self.store.grants, trust, holder, witnessed, place(), again=again)
        ensure = Ensure(self.store, self.engine, witnessed, place(), priority=Priority.WAITING, route=Route.BUFFERED, admission=admission)
        return ensure, view

    @rule(caller=st.sampled_from(CALLERS), origin=st.sampled_from(ORIGINS), again=st.booleans())
    def ensure(self, caller: str, origin: str, again: bool) -> None:
        versions, files = self.versions(origin), dict(self.files[origin])
        refused = {path for path, data in files.items() if data and (caller, origin, path) in self.closed}
        theirs = self.of_namespace(caller)
        valid = [] if again else [proof for proof in self.valid(caller, origin) if proof.versions == versions]
        proved = [proof.files for proof in valid]
        ensure, _ = self.prepare(caller, origin, again)
        try:
            found = self.shown(ensure.run(Cancellation()))
        except AccessDenied:
            assert refused
            self.proofs.pop((caller, origin), None)
        except DigestMismatch:
            assert origin == "evil"
        else:
            assert found.keys() == files.keys()
            assert not refused or found in proved, "what may not be read was shown"
            for path, data in found.items():
                if data and found not in proved:
                    self.check_origin(origin, path, versions[path], data, theirs)
            if found not in [proof.files for proof in valid if proof.certain]:
                self.remember(caller, origin, Proof(versions, found, self.clock(), certain=found not in proved))

    def check_origin(self, origin: str, path: str, version: str, data: bytes, theirs: set[bytes]) -> None:
        """These bytes are what the origin serves, or what it may claim to."""
        if data in self.served[origin, path, version]:
            return
        claimed = self.origins[origin].state(self.files[origin][path])
        assert digest_of(data) in claimed, "bytes that this origin neither serves nor claims"
        assert data in theirs, "bytes of a claimed digest"

    @rule(caller=st.sampled_from(CALLERS), origin=st.sampled_from(ORIGINS))
    def ensure_in_an_outage(self, caller: str, origin: str) -> None:
        ensure, view = self.prepare(caller, origin, again=False)
        view.reachable = False
        proofs = self.valid(caller, origin)
        try:
            ensured = ensure.run(Cancellation())
        except AccessUnproved:
            assert not any(proof.certain for proof in proofs)
        except OriginUnreachable:
            assert proofs
            assert all(self.store.snapshot(manifest_of(proof.files).digest) is None for proof in proofs if proof.certain)
        else:
            assert ensured.snapshot.stale
            assert self.shown(ensured) in [proof.files for proof in proofs]

    @rule(caller=st.sampled_from(CALLERS), origin=st.sampled_from(("hub", "silent", "stating")))
    def ensure_and_come_back_too_late(self, caller: str, origin: str) -> None:
        """What was proved is proved no more when its time is over, though all of it is here and nothing changed."""
        self.turn_all_keys(caller, origin, opened=True)
        self.ensure(caller, origin, again=False)
        assert self.valid(caller, origin)
        self.turn_all_keys(caller, origin, opened=False)
        self.time_passes(TTL_S)
        self.ensure(caller, origin, again=False)

    def turn_all_keys(self, caller: str, origin: str, *, opened: bool) -> None:
        for path in self.files[origin]:
            self.turn_the_key(caller, origin, path, opened=opened)

    @rule(origin=st.sampled_from(ORIGINS))
    def ensure_as_the_owner(self, origin: str) -> None:
        """Who owns the store believes what origins claim: that must not become a right of callers."""
        self.versions(origin)
        try:
            Ensure(self.store, self.engine, self.origins[origin], place(), priority=Priority.WAITING, route=Route.BUFFERED).run(
                Cancellation()
            )
        except DigestMismatch:
            assert origin == "evil"

    @precondition(lambda self: hasattr(self, "stack"))
    @rule(caller=st.sampled_from(CALLERS), origin=st.sampled_from(ORIGINS), path=st.sampled_from(PATHS), offset=st.integers(0, 2 * CHUNK))
    def ensure_and_break(self, caller: str, origin: str, path: str, offset: int) -> None:
        """A fetch that is cut leaves chunks and blobs in an ingest; whoever takes it over has to prove them."""
        if len(self.files[origin].get(path, b"")) <= offset:
            return
        source = self.origins[origin]
        source.cut(path, offset)
        ensure, _ = self.prepare(caller, origin, again=True)
        versions = self.versions(origin)
        try:
            ensured = ensure.run(Cancellation())
        except (BodyCut, DigestMismatch):
            pass
        except AccessDenied:
            self.proofs.pop((caller, origin), None)
        else:
            self.remember(caller, origin, Proof(versions, self.shown(ensured), self.clock()))
        source._faults.pop(path, None)

    # -- the account ------------------------------------------------------------------------------------------------

    def versions(self, origin: str) -> dict[str, str]:
        """What the origin names its files by just now; what it serves under these names is noted."""
        source = self.origins[origin]
        found = {path: str(source._files[path].version) for path in self.files[origin]}
        for path, version in found.items():
            self.served.setdefault((origin, path, version), set()).add(self.files[origin][path])
        return found

    def valid(self, caller: str, origin: str) -> list[Proof]:
        return [proof for proof in self.proofs.get((caller, origin), []) if proof.at_s <= self.clock() < proof.at_s + TTL_S]

    def of_namespace(self, caller: str) -> set[bytes]:
        namespace = caller.partition("/")[0]
        found = set()
        for other in CALLERS:
            if other.startswith(f"{namespace}/"):
                found |= {data for origin in ORIGINS for proof in self.valid(other, origin) for data in proof.files.values()}
        return found

    def remember(self, caller: str, origin: str, proof: Proof) -> None:
        """One that is certain takes the place of an earlier one of the same; of two of which nobody knows either may count."""
        same = (proof.versions, proof.files)
        before = self.proofs.get((caller, origin), [])
        self.proofs[caller, origin] = [*(other for other in before if not proof.certain or (other.versions, other.files) != same), proof]

    def shown(self, ensured: Ensured) -> Files:
        digest = ensured.snapshot.digest
        return {item.path: self.store.file(digest, item.path) for item in self.store.manifest(digest).files}

    @invariant()
    def nothing_is_left_open(self) -> None:
        if hasattr(self, "stack"):
            assert all(source.open_bodies == 0 for source in self.origins.values())
            assert not self.store.shelf.open_ingests


TestPermission = PermissionMachine.TestCase
TestPermission.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("origin", ["hub", "silent"])
def test_a_grant_ends_with_its_time(origin: str) -> None:
    """The rule of the machine that finds it, without chance."""
    machine = PermissionMachine()
    machine.begin(resumable=True, requests=1)
    try:
        machine.ensure_and_come_back_too_late("a/x", origin)
        assert machine.proofs == {}
    finally:
        machine.teardown()
