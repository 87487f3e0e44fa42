"""One ensure over a store and an origin that are dicts: what is asked, fetched and kept the first time, and again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcache.abc.snapshot import RefKey
from modelcache.errors import DigestMismatch, InvalidUri
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.fetching import place
from modelcache.testing.memory_source import MemorySource, state_md5, state_sha256
from modelcache.testing.store_filling import content, digest_of
from tests.unit.ensure.bench import MODEL, SIZE, Bench, check

pytestmark = pytest.mark.usefixtures("chunk_bytes")


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
