"""Fetches that want the same files at the same time: each file comes once, and whoever leaves takes nothing away from the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import modelcache.fetch.engine
from modelcache.abc.source import RemoteFile
from modelcache.digest import Digest
from modelcache.errors import BodyCut, Cancelled, StoreFault
from modelcache.fetch.fetch import Fetch
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import check_filled, finish, request_for, running_engine
from modelcache.testing.memory_ingest import MemoryIncoming
from modelcache.testing.memory_source import MemorySource, state_md5, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content

pytestmark = pytest.mark.usefixtures("chunk_bytes")

DEADLINE_S = 20.0
MODEL = {"a": content(12 * CHUNK, 1), "b": content(9 * CHUNK + 5, 2), "c": content(30, 3), "d": b"", "e": content(40, 4)}
NAMES = sorted(MODEL)
TOTAL = sum(map(len, MODEL.values()))


def test_many_fetches_of_one_model_fetch_each_file_once() -> None:
    store, source = MemoryStore(), MemorySource(MODEL)
    gate = source.gate("a")
    with running_engine(4) as engine:
        with engine.planning():
            requests = [request_for(store, source, f"name-{number}", identities=NAMES) for number in range(8)]
            fetches = [engine.start(requests[0])]
            gate.await_readers()
            fetches += [engine.start(request) for request in requests[1:]]
        gate.open()
        for fetch, request in zip(fetches, requests, strict=True):
            finish(fetch)
            check_filled(store, request, MODEL)
            seen = fetch.look(Phase.DONE)
            assert (seen.bytes_done, seen.files_done) == (TOTAL, len(MODEL))
            assert seen.bytes_fetched + seen.bytes_reused == TOTAL
    assert source.books.bytes == {path: len(data) for path, data in MODEL.items() if data}
    assert sum(fetch.look().bytes_fetched for fetch in fetches) == TOTAL


def test_whenever_fetches_begin_a_file_comes_once() -> None:
    """Followed, or linked because it was published between the look at the store and the start; and no gap in between, nor
    between the completion of a leader's last file and its end."""
    files = {"a": content(CHUNK + 5), "b": content(20, 2)}
    with running_engine(4) as engine, ThreadPoolExecutor(4) as threads:

        def bring(store: MemoryStore, source: MemorySource, name: str, start: threading.Barrier) -> None:
            with engine.planning():
                request = request_for(store, source, name, identities=[f"{source.origin}-a", f"{source.origin}-b"])
                start.wait(DEADLINE_S)
                fetch = engine.start(request)
            finish(fetch)
            check_filled(store, request, files)
            assert fetch.look().bytes_done == CHUNK + 25

        for round_number in range(150):
            store, source = MemoryStore(), MemorySource(files, endpoint=f"memory://{round_number}")
            start = threading.Barrier(4)
            running = [threads.submit(bring, store, source, str(number), start) for number in range(4)]
            for future in running:
                future.result(DEADLINE_S)
            assert source.books.bytes == {"a": CHUNK + 5, "b": 20}


def test_what_was_published_is_remembered_while_somebody_plans_or_goes_on_fetching() -> None:
    store, source = MemoryStore(), MemorySource({"a": MODEL["a"]})
    with running_engine(2) as engine:
        with engine.planning():
            late = request_for(store, source, "late", identities=["a"])
            finish(engine.start(request_for(store, source, "early", identities=["a"])))
            with engine.planning():
                pass
            finish(engine.start(late))
        assert source.books.bytes["a"] == len(MODEL["a"])
        assert engine._shared._published == {}
        store, source = MemoryStore(), MemorySource(MODEL)
        gate = source.gate("b", 5 * CHUNK)
        first = engine.start(request_for(store, source, "first", identities=NAMES))
        gate.await_readers()
        second = engine.start(request_for(store, source, "second", identities=NAMES))
        gate.open()
        finish(first)
        finish(second)
        assert source.books.bytes == {path: len(data) for path, data in MODEL.items() if data}
        assert engine._shared._published == {}


