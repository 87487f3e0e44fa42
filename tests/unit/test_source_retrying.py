"""Patience: what is tried again, how long, how often, and where a broken body goes on. No time passes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.abc.source import Body, Listing, Origin, RemoteFile
from modelcache.digest import Digest
from modelcache.errors import (
    AccessDenied,
    BodyCut,
    Cancelled,
    ModelCacheError,
    NotFound,
    OriginBusy,
    OriginStalled,
    OriginUnreachable,
    OriginUntrusted,
    ProtocolViolation,
    SourceChanged,
)
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.retrying import Pace, RetryingSource, RetryLimits
from modelcache.uri import StorageUri, parse_uri

DATA = bytes(at % 251 for at in range(10_000))
FILE = RemoteFile("f", len(DATA), "f", "v1")
URI = parse_uri("https://h/f")[0]
LIMITS = RetryLimits(deadline_s=100.0, attempts=4, base_s=1.0, cap_s=5.0)
WHOLE = ByteRange(0, len(DATA))


@dataclass
class Clock:
    """Time that passes only in pauses."""

    now: float = 0.0
    jitter: float = 0.5
    pauses: list[float] = field(default_factory=list)

    def pace(self) -> Pace:
        return Pace(lambda: self.now, self.pause, lambda: self.jitter)

    def pause(self, cancel: Cancellation, seconds: float) -> None:
        cancel.check()
        self.pauses.append(seconds)
        self.now += seconds


@dataclass
class Watching(Clock):
    """Writes down what a holder of the caller's cancellation sees in each pause."""

    caller: Cancellation = field(default_factory=Cancellation)
    seen: list[list[str]] = field(default_factory=list)

    def pause(self, cancel: Cancellation, seconds: float) -> None:
        self.seen.append([f"{wait.why} {wait.until.remaining_s() > seconds - 60}" for wait in self.caller.waits])
        super().pause(cancel, seconds)


@dataclass
class Flaky:
    """A source that fails as its script says: an error in place of a list or an open, or a body that ends with one.

    A step is `None` (all goes well), an error (raised at once), or `(count, error)`: the body hands out `count` bytes, then raises.
    """

    steps: list[ModelCacheError | tuple[int, ModelCacheError] | None]
    opened: list[ByteRange] = field(default_factory=list)
    bodies: list[FlakyBody] = field(default_factory=list)
    lists: int = 0

    @property
    def origin(self) -> Origin:
        return Origin("https://h:443")

    def list(self, uri: StorageUri, cancel: Cancellation) -> Listing:
        self.lists += 1
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, ModelCacheError):
            raise step
        return Listing(uri, self.origin, "v1", immutable=False, files=(FILE,))

    def open(self, file: RemoteFile, span: ByteRange, cancel: Cancellation) -> Body:
        self.opened.append(span)
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, ModelCacheError):
            raise step
        body = FlakyBody(span, *(step or (span.size_bytes, None)))
        self.bodies.append(body)
        return body

    def close(self) -> None:
        self.steps = []


@dataclass
class FlakyBody:
    span: ByteRange
    left: int
    error: ModelCacheError | None
    at: int = -1
    closed: bool = False
    aborted: bool = False
    stated: tuple[Digest, ...] = ()

    def readinto(self, buffer: memoryview) -> int:
        self.at = max(self.at, self.span.start)
        count = min(len(buffer), self.left, self.span.stop - self.at, 700)
        if count == 0 and self.error is not None and self.at < self.span.stop:
            raise self.error
        buffer[:count] = DATA[self.at : self.at + count]
        self.at += count
        self.left -= count
        return count

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def retrying(source: Flaky, clock: Clock, on_throttle: Callable[[Origin], None] | None = None) -> RetryingSource:
    return RetryingSource(source, LIMITS, on_throttle=on_throttle, pace=clock.pace())


def read(source: RetryingSource, file: RemoteFile = FILE, span: ByteRange = WHOLE) -> bytes:
    body = source.open(file, span, Cancellation())
    received = b""
    buffer = memoryview(bytearray(1000))
    while count := body.readinto(buffer):
        received += bytes(buffer[:count])
    body.close()
    return received


PASSING = [OriginBusy("x"), OriginStalled("x"), BodyCut("x"), OriginUnreachable("x")]
FINAL = [AccessDenied("x"), NotFound("x"), SourceChanged("x"), ProtocolViolation("x"), OriginUntrusted("x"), Cancelled("x")]


