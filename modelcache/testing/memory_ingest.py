"""The ingest of `MemoryStore`: a model on its way into a dict."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelcache.abc.ingest import Elsewhere, IncomingFile, IngestFile, Route
from modelcache.abc.snapshot import Ref, RefKey, Snapshot
from modelcache.chunks import ChunkTable, chunk_count, chunk_range
from modelcache.digest import Digest, sha256
from modelcache.errors import Cancelled, DamagedBlob, StoreFault
from modelcache.manifest import Manifest
from modelcache.patience import Cancellation, Deadline
from modelcache.ranges import ByteRange, RangeSet


@dataclass
class MemoryBlob:
    data: bytes
    table: ChunkTable


Content = Digest | tuple[str, Digest]
"""Bytes that all share, or those of one compartment."""


def content_of(digest: Digest, compartment: str) -> Content:
    return (compartment, digest) if compartment else digest


def bare(content: Content) -> Digest:
    """The digest of its bytes."""
    return content[1] if isinstance(content, tuple) else content


def digest_of(data: bytes) -> Digest:
    return sha256(hashlib.sha256(data).hexdigest())


@dataclass
class MemoryShelf:
    """What ingests share with their store."""

    add_snapshot: Callable[[Manifest, Ref], Snapshot]
    forget_unnamed: Callable[[], None]
    make_room: Callable[[MemoryIngest, int], None]
    clock: Callable[[], float]
    blobs: dict[Content, MemoryBlob] = field(default_factory=dict)
    kept: dict[RefKey, MemoryIngest] = field(default_factory=dict)
    open_ingests: dict[str, MemoryIngest] = field(default_factory=dict)
    claims: dict[str, MemoryIngest] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryIncoming:
    """One file of a `MemoryIngest`."""

    def __init__(self, ingest: MemoryIngest, wanted: IngestFile, earlier: MemoryIncoming | None) -> None:
        self._ingest = ingest
        self.wanted = wanted
        self._sha256: Digest | None = None
        begun = earlier if earlier is not None and earlier.sha256 is None else None
        self._data: bytearray = bytearray(wanted.size_bytes) if begun is None else begun._data
        self._hints: dict[int, bytes] = {} if begun is None else begun._hints | begun._marks
        self._marks: dict[int, bytes] = {}
        self.room_bytes = 0
        self._claimed = False
        self._booked = False
        known = wanted.sha256 or (None if earlier is None else earlier.sha256)
        if known is not None:
            self._link(known)

    @property
    def path(self) -> str:
        return self.wanted.path

    @property
    def size_bytes(self) -> int:
        return self.wanted.size_bytes

    @property
    def sha256(self) -> Digest | None:
        return self._sha256

    @property
    def claimed(self) -> bool:
        return self._claimed

    @property
    def booked(self) -> bool:
        return self._booked

    @property
    def marked_bytes(self) -> int:
        """What another ingest may see of it."""
        return sum(chunk_range(chunk, self.size_bytes).size_bytes for chunk in self._hints | self._marks)

    def claim(self) -> None:
        self._claimed = True

    def book(self, remains: MemoryIncoming | None) -> None:
        """Its room is booked; go on with what an ended ingest has of it."""
        self._booked = True
        self.room_bytes = self.size_bytes
        if remains is not None and remains.marked_bytes > self.marked_bytes:
            self._data, self._hints = remains._data, remains._hints | remains._marks
            remains._data, remains._hints, remains._marks = bytearray(self.size_bytes), {}, {}
            remains.room_bytes = 0

    @property
    def place(self) -> Path | None:
        return None

    def hints(self) -> Mapping[int, bytes]:
        return {} if self._sha256 is not None else dict(self._hints)

    def write(self, offset: int, data: memoryview, route: Route) -> None:
        self._require_open()
        if not self._booked:
            raise ValueError(f"`{self.path}` is for another ingest to bring")
        end = offset + data.nbytes
        if not 0 <= offset <= end <= self.size_bytes:
            raise ValueError(f"[{offset}, {end}) is outside of `{self.path}` of {self.size_bytes} bytes")
        self._data[offset:end] = data.cast("B")

    def read(self, offset: int, buffer: memoryview) -> None:
        data = self._data if self._sha256 is None else self._ingest.shelf.blobs[self._content(self._sha256)].data
        found = data[offset : offset + buffer.nbytes]
        if len(found) < buffer.nbytes:
            raise StoreFault(f"`{self.path}` ends before byte {offset + buffer.nbytes}")
        buffer.cast("B")[:] = found

    def mark(self, chunk: int, mark: bytes) -> None:
        self._require_open()
        if not 0 <= chunk < chunk_count(self.size_bytes):
            raise ValueError(f"`{self.path}` has no chunk {chunk}")
        with self._ingest.changed:
            self._marks[chunk] = mark
            self._ingest.changed.notify_all()

    def ranges(self) -> RangeSet:
        with self._ingest.changed:
            if self._sha256 is not None:
                return RangeSet([ByteRange(0, self.size_bytes)])
            return RangeSet(chunk_range(chunk, self.size_bytes) for chunk in self._marks)

    def wait(self, span: ByteRange, timeout_s: float, cancel: Cancellation) -> bool:
        deadline = Deadline.after(timeout_s)
        with cancel.on_cancel(self._ingest.wake), self._ingest.changed:
            while not self.ranges().covers(span):
                cancel.check()
                if self._ingest.ended:
                    raise Cancelled(f"the fetch ended before {span} of `{self.path}` was here")
                if deadline.passed:
                    return False
                self._ingest.changed.wait(deadline.remaining_s())
        return True

    def complete(self, sha256: Digest, table: ChunkTable) -> None:
        self._require_open()
        if table.size_bytes != self.size_bytes:
            raise ValueError(f"the chunk table of `{self.path}` is of {table.size_bytes} bytes, the file of {self.size_bytes}")
        if digest_of(bytes(self._data)) != sha256:
            raise ValueError(f"`{self.path}` has another digest than its fetch computed: {sha256}")
        self._ingest.shelf.blobs.setdefault(self._content(sha256), MemoryBlob(bytes(self._data), table))
        self._link(sha256)

    def link(self, sha256: Digest) -> bool:
        self._require_open()
        return self._link(sha256)

    def restart(self) -> None:
        self._require_open()
        with self._ingest.changed:
            self._hints = {}
            self._marks.clear()

    def give_back(self) -> None:
        """Give the room back that is booked behind the last chunk that is marked."""
        ends = [chunk_range(chunk, self.size_bytes).stop for chunk in (*self._hints, *self._marks)]
        self.room_bytes = min(self.room_bytes, max(ends, default=0))

    def _link(self, sha256: Digest) -> bool:
        found = self._ingest.shelf.blobs.get(self._content(sha256))
        if found is None or len(found.data) != self.size_bytes:
            return False
        with self._ingest.changed:
            self._sha256 = sha256
            self._data = bytearray()
            self.room_bytes = 0
            self._ingest.changed.notify_all()
        return True

    def _content(self, digest: Digest) -> Content:
        return content_of(digest, self._ingest.key.compartment)

    def _require_open(self) -> None:
        if self._ingest.ended:
            raise Cancelled(f"the ingest of `{self.path}` has ended")
        if self._sha256 is not None:
            raise ValueError(f"`{self.path}` is complete already")


class MemoryIngest:
    """A model on its way into a `MemoryStore`."""

    def __init__(self, shelf: MemoryShelf, key: RefKey, files: Sequence[IngestFile], earlier: MemoryIngest | None) -> None:
        self.shelf = shelf
        self.key = key
        self._earlier = earlier
        self.published_elsewhere: dict[str, Digest] = {}
        self._id = secrets.token_hex(8)
        self.changed = threading.Condition()
        self.ended = False
        self.kept_at_s = 0.0
        kept = {} if earlier is None else {(file.path, file.size_bytes, file.wanted.version): file for file in earlier.files}
        self._files = [
            MemoryIncoming(self, wanted, kept.get((wanted.path, wanted.size_bytes, wanted.version)) if wanted.version else None)
            for wanted in files
        ]
        self._reserved_bytes = 0

    @property
    def id(self) -> str:
        return self._id

    @property
    def files(self) -> Sequence[MemoryIncoming]:
        return self._files

    @property
    def reserved_bytes(self) -> int:
        return self._reserved_bytes

    @property
    def room_bytes(self) -> int:
        return sum(file.room_bytes for file in self._files)

    def elsewhere(self, files: Sequence[IncomingFile]) -> list[Elsewhere]:
        with self.shelf.lock:
            return [self._sight(file.wanted) for file in self._ours(files)]

    def _sight(self, wanted: IngestFile) -> Elsewhere:
        same = self._same(wanted)
        here = [file.marked_bytes for file in same if file.booked]
        holder = self.shelf.claims.get(wanted.identity)
        pulse = () if holder is None else (sum(file.marked_bytes for file in holder.files),)
        return Elsewhere(max(here, default=0), self._known(wanted, same), pulse)

    def _same(self, wanted: IngestFile) -> list[MemoryIncoming]:
        others = [ingest for ingest in (*self.shelf.open_ingests.values(), *self.shelf.kept.values()) if ingest is not self]
        named = [file for ingest in others for file in ingest.files if wanted.identity and file.wanted.identity == wanted.identity]
        return [file for file in named if file.size_bytes == wanted.size_bytes]

    def _known(self, wanted: IngestFile, same: Sequence[MemoryIncoming]) -> Digest | None:
        digests = [wanted.sha256, self.published_elsewhere.get(wanted.identity), *(file.sha256 for file in same)]
        return next((digest for digest in digests if digest is not None and self._content(digest) in self.shelf.blobs), None)

    def claim(self, files: Sequence[IncomingFile], *, anyway: bool = False) -> list[IncomingFile]:
        got: list[IncomingFile] = []
        with self.shelf.lock:
            for file in self._ours(files):
                identity = file.wanted.identity
                free = file.size_bytes == 0 or identity == "" or self.shelf.claims.setdefault(identity, self) is self
                if free or anyway:
                    file.claim()
                    known = self._known(file.wanted, self._same(file.wanted)) if file.size_bytes and free else None
                    if known is not None and (not anyway or known == file.wanted.sha256):
                        file.link(known)
                    got.append(file)
        return got

    def book(self, files: Sequence[IncomingFile]) -> None:
        with self.shelf.lock:
            todo = [file for file in self._ours(files) if file.sha256 is None and not file.booked]
            if not all(file.claimed for file in todo):
                raise ValueError("a file is for another ingest to bring")
            remains = [self._remains(file.wanted) for file in todo]
            left_bytes = sum(file.room_bytes for file in remains if file is not None)
            needed_bytes = sum(file.size_bytes for file in todo)
            if todo:
                self.shelf.make_room(self, needed_bytes - left_bytes)
            self._reserved_bytes += needed_bytes
            for file, before in zip(todo, remains, strict=True):
                file.book(before)

    def _content(self, digest: Digest) -> Content:
        return content_of(digest, self.key.compartment)

    def _remains(self, wanted: IngestFile) -> MemoryIncoming | None:
        kept = [file for ingest in self.shelf.kept.values() if ingest is not self._earlier for file in ingest.files]
        same = [file for file in kept if wanted.version and file.wanted.version and file.wanted.identity == wanted.identity]
        return next((file for file in same if file.sha256 is None and file.size_bytes == wanted.size_bytes), None)

    def _ours(self, files: Sequence[IncomingFile]) -> list[MemoryIncoming]:
        ours = set(map(id, self._files))
        return [file for file in files if isinstance(file, MemoryIncoming) and id(file) in ours]

    def flush(self, files: Sequence[object]) -> None:
        """Memory is as durable as it gets."""

    def complete(self, files: Sequence[tuple[IncomingFile, Digest, ChunkTable]]) -> None:
        self.flush([file for file, _, _ in files])
        for file, digest, table in files:
            file.complete(digest, table)

    def publish(self, manifest: Manifest, ref: Ref) -> Snapshot:
        if self.ended:
            raise Cancelled("the ingest has ended")
        ours = {(file.path, file.size_bytes, file.sha256) for file in self._files}
        if ours != {(item.path, item.size_bytes, item.sha256) for item in manifest.files}:
            raise ValueError("the manifest does not name exactly the completed files of this ingest")
        if {manifest.compartment, ref.key.compartment} != {self.key.compartment}:
            raise ValueError("manifest and ref are not of the compartment of this ingest")
        for file in self._files:
            if file.sha256 is not None and self._content(file.sha256) not in self.shelf.blobs:
                raise DamagedBlob(f"the blob of `{file.path}` was found damaged", expected=str(file.sha256))
        snapshot = self.shelf.add_snapshot(manifest, ref)
        became = {file.wanted.identity: file.sha256 for file in self._files if file.wanted.identity and file.sha256 is not None}
        for other in self.shelf.open_ingests.values():
            other.published_elsewhere.update(became)
        self._end()
        self.let_go()
        return snapshot

    def keep(self) -> None:
        if not self.ended:
            self._end()
            for file in self._files:
                file.give_back()
            self.kept_at_s = self.shelf.clock()
            self.shelf.kept[self.key] = self
            self.let_go()

    def discard(self) -> None:
        if not self.ended:
            self._end()
            self.shelf.forget_unnamed()
            self.let_go()

    def let_go(self) -> None:
        """End its claims."""
        with self.shelf.lock:
            for identity in [identity for identity, holder in self.shelf.claims.items() if holder is self]:
                del self.shelf.claims[identity]

    def wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self.shelf.open_ingests.pop(self._id, None)
