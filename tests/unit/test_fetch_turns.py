"""Who goes first: priorities, turns, and origins that throttle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from modelcache.abc.ingest import Route
from modelcache.abc.source import RemoteFile
from modelcache.fetch import underway
from modelcache.fetch.concurrency import ConcurrencyBounds
from modelcache.fetch.engine import EngineLimits, FetchEngine
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import SPAN_CHUNKS, Priority
from modelcache.fetch.underway import Underway
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, finish, request_for, running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.polling import until
from modelcache.testing.store_filling import content

pytestmark = pytest.mark.usefixtures("chunk_bytes")


def opens_of(*sources: MemorySource) -> list[str]:
    """Endpoints in the order in which bodies were opened."""
    order: list[str] = []

    def writing(name: str) -> Callable[[RemoteFile, ByteRange], None]:
        return lambda file, span: order.append(name)

    for source in sources:
        source.on_open = writing(source.origin.endpoint)
    return order


@pytest.mark.parametrize("requests", [1, 3])
def test_who_waits_has_the_bandwidth_after_one_chunk(requests: int) -> None:
    prewarmed = MemorySource({"a": content(60 * CHUNK, 1)})
    awaited = MemorySource({"b": content(60 * CHUNK, 2)})
    store = MemoryStore()
    with running_engine(requests) as engine:
        gates = [prewarmed.gate("a", chunk * CHUNK) for chunk in (3, 18, 26)[:requests]]
        early = engine.start(request_for(store, prewarmed, "early", priority=Priority.PREWARM))
        for gate in gates:
            gate.await_readers()
        before = sum(prewarmed.books.bytes.values())
        late_gates = [awaited.gate("b", chunk * CHUNK) for chunk in (0, 16, 24)[:requests]]
        late = engine.start(request_for(store, awaited, "late", priority=Priority.WAITING))
        opened_again: list[bool] = []

        def on_open(file: RemoteFile, span: ByteRange) -> None:
            opened_again.append(late.left)

        prewarmed.on_open = on_open
        for gate in gates:
            gate.open()
        for gate in late_gates:
            gate.await_readers()  # every worker has come over
        assert sum(prewarmed.books.bytes.values()) - before == requests * CHUNK  # having finished the chunk it was at
        for gate in late_gates:
            gate.open()
        finish(late)
        finish(early)
    assert opened_again
    assert not any(opened_again)  # only when nothing waited for the pod any more
    assert prewarmed.books.bytes["a"] == 60 * CHUNK  # and what it left was given back, not fetched again


def test_who_waits_at_an_origin_that_hangs_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last request brings nothing: others go on with long requests and don't leave theirs after each chunk."""
    monkeypatch.setattr(underway, "MOVING_S", 0.0)
    store, prewarmed, awaited = MemoryStore(), MemorySource({"a": content(64 * CHUNK, 1)}), MemorySource({"b": content(CHUNK, 2)})
    gate = awaited.gate("b")
    with running_engine(2) as engine:
        late = engine.start(request_for(store, awaited, "late", priority=Priority.WAITING))
        gate.await_readers()
        finish(engine.start(request_for(store, prewarmed, "early", priority=Priority.PREWARM)))
        assert prewarmed.books.opened["a"] == 4
        gate.open()
        finish(late)


@pytest.mark.parametrize("one_line", [False, True])
def test_who_waits_and_has_asked_for_all_of_it_has_the_bandwidth_alone(monkeypatch: pytest.MonkeyPatch, one_line: bool) -> None:
    """Its one request moves: all others would take most of a line's bytes from it."""
    monkeypatch.setattr(underway, "MOVING_S", 60.0)
    store, prewarmed = MemoryStore(), MemorySource({"a": content(64 * CHUNK, 1)})
    awaited = MemorySource({"b": content(2 * CHUNK, 2)}, endpoint="memory://another:1" if one_line else "memory://origin:1")
    ahead = [prewarmed.gate("a", chunk * CHUNK) for chunk in (3, 18, 26)]
    gate = awaited.gate("b", CHUNK)
    with running_engine(3) as engine:
        engine.one_line = lambda: one_line
        early = engine.start(request_for(store, prewarmed, "early", priority=Priority.PREWARM))
        for each in ahead:
            each.await_readers()
        late = engine.start(request_for(store, awaited, "late", priority=Priority.WAITING))
        for each in ahead:
            each.open()
        gate.await_readers()
        until(lambda: early.active == 0, "the others to leave their requests")
        assert (late.left, early.ended) == (False, False)
        gate.open()
        finish(late)
        finish(early)
    assert prewarmed.books.bytes["a"] == 64 * CHUNK


