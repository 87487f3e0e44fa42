"""What an ensure says on its way, and offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from modelcache.ensure import Ensure, expect_cached, hit
from modelcache.errors import NotCached
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import place, running_engine
from modelcache.testing.memory_source import MemorySource, state_md5
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content
from tests.unit.ensure.bench import MODEL, SIZE, Bench, check

pytestmark = pytest.mark.usefixtures("chunk_bytes")

T = TypeVar("T")


def test_offline_is_what_is_here_or_not_cached(bench: Bench, source: MemorySource) -> None:
    with pytest.raises(NotCached, match="may not ask its origin"):
        expect_cached(None, place())
    ensured = bench.ensure(source)
    ref = bench.store.ref(bench.key(source))
    assert ref is not None
    found = hit(bench.store, ref.head, 0.0)
    assert found is not None
    assert found.snapshot == ensured.snapshot
    check(bench.store, expect_cached(found, place()), MODEL)
    bench.store.evict(ensured.snapshot.digest)
    assert hit(bench.store, ref.head, 0.0) is None


def after(first: Callable[[], None], then: Callable[..., T]) -> Callable[..., T]:
    """`then`, with `first` done before it."""

    def both(*arguments: object) -> T:
        first()
        return then(*arguments)

    return both


def test_progress_goes_through_its_phases_and_never_back(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource(MODEL, state=state_md5)
    seen: list[Progress] = []
    with running_engine(2) as engine:
        ensure = Bench(store, engine).prepare(source)

        def look() -> None:
            seen.append(ensure.look())

        source.on_list = look
        source.on_open = lambda file, span: look()
        monkeypatch.setattr(store, "ingest", after(look, store.ingest))
        monkeypatch.setattr(store.shelf, "add_snapshot", after(look, store.shelf.add_snapshot))
        seen.append(ensure.run(Cancellation()).progress)
    phases = list(dict.fromkeys(one.phase for one in seen))
    assert phases == [Phase.RESOLVING, Phase.RESERVING, Phase.FETCHING, Phase.PUBLISHING, Phase.DONE]
    fetching = [one for one in seen if one.phase in (Phase.FETCHING, Phase.PUBLISHING, Phase.DONE)]
    assert {one.bytes_total for one in fetching} == {SIZE}
    done = [one.bytes_done for one in sorted(fetching, key=lambda one: one.elapsed_s)]
    assert done == sorted(done)
    assert done[-1] == SIZE
    assert {one.uri for one in seen} == {str(place())}


@pytest.mark.parametrize("when", ["before the fetch", "during the fetch"])
def test_a_caller_in_a_hurry_counts_whenever_it_comes(store: MemoryStore, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    source = MemorySource({"w": content(CHUNK)})
    with running_engine(1) as engine:
        ensure = Ensure(store, engine, source, place(), priority=Priority.PREWARM, route=None)

        def hurry() -> None:
            ensure.hurry(Priority.WAITING)
            ensure.hurry(Priority.REPAIR)

        if when == "before the fetch":
            monkeypatch.setattr(engine, "start", after(hurry, engine.start))
        else:
            source.on_open = lambda file, span: hurry()
        ensure.run(Cancellation())
        assert ensure._fetch is not None
        assert ensure._fetch.rank.own is Priority.WAITING
