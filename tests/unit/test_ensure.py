"""One ensure over a store and an origin that are dicts: what is asked, what is fetched, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from modelcache.abc.ingest import Route
from modelcache.abc.snapshot import RefKey
from modelcache.abc.source import Listing, RemoteFile
from modelcache.abc.store import Limits
from modelcache.digest import Digest
from modelcache.ensure import CHANGE_TRIES, Ensure, Ensured, expect_cached, hit
from modelcache.errors import BodyCut, Cancelled, DigestMismatch, InvalidUri, NoSpace, NotCached, NotFound, SourceChanged
from modelcache.fetch.engine import FetchEngine
from modelcache.fetch.plan import Priority
from modelcache.fetch.progress import Phase, Progress
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import in_background, place, running_engine
from modelcache.testing.memory_source import MemorySource, state_md5, state_sha256
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, manifest_of
from modelcache.uri import StorageUri

pytestmark = pytest.mark.usefixtures("chunk_bytes")

T = TypeVar("T")
MODEL = {"config.json": b"{}", "empty": b"", "model.safetensors": content(9 * CHUNK + 7, 1), "other.safetensors": content(5 * CHUNK, 2)}
SIZE = sum(map(len, MODEL.values()))


@pytest.fixture
def engine() -> Iterator[FetchEngine]:
    with running_engine(3) as running:
        yield running


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def source() -> MemorySource:
    return MemorySource(MODEL)


class Bench:
    """A store, an engine, and a way to say `ensure`."""

    def __init__(self, store: MemoryStore, engine: FetchEngine) -> None:
        self.store = store
        self.engine = engine

    def prepare(self, source: MemorySource, name: str = "model", digest: Digest | None = None) -> Ensure:
        uri = replace(place(name), digest=digest)
        return Ensure(self.store, self.engine, source, uri, priority=Priority.WAITING, route=Route.BUFFERED)

    def ensure(
        self, source: MemorySource, name: str = "model", digest: Digest | None = None, cancel: Cancellation | None = None
    ) -> Ensured:
        return self.prepare(source, name, digest).run(cancel or Cancellation())

    def key(self, source: MemorySource, name: str = "model") -> RefKey:
        return RefKey(str(place(name)), str(source.origin))

    def stated(self, source: MemorySource, name: str = "model") -> dict[str, tuple[Digest, ...]]:
        ref = self.store.ref(self.key(source, name))
        assert ref is not None
        return {file.path: file.stated for file in ref.files}


@pytest.fixture
def bench(store: MemoryStore, engine: FetchEngine) -> Bench:
    return Bench(store, engine)


def check(store: MemoryStore, ensured: Ensured, files: dict[str, bytes]) -> None:
    assert ensured.snapshot.digest == manifest_of(files).digest
    assert {path: store.file(ensured.snapshot.digest, path) for path in files} == files
    assert store.leftovers() == []
    seen = ensured.progress
    size_bytes = sum(map(len, files.values()))
    assert (seen.phase, seen.bytes_total, seen.bytes_done, seen.eta_s) == (Phase.DONE, size_bytes, size_bytes, 0.0)
    assert (seen.files_total, seen.files_done) == (len(files), len(files))
    assert seen.bytes_fetched + seen.bytes_reused == size_bytes


# -- the same again -------------------------------------------------------------------------------------------------------


def test_first_fetched_then_a_hit(bench: Bench, source: MemorySource) -> None:
    first = bench.ensure(source)
    check(bench.store, first, MODEL)
    assert (first.progress.hit, first.progress.bytes_fetched) == (False, SIZE)
    before = bench.store.ref(bench.key(source))
    again = bench.ensure(source)
    check(bench.store, again, MODEL)
    assert (again.progress.hit, again.progress.bytes_fetched) == (True, 0)
    assert sum(source.books.bytes.values()) == SIZE
    after = bench.store.ref(bench.key(source))
    assert before is not None
    assert after is not None
    assert after.checked_at_s > before.checked_at_s
    assert replace(after, checked_at_s=0) == replace(before, checked_at_s=0)


def test_a_changed_listing_brings_the_changed_files_alone(bench: Bench, source: MemorySource) -> None:
    first = bench.ensure(source)
    changed = MODEL | {"config.json": b'{"new": 1}', "added": content(CHUNK, 8)}
    del changed["other.safetensors"]
    source.put("config.json", changed["config.json"])
    source.put("added", changed["added"])
    source.remove("other.safetensors")
    source.books.bytes.clear()
    second = bench.ensure(source)
    check(bench.store, second, changed)
    assert source.books.bytes == {"config.json": 10, "added": CHUNK}
    assert bench.store.snapshot(first.snapshot.digest) is not None  # the old one stays beside it


def test_the_same_bytes_under_a_new_version_are_fetched_once_more_if_nothing_states_their_digest(bench: Bench) -> None:
    for state, fetched in ((state_md5, 9 * CHUNK + 7), (state_sha256, 0)):
        source = MemorySource(MODEL, state=state, endpoint=f"memory://{state.__name__}")
        first = bench.ensure(source)
        before = bench.store.ref(bench.key(source))
        source.put("model.safetensors", MODEL["model.safetensors"])
        source.books.bytes.clear()
        again = bench.ensure(source)
        assert again.snapshot == first.snapshot
        assert sum(source.books.bytes.values()) == fetched
        after = bench.store.ref(bench.key(source))
        assert before is not None
        assert after is not None
        assert after.revision != before.revision
        assert after.created_at_s == before.created_at_s  # it still resolves to the manifest of then


def test_a_stated_sha256_makes_a_fetch_needless_where_the_bytes_are_here(bench: Bench) -> None:
    bench.ensure(MemorySource({"x.safetensors": MODEL["model.safetensors"], "y": b"{}"}))
    source = MemorySource(MODEL, state=state_sha256, endpoint="memory://another:1")
    ensured = bench.ensure(source, "another")
    check(bench.store, ensured, MODEL)
    assert source.books.bytes == {"other.safetensors": 5 * CHUNK}
    assert ensured.progress.bytes_reused == SIZE - 5 * CHUNK
    third = MemorySource(MODEL, state=state_sha256, endpoint="memory://third:1")
    ensured = bench.ensure(third, "third")
    check(bench.store, ensured, MODEL)
    assert ensured.progress.hit
    assert third.books.spans == []
    assert bench.stated(third, "third") == {path: state_sha256(data) for path, data in MODEL.items()}


def test_what_was_compared_is_kept_with_the_ref_and_stays_when_only_others_change(bench: Bench) -> None:
    source = MemorySource(MODEL, state=state_md5)
    bench.ensure(source)
    expected = {path: state_md5(data) for path, data in MODEL.items()}
    assert bench.stated(source) == expected
    source.put("config.json", b"{ }")
    bench.ensure(source)
    assert bench.stated(source) == expected | {"config.json": state_md5(b"{ }")}


def test_what_can_not_be_named_is_fetched_each_time(bench: Bench) -> None:
    source = MemorySource(MODEL, resumable=False)
    for _ in range(2):
        check(bench.store, bench.ensure(source), MODEL)
    assert sum(source.books.bytes.values()) == 2 * SIZE


# -- a digest in the URI ----------------------------------------------------------------------------------------------------


WEIGHTS = MODEL["model.safetensors"]


def test_a_digest_in_the_uri_is_compared_and_counts_as_stated(bench: Bench) -> None:
    source = MemorySource({"w": WEIGHTS}, state=state_md5)
    check(bench.store, bench.ensure(source, digest=digest_of(WEIGHTS)), {"w": WEIGHTS})
    uri = str(replace(place(), digest=digest_of(WEIGHTS)))
    ref = bench.store.ref(RefKey(uri, str(source.origin)))
    assert ref is not None
    assert set(ref.files[0].stated) == {digest_of(WEIGHTS), *state_md5(WEIGHTS)}
    other = MemorySource({"w": WEIGHTS}, endpoint="memory://another:1")
    assert bench.ensure(other, "other", digest=digest_of(WEIGHTS)).progress.hit
    assert other.books.spans == []


def test_another_digest_than_the_origin_states_is_refused_before_the_first_byte(bench: Bench) -> None:
    source = MemorySource({"w": WEIGHTS}, state=state_sha256)
    with pytest.raises(DigestMismatch) as error:
        bench.ensure(source, digest=digest_of(b"other"))
    assert (error.value.expected, error.value.got) == (str(digest_of(b"other")), str(digest_of(WEIGHTS)))
    assert source.books.spans == []
    assert bench.store.leftovers() == []


def test_another_digest_than_the_bytes_have_is_refused_after_a_second_try(bench: Bench) -> None:
    source = MemorySource({"w": WEIGHTS})
    with pytest.raises(DigestMismatch) as error:
        bench.ensure(source, digest=digest_of(b"other"))
    assert (error.value.expected, error.value.got) == (str(digest_of(b"other")), str(digest_of(WEIGHTS)))
    assert source.books.bytes["w"] == 2 * len(WEIGHTS)
    assert bench.store.leftovers() == []


def test_a_digest_is_of_one_file(bench: Bench, source: MemorySource) -> None:
    with pytest.raises(InvalidUri, match="4 files are there"):
        bench.ensure(source, digest=digest_of(WEIGHTS))


# -- an origin that changes -----------------------------------------------------------------------------------------------


def test_an_object_replaced_in_mid_fetch_is_listed_again_and_nothing_is_mixed(bench: Bench, source: MemorySource) -> None:
    changed = MODEL | {"model.safetensors": content(9 * CHUNK + 7, 50)}
    left = [True]

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        if file.path == "model.safetensors" and span.start > 0 and left:
            left.clear()
            source.put("model.safetensors", changed["model.safetensors"])

    source.on_open = on_open
    check(bench.store, bench.ensure(source), changed)
    assert source.books.listings == 2


@pytest.mark.parametrize("changes", [CHANGE_TRIES - 1, CHANGE_TRIES])
def test_an_origin_that_keeps_changing_is_given_up(bench: Bench, source: MemorySource, changes: int) -> None:
    changed_after: set[int] = set()

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        listing = source.books.listings
        if file.path == "other.safetensors" and listing not in changed_after and len(changed_after) < changes:
            changed_after.add(listing)
            source.put("other.safetensors", content(CHUNK, listing))

    source.on_open = on_open
    if changes < CHANGE_TRIES:
        check(bench.store, bench.ensure(source), MODEL | {"other.safetensors": content(CHUNK, changes)})
    else:
        with pytest.raises(SourceChanged):
            bench.ensure(source)
    assert source.books.listings == CHANGE_TRIES


def test_a_blob_found_damaged_while_the_rest_comes_is_brought_anew_alone(bench: Bench) -> None:
    source = MemorySource(MODEL, state=state_sha256)
    bench.ensure(source)
    added = MODEL | {"added": content(CHUNK, 8)}
    source.put("added", added["added"])
    source.books.bytes.clear()

    def on_open(file: RemoteFile, span: ByteRange) -> None:
        if file.path == "added":
            bench.store.damage(digest_of(MODEL["config.json"]), 0)
            assert bench.store.verify(None, Cancellation()).damages

    source.on_open = on_open
    check(bench.store, bench.ensure(source), added)
    assert source.books.bytes == {"added": CHUNK, "config.json": len(MODEL["config.json"])}


def test_an_object_replaced_while_it_is_listed_is_listed_again(bench: Bench, source: MemorySource) -> None:
    errors = [SourceChanged("replaced between the pages of the listing")]

    def on_list() -> None:
        if errors:
            raise errors.pop()

    source.on_list = on_list
    check(bench.store, bench.ensure(source), MODEL)


def test_what_is_gone_is_told_as_missing(bench: Bench, source: MemorySource) -> None:
    for path in MODEL:
        source.remove(path)
    with pytest.raises(NotFound):
        bench.ensure(source)


# -- an origin that breaks its word, a store that lost bytes --------------------------------------------------------------


def test_the_first_complete_fetch_defines_a_version(bench: Bench, source: MemorySource) -> None:
    """The blob is lost, the origin hands out other bytes under the same validator: that is a mismatch, told with what to do."""
    bench.ensure(source)
    lost = digest_of(MODEL["model.safetensors"])
    bench.store.damage(lost, 100)
    bench.store.verify(None, Cancellation())
    assert not bench.store.has_blob(lost)
    source.put("model.safetensors", content(9 * CHUNK + 7, 77), keep_version=True)
    with pytest.raises(DigestMismatch, match=lost.hex) as error:
        bench.ensure(source)
    assert "modelcache rm" in (error.value.hint or "")
    source.put("model.safetensors", MODEL["model.safetensors"], keep_version=True)
    check(bench.store, bench.ensure(source), MODEL)
    assert bench.stated(source) == dict.fromkeys(MODEL, ())  # the origin still states nothing


def test_a_mismatch_with_what_the_origin_states_has_no_such_hint(bench: Bench) -> None:
    source = MemorySource(MODEL, state=state_md5)
    source.spoil("model.safetensors", 5000, times=None)
    with pytest.raises(DigestMismatch) as error:
        bench.ensure(source)
    assert "modelcache rm" not in (error.value.hint or "")
    assert bench.store.leftovers() == []


# -- cancelled, stopped, and again ----------------------------------------------------------------------------------------


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
        ensured = bench.ensure(source)
    check(store, ensured, {"w": content(40 * CHUNK)})
    assert ensured.progress.bytes_reused == 22 * CHUNK
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


# -- offline, and what it says --------------------------------------------------------------------------------------------


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
        assert ensure._fetch.own_priority is Priority.WAITING
