"""A source whose origin is a dict, with scripted faults and books of all that it served: for tests of what stands above a source."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, fingerprint
from modelcache.digest import Algorithm, Digest, sha256
from modelcache.errors import BodyCut, Cancelled, NotFound, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import MIB
from modelcache.uri import StorageUri

DEADLINE_S = 30.0
"""A test that waits longer than this for a scripted event is wrong or has found a deadlock."""

State = Callable[[bytes], tuple[Digest, ...]]
"""What an origin states of some bytes."""


def state_nothing(data: bytes) -> tuple[Digest, ...]:
    return ()


def state_sha256(data: bytes) -> tuple[Digest, ...]:
    return (sha256(hashlib.sha256(data).hexdigest()),)


def state_md5(data: bytes) -> tuple[Digest, ...]:
    return (Digest(Algorithm.MD5, hashlib.md5(data).hexdigest()),)


class Gate:
    """Holds reads up until it is opened; tells when the first has come.

    Attributes:
        path, offset: a read of this file that would hand out the byte at `offset` waits.
    """

    def __init__(self, path: str, offset: int) -> None:
        self.path = path
        self.offset = offset
        self._changed = threading.Condition()
        self._readers = 0
        self._is_open = False

    def open(self) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Have readers that stand here look whether they are broken."""
        with self._changed:
            self._changed.notify_all()

    def await_readers(self, count: int = 1) -> None:
        """Wait until this many reads have come to the gate."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._readers >= count, DEADLINE_S):
                raise TimeoutError(f"{self._readers} reads of `{self.path}` came to byte {self.offset} within {DEADLINE_S} s")

    def pass_through(self, broken: threading.Event) -> None:
        """For bodies: wait until it is open or the body is broken."""
        with self._changed:
            self._readers += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._is_open or broken.is_set(), DEADLINE_S):
                raise TimeoutError(f"the gate at byte {self.offset} of `{self.path}` was not opened within {DEADLINE_S} s")


@dataclass
class _Fault:
    """Befalls the next `times` bodies that come to `offset` (None: all)."""

    offset: int
    times: int | None
    error: Exception | None
    """None: the byte is handed out wrong."""

    def strikes(self) -> bool:
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass(frozen=True)
class Thing:
    """One version of one file at the origin."""

    data: bytes
    version: int
    resumable: bool


@dataclass
class Books:
    """What the source did. Counters by path.

    Attributes:
        bytes: handed out.
        opened: bodies.
        spans: what each of them was asked for, in order, with the path.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[str, ByteRange]] = field(default_factory=list)
    listings: int = 0
    closes: int = 0