@pytest.mark.parametrize("error", PASSING)
def test_what_passes_is_tried_again(error: ModelCacheError) -> None:
    clock = Clock()
    assert retrying(Flaky([error, error, error]), clock).list(URI, Cancellation()).files == (FILE,)
    assert clock.pauses == [1.0, 2.0, 2.5]  # half of 2, 4, and the cap of 5
    source = Flaky([error, (3_000, error), error, (1, error)])
    assert read(retrying(source, Clock())) == DATA
    assert [span.start for span in source.opened] == [0, 0, 3_000, 3_000, 3_001]
    assert all(body.closed for body in source.bodies)


@pytest.mark.parametrize("error", FINAL)
def test_what_does_not_pass_is_raised_at_once(error: ModelCacheError) -> None:
    clock = Clock()
    for source in (Flaky([error]), Flaky([(5, error)])):
        with pytest.raises(type(error)) as caught:
            read(retrying(source, clock))
        assert caught.value is error
    source = Flaky([error])
    with pytest.raises(type(error)):
        retrying(source, clock).list(URI, Cancellation())
    assert (source.lists, clock.pauses) == (1, [])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("s3://b/m/*.safetensors", "s3://b/m#include=*.safetensors"),
        ("s3://b/*/w.[bs]in", "s3://b#include=*/w.[bs]in"),
        ("gs://b/m/model-?.bin?", "gs://b/m#include=model-?.bin"),
        ("hf://o/m:v1/sub/*.json", "hf://o/m:v1/sub#include=*.json"),
        ("file:///srv/m/[0-9]/w", "file:///srv/m#include=[0-9]/w"),
        ("file:///*.bin", "file:///#include=*.bin"),
        ("az://c/*.bin", "az://c#include=*.bin"),
    ],
)
def test_a_pattern_in_the_place_of_a_name_is_told_where_it_belongs(asked: str, meant: str) -> None:
    with pytest.raises(NotFound) as caught:
        retrying(Flaky([NotFound("x")]), Clock()).list(parse_uri(asked)[0], Cancellation())
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f" {meant}")
    assert str(parse_uri(meant)[0]) == meant


@pytest.mark.parametrize(("asked", "said"), [("https://host/m/*.bin", "each file by itself"), ("s3://b/m[1", "spelling")])
def test_what_no_pattern_can_select_is_not_said_to_be_one(asked: str, said: str) -> None:
    with pytest.raises(NotFound) as caught:
        retrying(Flaky([NotFound("x")]), Clock()).list(parse_uri(asked)[0], Cancellation())
    assert said in (caught.value.hint or "")


@given(cuts=st.lists(st.integers(1, 3_000), max_size=12), start=st.integers(0, 4_999), size=st.integers(1, 5_000))
def test_a_body_that_breaks_anywhere_is_whole_in_the_end(cuts: list[int], start: int, size: int) -> None:
    source = Flaky([(cut, BodyCut("x")) for cut in cuts])
    assert read(retrying(source, Clock()), span=ByteRange(start, start + size)) == DATA[start : start + size]


def test_attempts_without_progress_are_bounded() -> None:
    clock = Clock()
    source = Flaky([OriginUnreachable(str(number)) for number in range(9)])
    with pytest.raises(OriginUnreachable) as caught:
        read(retrying(source, clock))
    assert (str(caught.value), len(source.opened), len(clock.pauses)) == ("3", LIMITS.attempts, LIMITS.attempts - 1)


def test_a_listing_that_never_connects_is_given_up_sooner() -> None:
    limits = RetryLimits(attempts=9, first_contact_attempts=3)
    for error, tries in ((OriginUnreachable("x"), 3), (OriginBusy("x"), 9)):
        source = Flaky([error] * 20)
        with pytest.raises(type(error)):
            RetryingSource(source, limits, pace=Clock().pace()).list(URI, Cancellation())
        assert source.lists == tries


def test_the_time_without_progress_is_bounded() -> None:
    clock = Clock(jitter=1.0)
    source = RetryingSource(Flaky([OriginBusy("x", retry_after_s=60.0)] * 9), LIMITS, pace=clock.pace())
    with pytest.raises(OriginBusy):
        read(source)
    assert clock.pauses == [60.0]


def test_every_byte_starts_the_count_anew() -> None:
    steps = [step for _ in range(20) for step in (OriginBusy("x"), OriginBusy("x", retry_after_s=90.0), (10, BodyCut("x")))]
    clock = Clock()
    assert read(retrying(Flaky([(1, BodyCut("x")), *steps]), clock)) == DATA
    assert clock.now > 10 * LIMITS.deadline_s


