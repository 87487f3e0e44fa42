"""What a caller of a shared store gets, and on what proof: over a store and origins that are dicts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from modelcache.abc.store import Limits
from modelcache.ensure import Ensure, Ensured, last
from modelcache.errors import AccessDenied, AccessUnproved, BodyCut, Cancelled
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import in_background, running_engine
from modelcache.testing.guarded_source import GuardedSource
from modelcache.testing.memory_source import MemorySource, state_sha256
from modelcache.testing.store_filling import content
from tests.unit.permission.yards import MODEL, READABLE, WEIGHTS, Yard, everything, nothing


@pytest.mark.parametrize("here", [False, True])
def test_who_may_only_list_gets_nothing_whether_the_bytes_are_here_or_not(
    yard: Yard, reader: GuardedSource, lister: GuardedSource, here: bool
) -> None:
    if here:
        yard.ensure("a/reader", reader)
    with pytest.raises(AccessDenied):
        yard.ensure("b/lister", lister)
    assert yard.granted("b/lister") == 0
    assert yard.granted("a/reader") == here
    with pytest.raises(AccessUnproved):
        last(yard.store, yard.admission("b/lister", lister), 0.0)


def test_one_object_that_may_not_be_read_is_enough(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    partly = GuardedSource(origin, lambda path: path != "config.json")
    with pytest.raises(AccessDenied):
        yard.ensure("b/partly", partly)
    assert yard.granted("b/partly") == 0


def test_what_is_here_costs_one_byte_of_each_object_and_then_nothing(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    yard.ensure("a/reader", reader)
    for who in ("a/other", "b/reader"):
        view = GuardedSource(origin, everything)
        found = yard.ensure(who, view)
        assert yard.content(found) == MODEL
        assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]
        assert yard.granted(who) == 1
        view.opened.clear()
        yard.ensure(who, view)
        assert view.opened == []
        yard.ensure(who, view, again=True)
        assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]


def test_a_fetch_is_its_own_proof(yard: Yard, reader: GuardedSource) -> None:
    assert yard.content(yard.ensure("a/reader", reader)) == MODEL
    assert yard.granted("a/reader") == 1
    read = {path: sum(span.size_bytes for name, span in reader.opened if name == path) for path in READABLE}
    assert read == {path: len(MODEL[path]) for path in READABLE}


def test_a_file_without_versions_is_proved_by_its_first_byte(yard: Yard) -> None:
    origin = MemorySource({"a": content(2 * CHUNK, 1)}, resumable=False, state=state_sha256)
    yard.trust = replace(yard.trust, origins=(str(origin.origin),))
    yard.ensure("a/reader", GuardedSource(origin, everything))
    origin.piece_bytes, before = 1, origin.books.bytes["a"]
    view = GuardedSource(origin, everything)
    assert yard.ensure("b/reader", view).progress.hit
    assert view.opened == [("a", ByteRange(0, 2 * CHUNK))]
    assert origin.books.bytes["a"] - before == 1
    assert origin.open_bodies == 0


def test_what_was_interrupted_and_is_whole_by_now_is_proved_too(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """Another one's ingest is taken over: chunks that are here are not read again, and still have to be readable."""
    origin.cut("other.safetensors", 5 * CHUNK - 1)
    many = yard.engine
    with running_engine(1) as yard.engine, pytest.raises(BodyCut):
        yard.ensure("a/reader", reader)
    yard.engine = many
    with pytest.raises(AccessDenied):
        yard.ensure("b/partly", GuardedSource(origin, lambda path: path != WEIGHTS))
    before = origin.books.bytes.copy()
    view = GuardedSource(origin, everything)
    assert yard.content(yard.ensure("b/reader", view)) == MODEL
    assert {path: origin.books.bytes[path] - before[path] for path in ("config.json", WEIGHTS)} == {"config.json": 1, WEIGHTS: 1}


