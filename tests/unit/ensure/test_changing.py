"""Origins that change, or break their word, while or between they are asked."""

from __future__ import annotations

import pytest

from modelcache.abc.source import RemoteFile
from modelcache.ensure import CHANGE_TRIES
from modelcache.errors import DigestMismatch, NotFound, SourceChanged
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.fetching import SMALL_CHUNK_BYTES as CHUNK
from modelcache.testing.memory_source import MemorySource, state_md5, state_sha256
from modelcache.testing.store_filling import content, digest_of
from tests.unit.ensure.bench import MODEL, Bench, check

pytestmark = pytest.mark.usefixtures("chunk_bytes")


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