def followed(
    engine: modelcache.fetch.engine.FetchEngine, store: MemoryStore, source: MemorySource
) -> tuple[list[Fetch], Callable[[], None]]:
    """A leader that stands in the middle of `a`, and two that follow it in every file; and what lets the leader go on."""
    gate = source.gate("a", 5 * CHUNK)
    with engine.planning():
        requests = [request_for(store, source, name, identities=NAMES) for name in ("leader", "second", "third")]
        fetches = [engine.start(request) for request in requests]
    gate.await_readers()
    return fetches, gate.open


@pytest.mark.parametrize("idle_s", [0.0, 5.0])
def test_when_the_leader_is_cancelled_one_follower_leads(monkeypatch: pytest.MonkeyPatch, idle_s: float) -> None:
    monkeypatch.setattr(modelcache.fetch.engine, "IDLE_S", idle_s)
    store, source = MemoryStore(), MemorySource(MODEL)
    with running_engine(1) as engine:
        fetches, go_on = followed(engine, store, source)
        fetches[0].cancel()
        go_on()
        with pytest.raises(Cancelled):
            finish(fetches[0])
        for fetch in fetches[1:]:
            finish(fetch)
            assert fetch.look().bytes_done == TOTAL
    assert source.books.bytes["a"] == (5 + 12) * CHUNK  # the leader's part stays with its ingest
    assert source.books.bytes["b"] == len(MODEL["b"])
    assert sum(fetch.look().bytes_fetched for fetch in fetches[1:]) == TOTAL - 70  # `c` and `e` came with the leader


def test_when_the_leader_fails_the_followers_do_not() -> None:
    store, source = MemoryStore(), MemorySource(MODEL)
    source.cut("a", 5 * CHUNK)
    with running_engine(1) as engine:
        fetches, go_on = followed(engine, store, source)
        go_on()
        with pytest.raises(BodyCut):
            finish(fetches[0])
        for fetch in fetches[1:]:
            finish(fetch)
    assert source.books.bytes["a"] == (5 + 12) * CHUNK


def test_who_takes_over_small_files_makes_them_durable_together(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number:03}": content(40, number) for number in range(100)}
    store, source = MemoryStore(), MemorySource(files)
    gate = source.gate("000")
    flushed: list[int] = []
    with running_engine(1) as engine:
        requests = [request_for(store, source, name, identities=sorted(files)) for name in ("one", "two")]
        monkeypatch.setattr(requests[1].ingest, "flush", lambda group: flushed.append(len(group)))
        leader, follower = (engine.start(request) for request in requests)
        gate.await_readers()
        leader.cancel()
        gate.open()
        finish(follower)
        with pytest.raises(Cancelled):
            finish(leader)
    check_filled(store, requests[1], files)
    assert flushed == [100]


def test_nobody_follows_who_has_ended() -> None:
    store, source = MemoryStore(), MemorySource(MODEL)
    with running_engine(1) as engine:
        fetches, go_on = followed(engine, store, source)
        for fetch in fetches:
            fetch.cancel()
        go_on()
        for fetch in fetches:
            with pytest.raises(Cancelled):
                finish(fetch)
        request = request_for(store, source, identities=NAMES)
        finish(engine.start(request))
        check_filled(store, request, MODEL)


def test_a_follower_that_leaves_takes_nothing_away_and_is_not_touched_again() -> None:
    store, source = MemoryStore(), MemorySource(MODEL)
    with running_engine(2) as engine:
        fetches, go_on = followed(engine, store, source)
        fetches[1].cancel()
        with pytest.raises(Cancelled):
            finish(fetches[1])
        ingests = [fetch._request.ingest for fetch in fetches]
        ingests[1].discard()
        go_on()
        finish(fetches[0])
        finish(fetches[2])
        assert ingests[1].files[0].sha256 is None
    assert source.books.bytes["a"] == len(MODEL["a"])


