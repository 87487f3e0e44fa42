"""An ensure that is cancelled, cut off or has no room: what it leaves, and what the next one saves."""

from __future__ import annotations

import pytest

from modelcache.abc.source import Listing
from modelcache.abc.store import Limits
from modelcache.errors import BodyCut, Cancelled, NoSpace
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase
from modelcache.patience import Cancellation
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import in_background, running_engine
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content
from modelcache.uri import StorageUri
from tests.unit.ensure.bench import SIZE, Bench, check

pytestmark = pytest.mark.usefixtures("chunk_bytes")


class Heard:
    """`Listener`."""

    def __init__(self) -> None:
        self.came_bytes = self.here_bytes = 0
        self.phases: list[Phase] = []

    def came(self, uri: str, priority: Priority, count: int) -> None:
        self.came_bytes += count

    def was_here(self, uri: str, count: int) -> None:
        self.here_bytes += count

    def spent(self, uri: str, phase: Phase, elapsed_s: float) -> None:
        self.phases.append(phase)


def test_what_was_fetched_before_a_cancellation_serves_the_next_try(store: MemoryStore) -> None:
    source = MemorySource({"w": content(40 * CHUNK)})
    gate = source.gate("w", 22 * CHUNK)
    cancel = Cancellation()
    with running_engine(1) as engine:
        bench = Bench(store, engine)
        ensure = bench.prepare(source)

        def stop() -> None:
            gate.await_readers()
            cancel.cancel()

        with in_background(stop), pytest.raises(Cancelled):
            ensure.run(cancel)
        gate.open()
        heard = Heard()
        engine.incoming.listen(heard)
        ensured = bench.ensure(source)
    check(store, ensured, {"w": content(40 * CHUNK)})
    assert ensured.progress.bytes_reused == 22 * CHUNK
    assert (heard.came_bytes, heard.here_bytes) == (18 * CHUNK, 22 * CHUNK)
    assert heard.phases == [Phase.RESOLVING, Phase.RESERVING, Phase.FETCHING, Phase.PUBLISHING]
    assert source.books.bytes["w"] == 40 * CHUNK


def test_cancelled_while_it_lists(bench: Bench, source: MemorySource) -> None:
    cancel = Cancellation()
    source.on_list = cancel.cancel
    with pytest.raises(Cancelled):
        bench.ensure(source, cancel=cancel)
    assert source.books.spans == []
    assert bench.store.leftovers() == []


def test_a_cancellation_that_comes_after_the_listing_begins_nothing(
    bench: Bench, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = Cancellation()
    real = source.list

    def list_and_cancel(uri: StorageUri, token: Cancellation) -> Listing:
        listing = real(uri, token)
        cancel.cancel()
        return listing

    monkeypatch.setattr(source, "list", list_and_cancel)
    with pytest.raises(Cancelled):
        bench.ensure(source, cancel=cancel)
    assert bench.store.leftovers() == []


def test_a_connection_that_breaks_costs_what_it_was_at(store: MemoryStore) -> None:
    source = MemorySource({"w": content(40 * CHUNK)})
    source.cut("w", 13 * CHUNK + 5)
    with running_engine(1) as engine:
        bench = Bench(store, engine)
        with pytest.raises(BodyCut):
            bench.ensure(source)
        ensured = bench.ensure(source)
    check(store, ensured, {"w": content(40 * CHUNK)})
    assert ensured.progress.bytes_reused == 13 * CHUNK


def test_no_room_is_told_before_the_first_byte(engine: FetchEngine, source: MemorySource) -> None:
    store = MemoryStore(Limits(max_bytes=SIZE - 1, high_watermark=1.0, low_watermark=1.0))
    with pytest.raises(NoSpace):
        Bench(store, engine).ensure(source)
    assert source.books.spans == []
    assert store.leftovers() == []