def test_who_joins_a_fetch_proves_what_it_brings(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    view, refused = GuardedSource(origin, everything), GuardedSource(origin, lambda path: path != WEIGHTS)
    outcome: list[Ensured] = []
    with in_background(lambda: yard.ensure("a/reader", reader)):
        gate.await_readers()
        with (
            in_background(lambda: outcome.append(yard.ensure("b/reader", view))),
            pytest.raises(AccessDenied),
            in_background(lambda: yard.ensure("c/refused", refused)),
        ):
            gate.open()
    assert yard.content(outcome[0]) == MODEL
    assert (WEIGHTS, ByteRange(0, 1)) in view.opened
    assert [yard.granted(who) for who in ("a/reader", "b/reader", "c/refused")] == [1, 1, 0]
    assert origin.books.bytes[WEIGHTS] <= len(MODEL[WEIGHTS]) + 2


def test_who_waits_for_another_s_fetch_of_the_same_books_nothing(yard: Yard, origin: MemorySource, reader: GuardedSource) -> None:
    """Room for one is enough; who waits has proved its right before, sees the progress, and lends its hurry."""
    yard.store.limits = Limits(sum(map(len, MODEL.values())) + CHUNK, 1.0, 1.0)
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    first, second = yard.prepare("a/reader", reader), yard.prepare("b/reader", view := GuardedSource(origin, everything))
    first._priority = Priority.PREWARM
    hurried = _hurried(first)
    outcomes: list[Ensured] = []
    with in_background(lambda: outcomes.append(first.run(Cancellation()))):
        gate.await_readers()
        with pytest.raises(AccessDenied):
            yard.ensure("c/refused", GuardedSource(origin, nothing))
        with in_background(lambda: outcomes.append(second.run(Cancellation()))):
            assert hurried.wait(20)
            assert first._priority is Priority.WAITING
            assert second.look().phase is Phase.FETCHING
            assert sorted(view.opened) == [(path, ByteRange(0, 1)) for path in READABLE]
            assert len(yard.store.shelf.open_ingests) == 1
            assert second.look().bytes_total == first.look().bytes_total
            gate.open()
    assert [yard.content(outcome) for outcome in outcomes] == [MODEL, MODEL]
    assert sum(origin.books.bytes.values()) == sum(map(len, MODEL.values())) + len(READABLE)
    assert [yard.granted(who) for who in ("a/reader", "b/reader", "c/refused")] == [1, 1, 0]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_who_waits_goes_on_where_the_other_ended(yard: Yard, origin: MemorySource, reader: GuardedSource, ending: str) -> None:
    gate = origin.gate(WEIGHTS, 8 * CHUNK)
    first, second = yard.prepare("a/reader", reader), yard.prepare("b/reader", view := GuardedSource(origin, everything))
    hurried, cancel = _hurried(first), Cancellation()
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(first.run, cancel)
        gate.await_readers()
        waiting = threads.submit(second.run, Cancellation())
        assert hurried.wait(20)
        if ending == "cancelled":
            cancel.cancel()
        else:
            assert first._fetch is not None
            first._fetch.fail(AccessDenied("the credential ended"))
        gate.open()
        with pytest.raises(Cancelled if ending == "cancelled" else AccessDenied):
            running.result(20)
        outcome = waiting.result(20)
    assert yard.content(outcome) == MODEL
    assert outcome.progress.bytes_fetched < sum(map(len, MODEL.values()))
    assert [yard.granted(who) for who in ("a/reader", "b/reader")] == [0, 1]
    assert (WEIGHTS, ByteRange(0, 1)) in view.opened


def _hurried(ensure: Ensure) -> threading.Event:
    """Set when somebody who waits for this one has lent it their hurry."""
    came, hurry = threading.Event(), ensure.hurry

    def lend(priority: Priority) -> None:
        hurry(priority)
        came.set()

    ensure.hurry = lend  # type: ignore[method-assign]
    return came