def test_the_wait_of_a_follower_is_not_over_while_it_is_being_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    store, source = MemoryStore(), MemorySource({"a": MODEL["a"]})
    linking, released = threading.Event(), threading.Event()
    link = MemoryIncoming.link

    def slow(incoming: MemoryIncoming, sha256: Digest) -> bool:
        linking.set()
        assert released.wait(DEADLINE_S)
        return link(incoming, sha256)

    monkeypatch.setattr(MemoryIncoming, "link", slow)
    gate = source.gate("a")
    with running_engine(2) as engine, ThreadPoolExecutor(1) as threads:
        leader, follower = (engine.start(request_for(store, source, name, identities=["a"])) for name in ("one", "two"))
        gate.await_readers()
        gate.open()
        assert linking.wait(DEADLINE_S)
        waiting = threads.submit(finish, follower)
        follower.cancel()
        assert follower.ended
        assert not waiting.done()
        released.set()
        with pytest.raises(Cancelled):
            waiting.result(DEADLINE_S)
        finish(leader)


@pytest.mark.parametrize("outcome", [False, StoreFault("the disk is on fire")])
def test_a_blob_that_cannot_be_linked(monkeypatch: pytest.MonkeyPatch, outcome: bool | Exception) -> None:
    """Collected meanwhile: the follower brings it itself. The store fails: only the follower ends with it."""
    files = {"a": MODEL["a"]}
    store, source = MemoryStore(), MemorySource(files)

    def link(incoming: MemoryIncoming, sha256: Digest) -> bool:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(MemoryIncoming, "link", link)
    gate = source.gate("a")
    with running_engine(2) as engine:
        requests = [request_for(store, source, name, identities=["a"]) for name in ("one", "two")]
        leader, follower = (engine.start(request) for request in requests)
        gate.await_readers()
        gate.open()
        finish(leader)
        check_filled(store, requests[0], files)
        if outcome is False:
            finish(follower)
            check_filled(store, requests[1], files)
            assert source.books.bytes["a"] == 2 * len(files["a"])
        else:
            with pytest.raises(StoreFault):
                finish(follower)


def test_who_was_stated_another_digest_does_not_take_what_the_leader_brought() -> None:
    """An identity is a claim; bytes are compared with what each fetch was told about them."""
    right = {"a": MODEL["a"]}
    store, believed = MemoryStore(), MemorySource({"a": content(12 * CHUNK, 9)})
    stated = MemorySource(right, state=state_sha256, endpoint="memory://other:1")
    gate = believed.gate("a")
    with running_engine(2) as engine:
        requests = [request_for(store, believed, "one", identities=["same"]), request_for(store, stated, "two", identities=["same"])]
        fetches = [engine.start(request) for request in requests]
        gate.await_readers()
        gate.open()
        for fetch in fetches:
            finish(fetch)
    check_filled(store, requests[1], right)
    assert stated.books.bytes["a"] == len(right["a"])


def test_equal_files_of_one_model_come_once() -> None:
    data = content(9 * CHUNK, 5)
    files = {"a": data, "b": data, "c": data, "empty": b"", "empty-too": b"", "small": b"x", "small-too": b"x"}
    store, source = MemoryStore(), MemorySource(files, state=state_md5)
    identities = [str(state_md5(files[path])[0]) for path in sorted(files)]
    with running_engine(3) as engine:
        request = request_for(store, source, identities=identities)
        fetch = engine.start(request)
        finish(fetch)
    check_filled(store, request, files)
    assert sum(source.books.bytes.values()) == len(data) + 1
    seen = fetch.look(Phase.DONE)
    assert (seen.bytes_done, seen.bytes_reused, seen.files_done) == (3 * len(data) + 2, 2 * len(data) + 1, 7)


def test_two_fetches_that_lead_one_file_each_do_not_wait_for_each_other() -> None:
    files = {"a": content(40, 1), "b": content(41, 2), "c": content(9 * CHUNK, 3)}
    store, source = MemoryStore(), MemorySource(files)
    gates = [source.gate(path) for path in files]
    with running_engine(3) as engine:
        first = request_for(store, source, "one", identities=["a", "b", "c1"])
        second = request_for(store, source, "two", identities=["b", "a", "c2"])
        # `a` of the first is `b` of the second: same text, other file; sizes differ, so the link is refused and each brings its own
        fetches = [engine.start(first), engine.start(second)]
        for gate in gates:
            gate.open()
        for fetch in fetches:
            finish(fetch)
    check_filled(store, first, files)
    check_filled(store, second, files)


