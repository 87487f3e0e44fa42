"""Several ingests that want the same bytes: one brings them, the others link them, or go on where it ended."""

from __future__ import annotations

import pytest

from modelcache.abc.ingest import Ingest, IngestFile
from modelcache.abc.store import Limits, Store
from modelcache.chunks import CHUNK_BYTES
from modelcache.errors import NoSpace
from modelcache.testing.store_filling import (
    chunk_of,
    complete_all,
    content,
    digest_of,
    fill,
    manifest_of,
    mark_of,
    ref_of,
    table_of,
    version_of,
    wanted,
    write_chunks,
)
from modelcache.testing.store_fixtures import Leftovers, MakeStore, Read
from modelcache.units import MIB

DATA = content(2 * CHUNK_BYTES + 7, seed=41)
FILES = {"dir/weights": DATA, "empty": b"", "small": b"small"}


def begin(store: Store, name: str, files: dict[str, bytes] | None = None, *, known: bool = False) -> Ingest:
    """An ingest of a URI of its own, its paths below a directory of its own: only versions or digests say what is the same."""
    named = {f"{name}/{path}": data for path, data in (files or FILES).items()}
    return store.ingest(ref_of(named, uri=f"s3://b/{name}").key, wanted(named, known=known))


def finish(ingest: Ingest, name: str) -> dict[str, bytes]:
    """Complete what is not yet, and publish."""
    named = {f"{name}/{path}": data for path, data in FILES.items()}
    complete_all(ingest, named)
    ingest.publish(manifest_of(named), ref_of(named, uri=f"s3://b/{name}"))
    return named


