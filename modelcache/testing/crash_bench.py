"""An origin, a store and what people do with them, each operation such that whoever was killed in it may do it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import modelcache.store.reading
from modelcache.abc.snapshot import RefKey, Snapshot
from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.abc.store import Limits
from modelcache.chunks import chunk_range
from modelcache.digest import Digest
from modelcache.errors import BodyCut, NotCached
from modelcache.fetch.plan import Priority
from modelcache.patience import Cancellation
from modelcache.permission import OwnersAdmission
from modelcache.ranges import ByteRange
from modelcache.sources.archive import DEFAULT_LIMITS
from modelcache.sources.local import LocalSource
from modelcache.store.store import LocalStore
from modelcache.testing.archives import Written, tar_of
from modelcache.testing.crash import Board
from modelcache.testing.fetching import running_engine, small_chunks
from modelcache.testing.store_filling import content, digest_of
from modelcache.unpack import Unpacking
from modelcache.upkeep.repair import Repair, RepairReport
from modelcache.uri import StorageUri, parse_uri

NO_LIMITS = Limits(max_bytes=None, high_watermark=1.0, low_watermark=1.0)
LATER_S = 3 * 24 * 3600.0
"""A store whose clock is this much ahead gives no grace to anything."""

Files = Mapping[str, bytes]
State = Callable[[RemoteFile], tuple[Digest, ...]]
"""The digests that an origin states of a file."""


@contextmanager
def small_chunks_everywhere() -> Iterator[None]:
    """`small_chunks`, for `verify` too."""
    with small_chunks() as size_bytes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelcache.store.reading, "CHUNK_BYTES", size_bytes)
        yield


def chunk_bytes() -> int:
    """The size of a chunk in this process."""
    return chunk_range(0, 1 << 62).size_bytes


def models() -> dict[str, Files]:
    """What the origin has: models that share files, at this process's size of chunks."""
    weights = content(2 * chunk_bytes() + 1808, seed=1)
    shared = content(300, seed=2)
    third = {"model.safetensors": content(2 * chunk_bytes() + 5, seed=4), "tokenizer.json": shared}
    return {
        "first": {"weights/model.safetensors": weights, "tokenizer.json": shared, "empty.txt": b"", "config.json": b'{"model": 1}'},
        "second": {"model.safetensors": weights, "a/b/tokenizer.json": shared, "own.bin": content(chunk_bytes() + 7, seed=3)},
        "third": third,
        "archive": {"model.tar": tar_of([Written(path, data) for path, data in third.items()])},
        "first, later": {"weights/model.safetensors": weights, "tokenizer.json": shared, "config.json": b'{"model": 2}'},
    }


class MeteredSource:
    """A `LocalSource` that counts what it hands out on a board, may state digests, and may break once before a byte."""

    def __init__(self, board: Board, *, state: State, cut: tuple[str, int] | None) -> None:
        self._inner = LocalSource()
        self._board = board
        self._state = state
        self._cut = cut

    @property
    def origin(self) -> Origin:
        return self._inner.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        listing = self._inner.list(uri, cancel)
        return replace(listing, files=tuple(replace(file, digests=self._state(file)) for file in listing.files))

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        cut = self._cut[1] if self._cut is not None and self._cut[0] == file.path else None
        return _MeteredBody(self._inner.open(file, span, cancel), self._board, span.start, cut)

    def close(self) -> None:
        self._inner.close()


class _MeteredBody:
    def __init__(self, inner: Body, board: Board, at: int, cut: int | None) -> None:
        self._inner = inner
        self._board = board
        self._at = at
        self._cut = cut

    @property
    def stated(self) -> tuple[Digest, ...]:
        return self._inner.stated

    def readinto(self, buffer: memoryview) -> int:
        if self._cut is not None and self._at >= self._cut:
            raise BodyCut(f"cut before byte {self._cut}")
        count = self._inner.readinto(buffer if self._cut is None else buffer[: self._cut - self._at])
        self._at += count
        self._board.fetched(count)
        return count

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()


def stating_nothing(file: RemoteFile) -> tuple[Digest, ...]:
    return ()


def stating_sha256(file: RemoteFile) -> tuple[Digest, ...]:
    return (digest_of(Path(file.locator).read_bytes()),)


def stating_wrong(file: RemoteFile) -> tuple[Digest, ...]:
    return (digest_of(b"other bytes"),) if file.size_bytes > 1000 else ()


@dataclass(frozen=True)
class Bench:
    """An origin and a store under one directory, and what may be done with them. Every operation may be repeated."""

    directory: Path
    board: Board
    limits: Limits = NO_LIMITS
    models: Mapping[str, Files] = field(default_factory=models)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def store(self, *, later_s: float = 0.0) -> LocalStore:
        return LocalStore(self.root, self.limits, clock=lambda: time.time() + later_s)

    def uri(self, name: str) -> StorageUri:
        return parse_uri(f"file://{self.directory}/origin/{name}")[0]

    def offer(self, name: str, model: str | None = None) -> None:
        """Have the origin serve these files under `name`, and touch what it serves already as little as it can."""
        top = self.directory / "origin" / name
        files = self.models[model or name]
        for old in [old for old in top.rglob("*") if old.is_file() and str(old.relative_to(top)) not in files]:
            old.unlink()
        for path, data in files.items():
            target = top / path
            if not target.exists() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                beside = target.with_name(".incoming")
                beside.write_bytes(data)
                beside.rename(target)

    def ensure(
        self,
        name: str,
        *,
        state: State = stating_nothing,
        cut: tuple[str, int] | None = None,
    ) -> Snapshot:
        """`cut`: a path, and the byte before which the origin breaks off."""
        with running_engine(requests=1) as engine, self.store() as store:
            source = MeteredSource(self.board, state=state, cut=cut)
            uri = self.uri(name)
            admission = OwnersAdmission(store, source, uri)
            ensure = Unpacking(store, engine, admission, uri, priority=Priority.WAITING, route=None, limits=DEFAULT_LIMITS)
            return ensure.run(Cancellation()).snapshot

    def digest(self, store: LocalStore, name: str) -> Digest:
        ref = store.ref(RefKey(str(self.uri(name)), str(LocalSource().origin)))
        if ref is None:
            raise NotCached(f"`{name}` is not here")
        return ref.manifest

    def evict(self, name: str) -> None:
        """Gone already is fine: the evicting process may have been killed at its last step."""
        store = self.store()
        with suppress(NotCached):
            store.evict(self.digest(store, name))

    def repair(self) -> RepairReport:
        """Verify, and put right what is damaged."""

        @contextmanager
        def sources(uri: StorageUri) -> Iterator[Sequence[Source]]:
            yield [MeteredSource(self.board, state=stating_nothing, cut=None)]

        with running_engine(requests=1) as engine, self.store() as store:
            return Repair(store, engine, sources, Cancellation()).run(store.verify(None, Cancellation()))

    def settle(self) -> None:
        """What a store comes to when nobody works on it for days."""
        self.store(later_s=LATER_S).collect()

    def shown(self) -> dict[str, dict[str, bytes]]:
        """Every ref whose snapshot is here, by the name of its model → path → bytes."""
        store = self.store()
        found = {}
        for ref in store.refs():
            snapshot = store.snapshot(ref.manifest)
            if snapshot is not None:
                files = [path for path in snapshot.path.rglob("*") if path.is_file()]
                found[ref.key.uri.rpartition("/")[2]] = {str(path.relative_to(snapshot.path)): path.read_bytes() for path in files}
        return found


Step = Callable[[Bench], None]