# -- who goes first -------------------------------------------------------------------------------------------------------


def opened(source: MemorySource, order: list[str]) -> None:
    def on_open(file: RemoteFile, span: ByteRange) -> None:
        order.append(file.path)

    source.on_open = on_open


def priority_of(fetch: Fetch) -> Priority:
    return fetch.priority


def test_who_waits_for_a_file_of_a_prewarming_lends_it_its_priority() -> None:
    """One request at a time: a prewarming leads `shared`, far back in its order. A pod that needs `shared` alone has it before a
    pod that came earlier with much to fetch is done, and the prewarming's other files still wait for that one."""
    order: list[str] = []
    prewarmed = MemorySource({"first": content(40 * CHUNK, 1), "shared": content(4 * CHUNK, 2)}, endpoint="memory://prewarmed")
    busy = MemorySource({"busy": content(200 * CHUNK, 3)}, endpoint="memory://busy")
    shared = MemorySource({"shared": content(4 * CHUNK, 2)}, endpoint="memory://prewarmed")
    for source in (prewarmed, busy, shared):
        opened(source, order)
    store = MemoryStore()
    gate = prewarmed.gate("first", CHUNK)
    busy_gate = busy.gate("busy", 20 * CHUNK)
    with running_engine(1) as engine:
        prewarming = engine.start(request_for(store, prewarmed, "prewarming", priority=Priority.PREWARM, identities=["f", "s"]))
        gate.await_readers()
        first = engine.start(request_for(store, busy, "busy"))
        pod = engine.start(request_for(store, shared, "pod", identities=["s"]))
        gate.open()
        busy_gate.await_readers()
        busy_gate.open()
        finish(pod)
        assert priority_of(prewarming) is Priority.PREWARM  # what was lent has gone back
        finish(first)
        finish(prewarming)
    assert order.index("shared") < len(order) - 1 - order[::-1].index("busy")
    last_of_busy = len(order) - 1 - order[::-1].index("busy")
    assert "first" not in order[1:last_of_busy]
    assert shared.books.bytes == {}


def test_a_follower_in_a_hurry_hurries_whom_it_follows() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(30 * CHUNK, 1)})
    gate = source.gate("a")
    with running_engine(1) as engine:
        leader, follower = (
            engine.start(request_for(store, source, name, priority=Priority.REPAIR, identities=["a"])) for name in ("one", "two")
        )
        gate.await_readers()
        assert priority_of(leader) is Priority.REPAIR
        engine.hurry(follower, Priority.PREWARM)
        assert priority_of(leader) is Priority.PREWARM
        engine.hurry(follower, Priority.WAITING)
        assert priority_of(leader) is Priority.WAITING
        follower.cancel()
        assert priority_of(leader) is Priority.REPAIR
        with pytest.raises(Cancelled):
            finish(follower)
        gate.open()
        finish(leader)


def test_what_others_lend_goes_over_to_the_next_leader() -> None:
    store, source = MemoryStore(), MemorySource({"a": content(30 * CHUNK, 1)})
    gate = source.gate("a")
    priorities = (Priority.REPAIR, Priority.PREWARM, Priority.WAITING)
    with running_engine(1) as engine:
        one, two, three = (engine.start(request_for(store, source, level.name, priority=level, identities=["a"])) for level in priorities)
        gate.await_readers()
        assert (priority_of(one), priority_of(two)) == (Priority.WAITING, Priority.PREWARM)
        one.cancel()
        assert priority_of(two) is Priority.WAITING
        gate.open()
        finish(two)
        finish(three)
        with pytest.raises(Cancelled):
            finish(one)
        assert priority_of(two) is Priority.PREWARM