class MemorySource:
    """`Source` over a dict. Paths in the snapshot are the dict's names. Safe for many threads.

    Nothing is retried here, and nothing is retried by wrapping: what a test scripts is what the engine sees.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        endpoint: str = "memory://origin:1",
        state: State = state_nothing,
        resumable: bool = True,
        piece_bytes: int = MIB,
    ) -> None:
        """
        Args:
            state: the digests that listings state.
            resumable: whether the origin names versions; without, a file is one request.
            piece_bytes: most that one `readinto` hands out.
        """
        self.state = state
        self.piece_bytes = piece_bytes
        self.books = Books()
        self.on_list: Callable[[], None] = lambda: None
        self.on_open: Callable[[RemoteFile, ByteRange], None] = lambda file, span: None
        self._origin = Origin(endpoint)
        self._lock = threading.Lock()
        self._resumable = resumable
        self._gates: list[Gate] = []
        self._faults: dict[str, list[_Fault]] = {}
        self._bodies: set[MemoryBody] = set()
        self._versions = 0
        self._files: dict[str, Thing] = {}
        for path, data in files.items():
            self.put(path, data)

    # -- the script -------------------------------------------------------------------------------------------------

    def put(self, path: str, data: bytes, *, keep_version: bool = False, resumable: bool | None = None) -> None:
        """Replace a file, or add one. `keep_version`: as an origin does that breaks its own promises."""
        with self._lock:
            self._versions += 1
            before = self._files.get(path)
            version = before.version if keep_version and before is not None else self._versions
            self._files[path] = Thing(data, version, self._resumable if resumable is None else resumable)

    def remove(self, path: str) -> None:
        with self._lock:
            del self._files[path]

    def gate(self, path: str, offset: int = 0) -> Gate:
        """Hold up every read of the file that comes to this byte."""
        gate = Gate(path, offset)
        with self._lock:
            self._gates.append(gate)
        return gate

    def cut(self, path: str, offset: int, times: int | None = 1, error: Exception | None = None) -> None:
        """Break bodies before this byte, with `BodyCut` or another error."""
        broken = error if error is not None else BodyCut(f"`{path}` was cut before byte {offset}")
        self._faults.setdefault(path, []).append(_Fault(offset, times, broken))

    def spoil(self, path: str, offset: int, times: int | None = 1) -> None:
        """Hand this byte out wrong."""
        self._faults.setdefault(path, []).append(_Fault(offset, times, None))

    @property
    def open_bodies(self) -> int:
        """Bodies that nobody closed yet."""
        with self._lock:
            return len(self._bodies)

    # -- Source -----------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        return self._origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        cancel.check()
        with self._lock:
            self.books.listings += 1
        self.on_list()
        cancel.check()
        with self._lock:
            files = tuple(self._described(path) for path in sorted(self._files) if uri.selects(path))
        if not files:
            raise NotFound("nothing there", address=str(uri))
        return Listing(uri, self._origin, fingerprint(files), immutable=False, files=files)

    def _described(self, path: str) -> RemoteFile:
        thing = self._files[path]
        validator = f'"{thing.version}"' if thing.resumable else ""
        return RemoteFile(path, len(thing.data), f"/{path}", validator, self.state(thing.data))

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        cancel.check()
        if not file.resumable and span != ByteRange(0, file.size_bytes):
            raise AssertionError(f"`{file.path}` can't be resumed and was opened at {span}")
        self.on_open(file, span)
        cancel.check()
        with self._lock:
            self.check(file)
            self.books.opened[file.path] += 1
            self.books.spans.append((file.path, span))
            gates = [gate for gate in self._gates if gate.path == file.path and span.start <= gate.offset < span.stop]
            faults = [
                replace(fault) for fault in self._faults.get(file.path, ()) if span.start <= fault.offset < span.stop and fault.strikes()
            ]
            body = MemoryBody(self, file, span, (gates, faults), self._files[file.path].data)
            self._bodies.add(body)
            return body

    def close(self) -> None:
        with self._lock:
            self.books.closes += 1

    # -- for bodies -------------------------------------------------------------------------------------------------

    def check(self, file: RemoteFile) -> None:
        """Raises SourceChanged if the file is no longer the listed version."""
        thing = self._files.get(file.path)
        if thing is None or (file.validator and file.validator != f'"{thing.version}"'):
            raise SourceChanged(f"`{file.path}` was replaced", expected=file.validator, got=None if thing is None else f'"{thing.version}"')

    def handed_out(self, file: RemoteFile, count: int) -> None:
        with self._lock:
            self.books.bytes[file.path] += count

    def closed(self, body: MemoryBody) -> None:
        with self._lock:
            self._bodies.discard(body)


class MemoryBody:
    """The bytes of one range, up to its next gate or fault; a `modelcache.abc.source.Body`."""

    stated: tuple[Digest, ...] = ()

    def __init__(
        self, source: MemorySource, file: RemoteFile, span: ByteRange, script: tuple[Iterable[Gate], Iterable[_Fault]], data: bytes
    ) -> None:
        self._source = source
        self._file = file
        self._at = span.start
        self._stop = span.stop
        self._gates = list(script[0])
        self._faults = list(script[1])
        self._data = data
        self._broken = threading.Event()

    def readinto(self, buffer: memoryview) -> int:
        if self._at == self._stop:
            return 0
        for gate in [gate for gate in self._gates if gate.offset <= self._at]:
            gate.pass_through(self._broken)
            self._gates.remove(gate)
        if self._broken.is_set():
            raise Cancelled(f"`{self._file.path}` was broken off")
        self._source.check(self._file)
        cuts = [fault for fault in self._faults if fault.error is not None]
        for fault in cuts:
            if fault.offset == self._at and fault.error is not None:
                raise fault.error
        stops = [gate.offset for gate in self._gates] + [fault.offset for fault in cuts]
        stop = min([self._stop, self._at + min(len(buffer), self._source.piece_bytes), *(at for at in stops if at > self._at)])
        part = bytearray(self._data[self._at : stop])
        for fault in self._faults:
            if fault.error is None and self._at <= fault.offset < stop:
                part[fault.offset - self._at] ^= 0xFF
        buffer[: len(part)] = part
        self._at = stop
        self._source.handed_out(self._file, len(part))
        return len(part)

    def close(self) -> None:
        self._source.closed(self)

    def abort(self) -> None:
        self._broken.set()
        for gate in tuple(self._gates):
            gate.wake()