def test_no_pause_is_shorter_than_asked_nor_begun_beyond_the_deadline() -> None:
    clock = Clock(jitter=0.0)
    retrying(Flaky([OriginBusy("x", retry_after_s=7.0)]), clock).list(URI, Cancellation())
    assert clock.pauses == [7.0]
    with pytest.raises(OriginBusy) as caught:
        retrying(Flaky([OriginBusy("x", retry_after_s=101.0)]), clock).list(URI, Cancellation())
    assert caught.value.retry_after_s == 101.0
    assert clock.pauses == [7.0]


def test_throttling_is_told_and_other_failures_are_not() -> None:
    told: list[tuple[int, str]] = []
    source = Flaky([OriginBusy("x"), BodyCut("x"), (5, OriginBusy("x"))])
    read(retrying(source, Clock(), lambda origin: told.append((len(source.opened), str(origin)))))
    assert told == [(1, "https://h:443"), (3, "https://h:443")]


@pytest.mark.parametrize("change", [{"validator": ""}, {"ranged": False}])
def test_a_file_that_is_read_in_one_request_is_never_resumed(change: dict[str, str | bool]) -> None:
    file = replace(FILE, **change)  # type: ignore[arg-type]
    source = Flaky([OriginBusy("x"), (5, BodyCut("x"))])
    with pytest.raises(BodyCut):
        read(retrying(source, Clock()), file)
    assert source.opened == [WHOLE, WHOLE]


def test_another_version_found_while_resuming_is_no_mixture() -> None:
    body = retrying(Flaky([(5, BodyCut("x")), SourceChanged("x")]), Clock()).open(FILE, WHOLE, Cancellation())
    buffer = memoryview(bytearray(1000))
    assert body.readinto(buffer) == 5
    with pytest.raises(SourceChanged):
        body.readinto(buffer)
    body.close()


@pytest.mark.parametrize("by", ["abort", "cancel"])
def test_a_pause_between_two_tries_is_broken_from_another_thread(by: str) -> None:
    pausing = threading.Event()

    def pause(cancel: Cancellation, seconds: float) -> None:
        pausing.set()
        cancel.wait(60)

    source = RetryingSource(Flaky([(5, BodyCut("x"))]), LIMITS, pace=Pace(pause=pause))
    cancel = Cancellation()
    body = source.open(FILE, WHOLE, cancel)
    body.readinto(memoryview(bytearray(1000)))
    raised: list[Exception] = []

    def run() -> None:
        try:
            body.readinto(memoryview(bytearray(1000)))
        except ModelCacheError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert pausing.wait(30)
    body.abort() if by == "abort" else cancel.cancel()
    thread.join(30)
    assert [type(error) for error in raised] == [Cancelled]
    body.close()


def test_an_abort_reaches_the_body_in_hand() -> None:
    source = Flaky([(5, BodyCut("x"))])
    cancel = Cancellation()
    body = retrying(source, Clock()).open(FILE, WHOLE, cancel)
    for _ in range(2):
        body.readinto(memoryview(bytearray(1000)))
    body.abort()
    assert source.bodies[-1].aborted
    body.close()
    cancel.cancel()


def test_a_cancelled_call_is_not_tried_again() -> None:
    cancel = Cancellation()
    cancel.cancel()
    source = Flaky([OriginBusy("x")])
    with pytest.raises(Cancelled):
        retrying(source, Clock()).list(URI, cancel)
    assert source.lists == 1


def test_origin_and_close_are_the_sources_own() -> None:
    source = Flaky([OriginBusy("x")])
    wrapped = retrying(source, Clock())
    assert wrapped.origin == source.origin
    wrapped.close()
    assert source.steps == []


def test_whoever_asked_sees_why_it_waits_and_for_how_long_and_then_no_more() -> None:
    busy = OriginBusy("the origin is busy (503)", retry_after_s=90.0)
    source = Flaky([busy, None, busy, (100, BodyCut("cut")), busy, None])
    clock = Watching(jitter=1.0)
    patient = RetryingSource(source, LIMITS, pace=clock.pace())

    patient.list(URI, clock.caller)
    body = patient.open(FILE, WHOLE, clock.caller)
    buffer = memoryview(bytearray(len(DATA)))
    while body.readinto(buffer):
        pass
    body.close()

    assert clock.seen == [["the origin is busy (503) True"]] * 2 + [["cut True"], ["the origin is busy (503) True"]]
    assert clock.caller.waits == []