def test_fetches_of_one_priority_take_turns() -> None:
    sources = [MemorySource({"a": content(64 * CHUNK, number)}, endpoint=str(number)) for number in range(3)]
    store = MemoryStore()
    order = opens_of(*sources)
    gate = sources[0].gate("a")
    with running_engine(1) as engine:
        fetches = [engine.start(request_for(store, sources[0], "0"))]
        gate.await_readers()
        fetches += [engine.start(request_for(store, source, str(number))) for number, source in enumerate(sources) if number]
        gate.open()
        for fetch in fetches:
            finish(fetch)
    assert "".join(order) == "012012012012"


def test_an_origin_that_throttles_has_fewer_requests_at_once() -> None:
    files = {"a": content(200 * CHUNK)}
    store, source = MemoryStore(), MemorySource(files)
    gates = [source.gate("a", chunk * CHUNK) for chunk in (0, 16, 24, 29)]
    most = [0]

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        most[0] = max(most[0], source.open_bodies + 1)

    engine = FetchEngine(EngineLimits(ConcurrencyBounds(4, 1, 4), spare_buffers=4))
    try:
        request = request_for(store, source)
        fetch = engine.start(request)
        for gate in gates:
            gate.await_readers()
        engine.throttled(source.origin)
        assert engine.requests_limit(source.origin) == 2
        source.on_open = on_open
        for gate in gates:
            gate.open()
        finish(fetch)
    finally:
        engine.close()
    check_filled(store, request, files)
    assert most[0] <= 2


def test_an_origin_that_throttles_slows_nobody_else() -> None:
    """Its own requests go down to one; the other origin still has as many as it may, at once."""
    store = MemoryStore()
    slow, quick = (MemorySource({"a": content(200 * CHUNK, number)}, endpoint=f"memory://origin-{number}:1") for number in range(2))
    offsets = [chunk * CHUNK for chunk in (0, 16, 24, 29)]
    engine = FetchEngine(EngineLimits(ConcurrencyBounds(4, 1, 8), spare_buffers=4))
    try:
        for now_s in (0.0, 10.0):
            engine._concurrency.throttled(str(slow.origin), now_s)
        held = slow.gate("a", 0)
        gates = [quick.gate("a", offset) for offset in offsets]
        fetches = [engine.start(request_for(store, source, str(number))) for number, source in enumerate((slow, quick))]
        held.await_readers()
        for gate in gates:
            gate.await_readers()  # four at once: none of them waits for the other origin's turn
        assert (engine.requests_limit(slow.origin), slow.open_bodies) == (1, 1)
        for gate in (held, *gates):
            gate.open()
        for fetch in fetches:
            finish(fetch)
    finally:
        engine.close()


def test_a_request_is_not_left_for_a_fetch_whose_own_origin_lets_it_have_no_more() -> None:
    """Else a prewarming worker would give its connection up at every chunk, and take it again."""
    store = MemoryStore()
    prewarmed = MemorySource({"a": content(40 * CHUNK, 1)}, endpoint="memory://prewarmed:1")
    waited = MemorySource({"a": content(40 * CHUNK, 2)}, endpoint="memory://waited:1")
    held = waited.gate("a", 0)
    engine = FetchEngine(EngineLimits(ConcurrencyBounds(1, 1, 2), spare_buffers=2))
    try:
        first = engine.start(request_for(store, waited, "waited"))
        held.await_readers()
        finish(engine.start(request_for(store, prewarmed, "prewarmed", priority=Priority.PREWARM)))
        assert prewarmed.books.opened["a"] <= 1 + 40 // SPAN_CHUNKS + 1
        held.open()
        finish(first)
    finally:
        engine.close()


