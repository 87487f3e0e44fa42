"""Random operations on a store, crashes and damage among them, against a dict that says what must be there."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from modelcache.abc.snapshot import Snapshot
from modelcache.abc.store import LeaseKind, Limits
from modelcache.digest import Digest, sha256
from modelcache.ensure import Ensure
from modelcache.errors import BodyCut, InUse, NoSpace, NotCached
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.store import durable
from modelcache.store.store import LocalStore
from modelcache.testing.audit import Moment, audit
from modelcache.testing.crash import flip_bit, interposed
from modelcache.testing.crash_bench import LATER_S, NO_LIMITS, small_chunks_everywhere
from modelcache.testing.fetching import place, running_engine
from modelcache.testing.memory_source import MemorySource, state_nothing, state_sha256
from modelcache.testing.store_filling import content, digest_of, manifest_of
from tests.faults.chance import quick_directory

Files = dict[str, bytes]
POOL = [content(10_000, seed=1), content(10_000, seed=2), content(4096, seed=3), content(300, seed=4), content(301, seed=5), b""]
NAMES = ("a", "b", "c")
PATHS = ("model.safetensors", "dir/tokenizer.json", "dir/deeper/twin.bin")
names = st.sampled_from(NAMES)
contents = st.sampled_from(range(len(POOL)))
steps = st.integers(1, 130)
"""Number of the change to the disk before which a process dies; an ensure of three files makes about 70."""
HOUR_S = 3600.0


class Dead(Exception):
    """The process is no more: nothing that it still tries reaches the disk."""


@contextmanager
def dying(at: int) -> Iterator[None]:
    """What the block does from its change number `at` on is not done, and `Dead` comes out of it, unless it ends before."""
    count = 0

    def before(name: str) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise Dead

    with interposed(before):
        yield


@contextmanager
def few_links(most: int | None) -> Iterator[None]:
    """A file system that allows an inode only so many names."""
    link = durable.link

    def limited(source: durable.StrPath, target: durable.StrPath) -> None:
        if most is not None and os.lstat(source).st_nlink >= most:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "link", limited)
        yield


class StoreMachine(RuleBasedStateMachine):
    """The model: which snapshots are here, what refs say, who holds what, and which inodes rot."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(small_chunks_everywhere())
        self.root = self.stack.enter_context(quick_directory()) / "root"
        self.engine = self.stack.enter_context(running_engine(1))
        self.sources = {name: MemorySource({PATHS[0]: POOL[0]}, endpoint=f"memory://{name}:1") for name in NAMES}
        self.origin: dict[str, Files] = {name: {PATHS[0]: POOL[0]} for name in NAMES}
        self.snapshots: dict[Digest, Files] = {}
        self.refs: dict[str, Digest] = {}
        self.pins: set[tuple[Digest, str]] = set()
        self.holds: list[tuple[Digest, AbstractContextManager[Snapshot]]] = []
        self.rotten: dict[int, str] = {}
        self.later_s = 0.0
        self.limits = NO_LIMITS
        self.changed: set[str] = set()
        """Names of which the origin may have other versions than the ref knows, be it of the same bytes."""
        self.open_files = len(os.listdir("/proc/self/fd"))

    @initialize(most_links=st.sampled_from([None, 4]))
    def begin(self, most_links: int | None) -> None:
        self.stack.enter_context(few_links(most_links))
        self.store = self.open()

    def open(self) -> LocalStore:
        return LocalStore(self.root, self.limits, clock=lambda: time.time() + self.later_s)

    # -- what the model knows -----------------------------------------------------------------------------------------

    @property
    def held(self) -> set[Digest]:
        return {digest for digest, _ in self.pins} | {digest for digest, _ in self.holds}

    def rotting(self) -> set[str]:
        """Contents of which some file in the store is damaged just now."""
        here = {path.lstat().st_ino for path in self.root.rglob("*") if "quarantine" not in path.parts}
        return {digits for inode, digits in self.rotten.items() if inode in here}

    def shows_rot(self, digest: Digest) -> bool:
        top = self.root / "snapshots" / digest.hex
        return any(path.lstat().st_ino in self.rotten for path in top.rglob("*"))

    def wanted(self, name: str) -> Digest:
        return manifest_of(self.origin[name]).digest

    def observed(self) -> tuple[set[Digest], dict[str, Digest]]:
        refs = {ref.key.uri.rpartition("/")[2]: ref.manifest for ref in self.store.refs()}
        return {info.digest for info in self.store.list()}, refs

    def expect(
        self,
        *,
        gone: AbstractSet[Digest] = frozenset(),
        may_go: AbstractSet[Digest] = frozenset(),
        new: str | None = None,
        may_come: str | None = None,
    ) -> None:
        """The store is as the model says, but for what an operation changed or may have changed; the model follows.

        Args:
            gone, may_go: snapshots that go with their refs.
            new, may_come: a name whose snapshot and ref come.
        """
        coming = {self.wanted(name) for name in (new, may_come) if name is not None}
        snapshots, refs = self.observed()
        assert self.snapshots.keys() - gone - may_go <= snapshots <= (self.snapshots.keys() - gone) | coming, "snapshots that must not be"
        assert new is None or self.wanted(new) in snapshots
        for name in NAMES:
            old = self.refs.get(name)
            allowed: set[Digest | None] = {None} if old in gone else {old, None} if old in may_go else {old}
            if name == new:
                allowed = {self.wanted(name)}
            elif name == may_come:
                allowed |= {self.wanted(name)}
            assert refs.get(name) in allowed, f"the ref of `{name}` is {refs.get(name)}, it was {old}"
        for come in (new, may_come):
            if come is not None:
                self.snapshots.setdefault(self.wanted(come), dict(self.origin[come]))
        self.snapshots = {digest: files for digest, files in self.snapshots.items() if digest in snapshots}
        self.refs = refs

    def ensure(self, name: str, *, stated: bool) -> Snapshot:
        source = self.sources[name]
        source.state = state_sha256 if stated else state_nothing
        return Ensure(self.store, self.engine, source, place(name), priority=Priority.WAITING, route=None).run(Cancellation()).snapshot

    def evictable(self) -> set[Digest]:
        """What an ensure may remove to make room: of no limit, nothing."""
        return set() if self.limits.max_bytes is None else self.snapshots.keys() - self.held

    # -- the origin ---------------------------------------------------------------------------------------------------

    @rule(name=names, path=st.sampled_from(PATHS), number=contents)
    def change(self, name: str, path: str, number: int) -> None:
        if self.origin[name].get(path) != POOL[number]:
            self.origin[name][path] = POOL[number]
            self.sources[name].put(path, POOL[number])
            self.changed.add(name)

    # -- models come --------------------------------------------------------------------------------------------------

    @rule(name=names, stated=st.booleans())
    def bring(self, name: str, stated: bool) -> None:
        here = self.refs.get(name) == self.wanted(name) and self.wanted(name) in self.snapshots and name not in self.changed
        before = sum(self.sources[name].books.bytes.values())
        try:
            snapshot = self.ensure(name, stated=stated)
        except NoSpace:
            assert self.limits.max_bytes is not None
            assert not here
            self.expect()
            return
        fetched = sum(self.sources[name].books.bytes.values()) - before
        assert snapshot.digest == self.wanted(name)
        assert not (here and fetched), "what was here was fetched"
        if fetched and self.limits.max_bytes is not None:
            assert self.store.usage().blobs_bytes <= self.limits.max_bytes
        self.expect(may_go=set() if here else self.evictable(), new=name)
        self.changed.discard(name)

    @rule(name=names, stated=st.booleans(), at=steps)
    def bring_and_die(self, name: str, stated: bool, at: int) -> None:
        with suppress(Dead, NoSpace), dying(at):
            self.ensure(name, stated=stated)
        self.store = self.open()
        self.expect(may_go=self.evictable(), may_come=name)

    @rule(name=names, path=st.sampled_from(PATHS), at=st.integers(0, 9999))
    def break_off(self, name: str, path: str, at: int) -> None:
        """The origin breaks the body that would hand this byte out, if one is opened."""
        source = self.sources[name]
        source.cut(path, at)
        with suppress(BodyCut, NoSpace):
            self.ensure(name, stated=False)
        source._faults.clear()
        self.expect(may_go=self.evictable(), may_come=name)

    # -- models are held ----------------------------------------------------------------------------------------------

    @rule(data=st.data())
    @precondition(lambda self: self.snapshots)
    def hold(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.snapshots)))
        context = self.store.hold(digest, holder="somebody")
        assert context.__enter__().digest == digest
        self.holds.append((digest, context))

    @rule(data=st.data())
    @precondition(lambda self: self.holds)
    def let_go(self, data: st.DataObject) -> None:
        _, context = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        context.__exit__(None, None, None)

    @rule(data=st.data(), holder=st.sampled_from(["user", "someone else"]), at=st.none() | st.integers(1, 8))
    @precondition(lambda self: self.snapshots)
    def pin(self, data: st.DataObject, holder: str, at: int | None) -> None:
        digest = data.draw(st.sampled_from(sorted(self.snapshots)))
        self._mutated(lambda: self.store.pin(digest, holder=holder), at)
        pins = self._pins()
        assert self.pins <= pins <= self.pins | {(digest, holder)}
        assert at is not None or (digest, holder) in pins
        self.pins = pins

    @rule(data=st.data(), at=st.none() | st.integers(1, 4))
    @precondition(lambda self: self.pins)
    def unpin(self, data: st.DataObject, at: int | None) -> None:
        digest, holder = data.draw(st.sampled_from(sorted(self.pins)))
        self._mutated(lambda: self.store.unpin(digest, holder=holder), at)
        pins = self._pins()
        assert self.pins - {(digest, holder)} <= pins <= self.pins
        assert at is not None or (digest, holder) not in pins
        self.pins = pins

    def _pins(self) -> set[tuple[Digest, str]]:
        return {(lease.manifest, lease.holder) for lease in self.store.leases() if lease.kind is LeaseKind.PIN}

    def _mutated(self, work: Callable[[], object], at: int | None) -> None:
        """Do it, and die at a step of it, if one is given."""
        if at is None:
            work()
            return
        with suppress(Dead), dying(at):
            work()
        self.store = self.open()

    # -- models go ----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), at=st.none() | st.integers(1, 40))
    @precondition(lambda self: self.snapshots)
    def evict(self, data: st.DataObject, at: int | None) -> None:
        digest = data.draw(st.sampled_from(sorted(self.snapshots)))
        if digest in self.held:
            with pytest.raises(InUse):
                self.store.evict(digest)
            self.expect()
            return
        self._mutated(lambda: self.store.evict(digest), at)
        self.expect(gone={digest} if at is None else set(), may_go={digest})

    @rule(need_bytes=st.sampled_from([0, 1, 5000, 50_000]), at=st.none() | st.integers(1, 40))
    def collect(self, need_bytes: int, at: int | None) -> None:
        self._mutated(lambda: self.store.collect(need_bytes=need_bytes), at)
        gone = self.snapshots.keys() - self.observed()[0]
        assert gone <= self.evictable()
        dangling = set(self.refs.values()) - self.snapshots.keys()
        self.expect(may_go=gone | dangling)

    @rule(hours=st.sampled_from([1, 25]))
    def wait(self, hours: int) -> None:
        self.later_s += hours * HOUR_S

    @rule(blocks=st.sampled_from([None, None, 6, 10]))
    def limit(self, blocks: int | None) -> None:
        self.limits = NO_LIMITS if blocks is None else Limits(max_bytes=blocks * 4096, high_watermark=1.0, low_watermark=1.0)
        self.store = self.open()

    # -- bytes rot ----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), at=st.integers(0, 299))
    def rot(self, data: st.DataObject, at: int) -> None:
        blobs = sorted(path for path in (self.root / "blobs").rglob("*") if path.is_file() and path.lstat().st_ino not in self.rotten)
        if blobs:
            path = data.draw(st.sampled_from(blobs), label="blob")
            flip_bit(path, at)
            self.rotten[path.lstat().st_ino] = path.name[:64]

    @rule(at=st.none() | st.integers(1, 20))
    def verify(self, at: int | None) -> None:
        rotten = {path.lstat().st_ino for path in (self.root / "blobs").rglob("*") if path.lstat().st_ino in self.rotten}
        gone = {digest for digest in self.snapshots if self.shows_rot(digest) and digest not in self.held}
        reports = []
        self._mutated(lambda: reports.append(self.store.verify(None, Cancellation())), at)
        if at is None:
            assert {sha256(self.rotten[inode]) for inode in rotten} <= {damage.digest for damage in reports[0].damages}
            assert all(damage.digest is None or damage.digest.hex in self.rotten.values() for damage in reports[0].damages)
        snapshots, refs = self.observed()
        assert refs == self.refs, "what is withdrawn keeps its ref: the next ensure repairs it"
        assert self.snapshots.keys() - gone <= snapshots <= self.snapshots.keys() - (gone if at is None else set())
        self.snapshots = {digest: files for digest, files in self.snapshots.items() if digest in snapshots}

    # -- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def is_sound(self) -> None:
        rotting = self.rotting()
        assert audit(self.root, Moment.CRASHED, damaged=rotting, quarantined=set(self.rotten.values())) == []
        assert self.observed() == (set(self.snapshots), self.refs)
        for digest, files in self.snapshots.items():
            for path, data in files.items():
                if digest_of(data).hex not in rotting:
                    assert (self.root / "snapshots" / digest.hex / path).read_bytes() == data
        leases = self.store.leases()
        assert self._pins() == self.pins
        assert sorted(lease.manifest for lease in leases if lease.kind is LeaseKind.PROCESS) == sorted(digest for digest, _ in self.holds)

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self._end()
        finally:
            self.stack.close()

    def _end(self) -> None:
        for _, context in self.holds:
            context.__exit__(None, None, None)
        for digest, _ in self.pins:
            self.store.unpin(digest)
        self.limits = NO_LIMITS
        self.later_s += LATER_S
        self.store = self.open()
        self.store.verify(None, Cancellation())
        self.store.collect()
        assert self.rotting() == set()
        assert audit(self.root, Moment.SETTLED, quarantined=set(self.rotten.values())) == []
        for name in NAMES:
            snapshot = self.ensure(name, stated=False)
            assert shown_by(snapshot) == self.origin[name]
            with suppress(NotCached):
                self.store.evict(snapshot.digest)
        assert len(os.listdir("/proc/self/fd")) <= self.open_files, "files, and the locks on them, stay open"


def shown_by(snapshot: Snapshot) -> Files:
    return {str(path.relative_to(snapshot.path)): path.read_bytes() for path in snapshot.path.rglob("*") if path.is_file()}


common = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large])
TestStore = StoreMachine.TestCase
TestStore.settings = settings(common, max_examples=100, stateful_step_count=30)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_store_for_long() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(common, max_examples=600, stateful_step_count=50))
