"""A source around which everything fails that passes, once each and by a schedule: for tests of what stands above a source."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from modelcache.abc.source import Body, Listing, Origin, RemoteFile, Source
from modelcache.digest import Digest
from modelcache.errors import BodyCut, OriginBusy, OriginStalled, OriginUnreachable, Unavailable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.uri import StorageUri


class Fault(StrEnum):
    """What befalls a call; the value is what its error says."""

    LISTING_BUSY = "the listing was told to slow down"
    BUSY = "the request was told to slow down"
    UNREACHABLE = "the connection was reset before an answer"
    CUT = "the body was cut short"
    STALLED = "the body stalled"


_ERRORS: dict[Fault, type[Unavailable]] = {
    Fault.LISTING_BUSY: OriginBusy,
    Fault.BUSY: OriginBusy,
    Fault.UNREACHABLE: OriginUnreachable,
    Fault.CUT: BodyCut,
    Fault.STALLED: OriginStalled,
}
AT_OPEN = (Fault.BUSY, Fault.UNREACHABLE)
MIDWAY = (Fault.CUT, Fault.STALLED)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is still to befall the bytes of one range: first all that do at its opening, then the others, each before a byte."""

    at_open: tuple[Fault, ...]
    midway: tuple[tuple[int, Fault], ...]


@dataclass
class FaultBooks:
    """What befell, and what came through nevertheless.

    Attributes:
        struck: faults, by kind.
        bytes: handed out, by path.
        again: of those, by path, what is to be handed out once more: a body broke whose file can't be resumed.
        open_bodies: that nobody closed yet.
    """

    struck: Counter[Fault] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    open_bodies: int = 0


class FaultySource:
    """Any source, with every listing busy once and every range failing in each way once: twice as it is opened, and at two bytes.

    What fails is tried again by somebody above, or their call fails. A range that is asked for again from the byte where it broke
    has the rest of its faults before it; one that is asked for from anywhere else has all of them. The bytes are drawn from the
    seed, the file's path, the range, and how often that was asked for: neither time nor the order of threads changes them.
    Safe for many threads.

    Attributes:
        books: of all that was asked here.
    """

    def __init__(
        self, source: Source, seed: int, *, breaks_whole: bool = False, on_first_break: Callable[[], object] = lambda: None
    ) -> None:
        """
        Args:
            breaks_whole: bodies of files that are not `resumable` break midway, too: nobody but the fetch engine starts those over.
            on_first_break: called once, in the reading thread, when the first body breaks: to spoil a credential, say.
        """
        self.inner = source
        self.books = FaultBooks()
        self._seed = seed
        self._breaks_whole = breaks_whole
        self._on_first_break = on_first_break
        self._unbroken = True
        self._lock = threading.Lock()
        self._refused: set[str] = set()
        self._asked: Counter[tuple[str, ByteRange]] = Counter()
        self._owed: dict[tuple[str, str, ByteRange], list[_Plan]] = {}

    @property
    def origin(self) -> Origin:
        return self.inner.origin

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        """As `Source.list`, every second time for a URI."""
        cancel.check()
        with self._lock:
            if str(uri) not in self._refused:
                self._refused.add(str(uri))
                raise self._strike(Fault.LISTING_BUSY, str(uri))
            self._refused.remove(str(uri))
        return self.inner.list(uri, cancel)

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        """As `Source.open`, after its faults."""
        cancel.check()
        with self._lock:
            plan = self._plan(file, span)
            if plan.at_open:
                self._owe(file, span, _Plan(plan.at_open[1:], plan.midway))
                raise self._strike(plan.at_open[0], file.path)
        body = self.inner.open(file, span, cancel)
        with self._lock:
            self.books.open_bodies += 1
        return _FaultyBody(self, body, (file, span), plan.midway)

    def close(self) -> None:
        """As `Source.close`."""
        self.inner.close()

    def _plan(self, file: RemoteFile, span: ByteRange) -> _Plan:
        owed = self._owed.get((file.locator, file.validator, span))
        if owed:
            return owed.pop()
        self._asked[file.path, span] += 1
        draw = random.Random(f"{self._seed} {file.path} {span.start} {span.stop} {self._asked[file.path, span]}")
        at_open = draw.sample(AT_OPEN, len(AT_OPEN))
        if not (file.resumable or self._breaks_whole):
            return _Plan(tuple(at_open), ())
        offsets = sorted(draw.randint(span.start, span.stop) for _ in MIDWAY)
        return _Plan(tuple(at_open), tuple(zip(offsets, draw.sample(MIDWAY, len(MIDWAY)), strict=True)))

    def _owe(self, file: RemoteFile, span: ByteRange, plan: _Plan) -> None:
        self._owed.setdefault((file.locator, file.validator, span), []).append(plan)

    def _strike(self, fault: Fault, address: str) -> Unavailable:
        self.books.struck[fault] += 1
        return _ERRORS[fault](fault.value, address=address)

    # -- for bodies -------------------------------------------------------------------------------------------------------

    def broke(self, file: RemoteFile, rest: ByteRange | None, at: int, faults: Sequence[tuple[int, Fault]]) -> Unavailable:
        """A body broke before byte `at` by the first of `faults`; `rest` (None: nothing) is to be asked for again, and has the others.
        The error to raise."""
        with self._lock:
            first, self._unbroken = self._unbroken, False
            if rest is not None:
                self._owe(file, rest, _Plan((), tuple(faults[1:])))
                self.books.again[file.path] += at - rest.start
            error = self._strike(faults[0][1], file.path)
        if first:
            self._on_first_break()
        return error

    def handed_out(self, file: RemoteFile, count: int) -> None:
        with self._lock:
            self.books.bytes[file.path] += count

    def closed(self) -> None:
        with self._lock:
            self.books.open_bodies -= 1


class _FaultyBody:
    """The bytes of one range up to the first fault of its plan; one that comes after the last byte lets the end be asked for again."""

    def __init__(
        self, source: FaultySource, body: Body, asked: tuple[RemoteFile, ByteRange], faults: tuple[tuple[int, Fault], ...]
    ) -> None:
        self._source = source
        self._body = body
        self._file, self._span = asked
        self._at = self._span.start
        self._faults = faults
        self._broken = False
        self._closed = False

    @property
    def stated(self) -> tuple[Digest, ...]:
        return self._body.stated

    def readinto(self, buffer: memoryview) -> int:
        if self._broken:
            raise AssertionError(f"a body of `{self._file.path}` is read on after it broke")
        if self._faults:
            offset, _ = self._faults[0]
            if offset == self._at:
                raise self._breaks()
            buffer = buffer[: offset - self._at]
        count = self._body.readinto(buffer)
        self._at += count
        self._source.handed_out(self._file, count)
        return count

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._source.closed()
        self._body.close()

    def abort(self) -> None:
        self._body.abort()

    def _breaks(self) -> Unavailable:
        faults, self._faults = self._faults, self._faults[1:]
        if self._at == self._span.stop:
            return self._source.broke(self._file, None, self._at, faults)
        self._broken = True
        rest = ByteRange(self._at, self._span.stop) if self._file.resumable else self._span
        return self._source.broke(self._file, rest, self._at, faults)
