"""A model, and a bench to say `ensure` on."""

from __future__ import annotations

from dataclasses import replace

from modelcache.abc.ingest import Route
from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.digest import Digest
from modelcache.ensure import Ensure, Ensured
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import place
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, manifest_of

MODEL = {"config.json": b"{}", "empty": b"", "model.safetensors": content(9 * CHUNK + 7, 1), "other.safetensors": content(5 * CHUNK, 2)}
FILLED = {path: data for path, data in MODEL.items() if data}
SIZE = sum(map(len, MODEL.values()))


class Bench:
    """A store, an engine, and a way to say `ensure`."""

    def __init__(self, store: MemoryStore, engine: FetchEngine) -> None:
        self.store = store
        self.engine = engine

    def prepare(self, source: MemorySource, name: str = "model", digest: Digest | None = None) -> Ensure:
        uri = replace(place(name), digest=digest)
        return Ensure(self.store, self.engine, source, uri, priority=Priority.WAITING, route=Route.BUFFERED)

    def ensure(
        self, source: MemorySource, name: str = "model", digest: Digest | None = None, cancel: Cancellation | None = None
    ) -> Ensured:
        return self.prepare(source, name, digest).run(cancel or Cancellation())

    def key(self, source: MemorySource, name: str = "model") -> RefKey:
        return RefKey(str(place(name)), str(source.origin))

    def stated(self, source: MemorySource, name: str = "model") -> dict[str, tuple[Digest, ...]]:
        ref = self.store.ref(self.key(source, name))
        assert ref is not None
        return {file.path: file.stated for file in ref.files}


def check_kept(store: MemoryStore, snapshot: Snapshot, files: dict[str, bytes]) -> None:
    assert snapshot.digest == manifest_of(files).digest
    assert {path: store.file(snapshot.digest, path) for path in files} == files
    assert store.leftovers() == []


def check(store: MemoryStore, ensured: Ensured, files: dict[str, bytes]) -> None:
    check_kept(store, ensured.snapshot, files)
    seen = ensured.progress
    size_bytes = sum(map(len, files.values()))
    assert (seen.phase, seen.bytes_total, seen.bytes_done, seen.eta_s) == (Phase.DONE, size_bytes, size_bytes, 0.0)
    assert (seen.files_total, seen.files_done) == (len(files), len(files))
    assert seen.bytes_fetched + seen.bytes_reused == size_bytes