def test_a_hurried_fetch_goes_before_those_it_was_equal_to() -> None:
    slow, hurried = (MemorySource({"a": content(64 * CHUNK, number)}, endpoint=f"origin-{number}") for number in range(2))
    store = MemoryStore()
    order = opens_of(slow, hurried)
    gate = slow.gate("a", CHUNK)
    with running_engine(1) as engine:
        first = engine.start(request_for(store, slow, "0", priority=Priority.PREWARM))
        gate.await_readers()
        second = engine.start(request_for(store, hurried, "1", priority=Priority.PREWARM))
        engine.hurry(second, Priority.WAITING)
        gate.open()
        finish(second)
        finish(first)
    assert order[:5] == ["origin-0", *["origin-1"] * 4]


@pytest.mark.parametrize("damaged", [False, True], ids=["", "damaged"])
@pytest.mark.parametrize("endpoint", ["memory://origin:1", "memory://another:1"], ids=["one origin", "two"])
def test_who_goes_behind_leaves_in_the_middle_of_a_chunk_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, damaged: bool
) -> None:
    """However slow the line. What came of the chunk is not fetched again, unless the disk gives other bytes than came."""
    monkeypatch.setattr(underway, "GRACE_S", 0.0)
    monkeypatch.setattr(underway, "MOVING_S", 60.0)
    files = {"a": content(40 * CHUNK, 1)}
    prewarmed = MemorySource(files, piece_bytes=CHUNK // 4)
    awaited = MemorySource({"b": content(60 * CHUNK, 2)}, endpoint=endpoint)
    store = MemoryStore()
    gates = [prewarmed.gate("a", chunk * CHUNK + CHUNK // 2) for chunk in (3, 18, 26)]
    with running_engine(3) as engine:
        request = request_for(store, prewarmed, "early", priority=Priority.PREWARM)
        early = engine.start(request)
        for gate in gates:
            gate.await_readers()
        late_gates = [awaited.gate("b", chunk * CHUNK) for chunk in (0, 16, 24)]
        late = engine.start(request_for(store, awaited, "late"))
        waiting = threading.Thread(target=finish, args=(late,))
        waiting.start()
        for gate in late_gates:
            gate.await_readers()  # every worker has come over
        if damaged:
            request.ingest.files[0].write(18 * CHUNK, memoryview(b"other bytes"), Route.BUFFERED)
        for gate in (*gates, *late_gates):
            gate.open()
        finish(early)
        waiting.join()
    check_filled(store, request, files)
    assert prewarmed.books.bytes["a"] == 40 * CHUNK + damaged * CHUNK // 2
    assert early.look().bytes_done == 40 * CHUNK


def test_who_goes_behind_with_a_file_that_can_t_be_resumed_takes_nothing_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on with the same answer."""
    monkeypatch.setattr(underway, "MOVING_S", 60.0)
    files = {"a": content(8 * CHUNK, 1)}
    prewarmed = MemorySource(files, piece_bytes=CHUNK // 4, resumable=False)
    awaited = MemorySource({"b": content(4 * CHUNK, 2)})
    store, gate, late_gate = MemoryStore(), prewarmed.gate("a", CHUNK + CHUNK // 2), awaited.gate("b", CHUNK)
    with running_engine(2) as engine:
        request = request_for(store, prewarmed, "early", priority=Priority.PREWARM)
        early = engine.start(request)
        gate.await_readers()
        late = engine.start(request_for(store, awaited, "late"))
        waiting = threading.Thread(target=finish, args=(late,))
        waiting.start()
        late_gate.await_readers()
        until(lambda: all(run.outranked_s is not None for run in engine._underway._runs if run.fetch is early), "it to be seen")
        held, ask = threading.Event(), engine.overtaken

        def overtaken(fetch: Fetch) -> bool:
            if ask(fetch):
                held.set()
                return True
            return False

        monkeypatch.setattr(engine, "overtaken", overtaken)
        gate.open()
        assert held.wait(30)
        assert prewarmed.books.bytes["a"] <= CHUNK + CHUNK // 2 + CHUNK // 4  # what it had begun to read
        late_gate.open()
        finish(early)
        waiting.join()
    check_filled(store, request, files)
    assert (prewarmed.books.opened["a"], prewarmed.books.bytes["a"]) == (1, 8 * CHUNK)


def test_who_goes_behind_may_end_a_chunk_that_does_not_take_long() -> None:
    runs = Underway()
    fetch, run = Mock(priority=Priority.WAITING, origin="o"), _run(Priority.PREWARM)
    runs.began(run)
    for at_s, wherever in ((7.0, False), (7.0 + underway.GRACE_S / 2, True)):
        assert runs.behind(fetch, at_s, wherever=wherever) == []
    assert runs.behind(fetch, 7.0 + 2 * underway.GRACE_S, wherever=False) == [run]
    run.outranked_s = None  # it is at its next chunk
    assert runs.behind(fetch, 7.0 + underway.GRACE_S, wherever=False) == []
    assert runs.behind(Mock(priority=Priority.WAITING, origin="p"), 7.0 + 9 * underway.GRACE_S, wherever=False) == []
    assert runs.behind(Mock(priority=Priority.PREWARM, origin="o"), 7.0 + 9 * underway.GRACE_S, wherever=True) == []


def _run(priority: Priority) -> Mock:
    fetch = Mock(priority=priority, origin="o")
    return Mock(fetch=fetch, left=False, is_check=False, starts_over=False, since_s=100.0, outranked_s=None)


@pytest.mark.parametrize("resumable", [True, False], ids=["resumable", "whole"])
@pytest.mark.parametrize("rank", [Priority.PREWARM, Priority.WAITING])
def test_a_request_that_gets_nowhere_is_given_up_for_who_has_none(monkeypatch: pytest.MonkeyPatch, rank: Priority, resumable: bool) -> None:
    """All requests are in the middle of a chunk, at origins that go on with it whenever they like; nobody but who waits ends that."""
    crowds = not resumable or rank is Priority.WAITING
    monkeypatch.setattr(underway, "CROWD_PATIENCE_S" if crowds else "GRACE_S", 0.0)
    stuck = MemorySource({"a": content(8 * CHUNK, 1)}, endpoint="memory://stuck:1", resumable=resumable, piece_bytes=CHUNK // 4)
    awaited = MemorySource({"b": content(12 * CHUNK, 2)}, endpoint="memory://awaited:1")
    gate = stuck.gate("a", 3 * CHUNK + CHUNK // 2)
    store = MemoryStore()
    with running_engine(1) as engine:
        request = request_for(store, stuck, "early", priority=rank)
        early = engine.start(request)
        gate.await_readers()
        finish(engine.start(request_for(store, awaited, "late")))
        assert not early.ended
        gate.open()
        finish(early)
    check_filled(store, request, {"a": content(8 * CHUNK, 1)})
    lost = 3.5 if not resumable else 0
    assert stuck.books.bytes["a"] == (8 + lost) * CHUNK


@pytest.mark.parametrize(("ours", "theirs"), [(Priority.PREWARM, Priority.WAITING), (Priority.WAITING, Priority.WAITING)])
def test_a_request_is_not_given_up_early_nor_for_who_goes_behind(ours: Priority, theirs: Priority) -> None:
    engine = Underway()
    fetch = Mock(priority=ours)
    run = _run(theirs)
    engine.began(run)
    assert engine.give_up(fetch, None, 100.0 + underway.CROWD_PATIENCE_S - 1) is None
    later = engine.give_up(fetch, None, 100.0 + underway.CROWD_PATIENCE_S)
    assert (later is run) is (ours == theirs)
    assert engine.give_up(fetch, None, 100.0 + 2 * underway.CROWD_PATIENCE_S - 1) is None  # of a crowd, one at a time
