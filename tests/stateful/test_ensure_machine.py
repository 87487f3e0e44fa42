"""Ensures of two places against a plain model: two dicts at two origins, and what the store must show of them."""

from __future__ import annotations

from contextlib import ExitStack

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelcache.abc.ingest import Route
from modelcache.abc.snapshot import RefKey
from modelcache.ensure import Ensure, Ensured
from modelcache.errors import BodyCut, Cancelled, DigestMismatch, NotFound
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.testing.fetching import place, running_engine, small_chunks
from modelcache.testing.memory_source import MemorySource, state_md5, state_nothing, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of

CHUNK = 4096
PATHS = st.sampled_from(["a.json", "b.safetensors", "c.safetensors", "d"])
CONTENTS = st.builds(content, st.sampled_from([0, 5, CHUNK, 7 * CHUNK + 3]), st.integers(0, 3))
PLACES = st.sampled_from(["one", "two"])


class EnsureMachine(RuleBasedStateMachine):
    """Whatever happened before, an ensure gives exactly what its origin has now, or raises for a reason that was scripted."""

    @initialize(
        state=st.sampled_from([state_nothing, state_md5, state_sha256]),
        resumable=st.booleans(),
        requests=st.integers(1, 3),
        spare=st.integers(0, 3),
    )
    def begin(self, state: object, resumable: bool, requests: int, spare: int) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(small_chunks(CHUNK))
        self.engine = self.stack.enter_context(running_engine(requests, spare_buffers=spare))
        self.store = MemoryStore()
        self.sources = {name: MemorySource({}, endpoint=f"memory://{name}:1", resumable=resumable) for name in ("one", "two")}
        for source in self.sources.values():
            source.state = state  # type: ignore[assignment]
        self.files: dict[str, dict[str, bytes]] = {"one": {}, "two": {}}
        self.shown: dict[str, dict[str, bytes]] = {}
        self.faults: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    @rule(name=PLACES, path=PATHS, data=CONTENTS)
    def put(self, name: str, path: str, data: bytes) -> None:
        self.sources[name].put(path, data)
        self.files[name][path] = data

    @rule(name=PLACES, path=PATHS)
    def remove(self, name: str, path: str) -> None:
        if self.files[name].pop(path, None) is not None:
            self.sources[name].remove(path)

    @rule(name=PLACES, path=PATHS, offset=st.integers(0, 7 * CHUNK), kind=st.sampled_from(["cut", "spoil"]), times=st.integers(1, 3))
    def script(self, name: str, path: str, offset: int, kind: str, times: int) -> None:
        """The next reads of this byte go wrong. Wrong bytes are only noticed where something is stated."""
        source = self.sources[name]
        if kind == "cut":
            source.cut(path, offset, times)
            self.faults.add(name)
        elif source.state is not state_nothing:
            source.spoil(path, offset, times)
            self.faults.add(name)

    def ensure(self, name: str, cancel: Cancellation) -> Ensured:
        source = self.sources[name]
        return Ensure(self.store, self.engine, source, place(name), priority=Priority.WAITING, route=Route.BUFFERED).run(cancel)

    @rule(name=PLACES)
    def ensure_place(self, name: str) -> None:
        source, files = self.sources[name], self.files[name]
        served = sum(source.books.bytes.values())
        known = {path for path, data in files.items() if source.state is state_sha256 and self.store.has_blob(digest_of(data))}
        try:
            ensured = self.ensure(name, Cancellation())
        except NotFound:
            assert not files
        except (BodyCut, DigestMismatch):
            assert name in self.faults
        else:
            assert ensured.snapshot.digest == manifest_of(files).digest
            assert {path: self.store.file(ensured.snapshot.digest, path) for path in files} == files
            size_bytes = sum(map(len, files.values()))
            seen = ensured.progress
            assert (seen.bytes_done, seen.bytes_total, seen.files_done) == (size_bytes, size_bytes, len(files))
            served = sum(source.books.bytes.values()) - served
            if name not in self.faults:
                assert served <= sum(len(data) for path, data in files.items() if path not in known)
            if self.shown.get(name) == files and seen.hit:
                assert served == 0
            self.shown[name] = dict(files)

    @rule(name=PLACES, path=PATHS, offset=st.integers(0, 7 * CHUNK))
    def ensure_and_cancel(self, name: str, path: str, offset: int) -> None:
        """Cancelled when a read comes to this byte, if one does."""
        cancel = Cancellation()
        source = self.sources[name]
        source.on_open = lambda file, span: cancel.cancel() if file.path == path and span.start <= offset < span.stop else None
        try:
            self.ensure(name, cancel)
        except (NotFound, BodyCut, DigestMismatch):
            pass
        except Cancelled:
            assert cancel.requested
        else:
            self.shown[name] = dict(self.files[name])
        source.on_open = lambda file, span: None

    @rule(name=PLACES)
    def evict(self, name: str) -> None:
        ref = self.store.ref(RefKey(str(place(name)), str(self.sources[name].origin)))
        if ref is not None and self.store.snapshot(ref.manifest) is not None:
            gone = self.store.evict(ref.manifest).digest
            self.shown = {other: files for other, files in self.shown.items() if manifest_of(files).digest != gone}

    @invariant()
    def what_was_shown_stays(self) -> None:
        if not hasattr(self, "stack"):
            return
        for files in self.shown.values():
            digest = manifest_of(files).digest
            assert self.store.snapshot(digest) is not None
            assert {path: self.store.file(digest, path) for path in files} == files

    @invariant()
    def nothing_is_left_open(self) -> None:
        if not hasattr(self, "stack"):
            return
        assert all(source.open_bodies == 0 for source in self.sources.values())
        assert self.engine._fetches == []
        assert not self.store.shelf.open_ingests


TestEnsure = EnsureMachine.TestCase
TestEnsure.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