class ClaimContract:
    @pytest.mark.parametrize("known", [True, False])
    def test_one_brings_and_the_other_links(self, store: Store, read: Read, leftovers: Leftovers, known: bool) -> None:
        first, second = begin(store, "one", known=known), begin(store, "two", known=known)
        assert [file.claimed for file in first.files if file.size_bytes] == [True, True]
        assert [file.claimed for file in second.files if file.size_bytes] == [False, False]
        assert (first.reserved_bytes, second.reserved_bytes) == (len(DATA) + 5, 0)
        weights, small = second.files[0], second.files[2]
        with pytest.raises(ValueError, match="another ingest"):
            write_chunks(weights, DATA, [0])
        with pytest.raises(ValueError, match="another ingest"):
            second.book([weights])
        before = second.elsewhere([weights, small])
        write_chunks(first.files[0], DATA, [1])
        after = second.elsewhere([weights, small])
        assert [sight.here_bytes for sight in after] == [CHUNK_BYTES, 0]
        assert after[0].pulse != before[0].pulse
        assert after[0].pulse == second.elsewhere([weights])[0].pulse
        assert second.claim([weights, small]) == []
        for file, data in ((first.files[0], DATA), (first.files[2], b"small")):
            write_chunks(file, data)
            file.complete(digest_of(data), table_of(data))
        assert [sight.sha256 for sight in second.elsewhere([weights, small])] == [digest_of(DATA), digest_of(b"small")]
        finish(first, "one")
        assert [sight.sha256 for sight in second.elsewhere([weights])] == [digest_of(DATA)]
        assert weights.link(digest_of(DATA))
        assert second.claim([small]) == [small]
        assert small.sha256 == digest_of(b"small")
        named = finish(second, "two")
        snapshot = store.snapshot(manifest_of(named).digest)
        assert snapshot is not None
        assert {path: read(snapshot, path) for path in named} == named
        assert leftovers() == []

    def test_who_ends_is_gone_on_with(self, store: Store, read: Read) -> None:
        first, second = begin(store, "one"), begin(store, "two")
        write_chunks(first.files[0], DATA, [0, 2])
        first.keep()
        weights = second.files[0]
        assert second.claim([weights]) == [weights]
        second.book([weights])
        assert dict(weights.hints()) == {index: mark_of(chunk_of(DATA, index)) for index in (0, 2)}
        buffer = bytearray(7)
        weights.read(2 * CHUNK_BYTES, memoryview(buffer))
        assert buffer == DATA[2 * CHUNK_BYTES :]
        again = begin(store, "one")
        assert [file.claimed for file in again.files] == [False, True, True]
        write_chunks(weights, DATA, [1])
        second.keep()
        assert [file for file in again.claim(again.files) if file is again.files[0]]
        again.book([again.files[0]])
        assert set(again.files[0].hints()) == {0, 1, 2}
        finish(again, "one")

    def test_the_next_of_another_uri_goes_on_too(self, store: Store) -> None:
        first = begin(store, "one")
        write_chunks(first.files[0], DATA, [1])
        first.keep()
        second = begin(store, "two")
        assert set(second.files[0].hints()) == {1}
        finish(second, "two")
        third = begin(store, "one")
        assert third.files[0].hints() == {}
        third.discard()

    def test_the_place_of_what_ended_may_be_another_versions_by_now(self, store: Store) -> None:
        other = content(len(DATA), seed=42)
        first, second = begin(store, "one", {"weights": DATA}), begin(store, "two", {"weights": DATA})
        [weights] = second.files
        write_chunks(first.files[0], DATA, [0])
        assert second.elsewhere([weights])[0].here_bytes == CHUNK_BYTES
        first.keep()
        again = begin(store, "one", {"weights": other})
        write_chunks(again.files[0], other, [0, 1])
        assert second.claim([weights]) == [weights]
        second.book([weights])
        assert weights.hints() == {}
        write_chunks(again.files[0], other, [2])
        again.files[0].complete(digest_of(other), table_of(other))
        write_chunks(weights, DATA)
        weights.complete(digest_of(DATA), table_of(DATA))
        assert (again.files[0].sha256, weights.sha256) == (digest_of(other), digest_of(DATA))
        again.discard()
        second.discard()

    def test_what_was_dropped_is_begun_anew(self, store: Store) -> None:
        first, second = begin(store, "one"), begin(store, "two")
        write_chunks(first.files[0], content(len(DATA), seed=42))
        first.discard()
        assert second.claim([second.files[0]]) == [second.files[0]]
        second.book([second.files[0]])
        assert second.files[0].hints() == {}
        finish(second, "two")

    def test_who_waits_books_when_it_takes_over(self, make_store: MakeStore) -> None:
        store = make_store(Limits(max_bytes=len(DATA) + MIB, high_watermark=1.0, low_watermark=1.0))
        first, second = begin(store, "one"), begin(store, "two")
        own = content(MIB // 2, seed=43)
        other = begin(store, "three", {"own": own})
        first.discard()
        assert second.claim([second.files[0]]) == [second.files[0]]
        second.book([second.files[0]])
        second.discard()
        third, fourth = begin(store, "one"), begin(store, "two")
        third.keep()
        late = begin(store, "four", {"more": content(len(DATA), seed=44)})
        assert fourth.claim([fourth.files[0]]) == [fourth.files[0]]
        with pytest.raises(NoSpace):
            fourth.book([fourth.files[0]])
        for ingest in (fourth, late, other):
            ingest.discard()

    def test_what_another_brought_is_taken_unless_one_insists(self, store: Store) -> None:
        first, second, third = begin(store, "one"), begin(store, "two"), begin(store, "three")
        complete_all(first, {f"one/{path}": data for path, data in FILES.items()})
        first.keep()
        assert second.claim([second.files[0]]) == [second.files[0]]
        assert second.files[0].sha256 == digest_of(DATA)
        second.discard()
        weights = third.files[0]
        assert third.claim([weights], anyway=True) == [weights]
        assert weights.sha256 is None
        third.book([weights])
        write_chunks(weights, DATA, [0])
        third.discard()

    def test_without_waiting_any_longer(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        first, second = begin(store, "one"), begin(store, "two")
        write_chunks(first.files[0], DATA, [0])
        weights = second.files[0]
        assert second.claim([weights], anyway=True) == [weights]
        second.book([weights])
        assert weights.hints() == {}
        write_chunks(weights, DATA, [1])
        write_chunks(first.files[0], DATA, [1])
        assert second.elsewhere([weights])[0].here_bytes >= CHUNK_BYTES
        named = finish(second, "two")
        finish(first, "one")
        for info in store.list():
            path = "one/dir/weights" if info.refs[0].key.uri.endswith("one") else "two/dir/weights"
            snapshot = store.snapshot(info.digest)
            assert snapshot is not None
            assert read(snapshot, path) == named["two/dir/weights"]
        assert store.usage().blobs_bytes < len(DATA) + MIB
        assert leftovers() == []

    def test_what_nothing_identifies_is_claimed_by_everybody(self, store: Store) -> None:
        files = [IngestFile("whole", 100, "", None)]
        ingests = [store.ingest(ref_of({}, uri=f"s3://b/{number}").key, files) for number in range(2)]
        assert [ingest.files[0].claimed for ingest in ingests] == [True, True]
        for ingest in ingests:
            ingest.discard()

    def test_a_size_that_differs_is_another_file(self, store: Store) -> None:
        version = version_of(DATA)
        first = store.ingest(ref_of({}, uri="s3://b/1").key, [IngestFile("a", len(DATA), version, None)])
        write_chunks(first.files[0], DATA, [0])
        first.keep()
        second = store.ingest(ref_of({}, uri="s3://b/2").key, [IngestFile("a", len(DATA) - 1, version, None)])
        assert second.files[0].hints() == {}
        second.discard()

    def test_equal_files_of_one_ingest_are_claimed_together(self, store: Store) -> None:
        twins = {"a": DATA, "b": DATA}
        ingest = begin(store, "twins", twins)
        assert [file.claimed for file in ingest.files] == [True, True]
        ingest.discard()
        fill(store, twins, uri="s3://b/twins")
