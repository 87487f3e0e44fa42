"""Store contract: ingests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.abc.ingest import IncomingFile, Route
from modelcache.abc.store import Store
from modelcache.chunks import CHUNK_BYTES, ChunkTable, chunk_count, chunk_range
from modelcache.errors import Cancelled, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange, RangeSet
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
    wanted,
    write_chunks,
)
from modelcache.testing.store_fixtures import MODEL, Clock, Leftovers, Read, model
from modelcache.units import MIB

WEIGHTS = "weights/model.safetensors"
LONG_S = 60.0


def weights_of(files: list[IncomingFile]) -> IncomingFile:
    return next(file for file in files if file.path == WEIGHTS)


def leftovers_of(old: dict[str, bytes], new: dict[str, bytes]) -> set[bytes]:
    """Contents that only the first of two models has."""
    return set(old.values()) - set(new.values())


class IngestContract:
    @pytest.mark.parametrize("chunks", [[], [0], [0, 1, 2]])
    @pytest.mark.parametrize("completed", [False, True])
    def test_discard_gives_all_room_back(self, store: Store, leftovers: Leftovers, chunks: list[int], completed: bool) -> None:
        before = store.usage()
        ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
        assert ingest.reserved_bytes == sum(map(len, MODEL.values()))
        assert store.usage().ingest_bytes >= ingest.reserved_bytes
        write_chunks(weights_of(list(ingest.files)), MODEL[WEIGHTS], chunks)
        if completed:
            complete_all(ingest, MODEL)
        ingest.discard()
        ingest.discard()
        assert leftovers() == []
        assert store.usage().blobs_bytes == store.usage().ingest_bytes == 0
        assert store.usage().limits == before.limits

    def test_discard_leaves_what_others_name(self, store: Store, read: Read) -> None:
        snapshot = fill(store, MODEL, uri="s3://b/1")
        ingest = store.ingest(ref_of(MODEL, uri="s3://b/2").key, wanted(MODEL))
        complete_all(ingest, MODEL)
        ingest.discard()
        assert {path: read(snapshot, path) for path in MODEL} == MODEL
        assert store.has_blob(digest_of(MODEL[WEIGHTS]))

    def test_two_ingests_of_one_content_at_once(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        refs = [ref_of(MODEL, uri=f"s3://b/{number}") for number in (1, 2)]
        ingests = [store.ingest(ref.key, wanted(MODEL)) for ref in refs]
        for ingest in ingests:
            complete_all(ingest, MODEL)
        snapshots = [ingest.publish(manifest_of(MODEL), ref) for ingest, ref in zip(ingests, refs, strict=True)]
        assert snapshots[0] == snapshots[1]
        assert {path: read(snapshots[0], path) for path in MODEL} == MODEL
        assert store.refs() == refs
        assert leftovers() == []

    def test_a_living_ingest_is_not_taken_over(self, store: Store) -> None:
        ref = ref_of(MODEL)
        first = store.ingest(ref.key, wanted(MODEL))
        write_chunks(weights_of(list(first.files)), MODEL[WEIGHTS], [0])
        second = store.ingest(ref.key, wanted(MODEL))
        assert second.id != first.id
        assert weights_of(list(second.files)).hints() == {}
        second.discard()
        complete_all(first, MODEL)
        first.publish(manifest_of(MODEL), ref)

    def test_kept_chunks_are_hints_to_the_next(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        ref, data = ref_of(MODEL), MODEL[WEIGHTS]
        first = store.ingest(ref.key, wanted(MODEL))
        write_chunks(weights_of(list(first.files)), data, [0, 2])
        first.keep()
        first.keep()
        second = store.ingest(ref.key, wanted(MODEL))
        weights = weights_of(list(second.files))
        assert weights.hints() == {0: mark_of(chunk_of(data, 0)), 2: mark_of(chunk_of(data, 2))}
        assert weights.ranges() == RangeSet()
        buffer = bytearray(CHUNK_BYTES)
        weights.read(0, memoryview(buffer))
        assert buffer == chunk_of(data, 0)
        for chunk, mark in weights.hints().items():
            weights.mark(chunk, mark)
        assert weights.ranges() == RangeSet([chunk_range(0, len(data)), chunk_range(2, len(data))])
        write_chunks(weights, data, [1])
        weights.complete(digest_of(data), table_of(data))
        complete_all(second, MODEL)
        snapshot = second.publish(manifest_of(MODEL), ref)
        assert {path: read(snapshot, path) for path in MODEL} == MODEL
        assert leftovers() == []

    def test_a_completed_file_is_not_fetched_again(self, store: Store) -> None:
        ref, data = ref_of(MODEL), MODEL[WEIGHTS]
        first = store.ingest(ref.key, wanted(MODEL))
        write_chunks(weights_of(list(first.files)), data)
        weights_of(list(first.files)).complete(digest_of(data), table_of(data))
        first.keep()
        second = store.ingest(ref.key, wanted(MODEL))
        assert weights_of(list(second.files)).sha256 == digest_of(data)
        complete_all(second, MODEL)
        second.publish(manifest_of(MODEL), ref)

    @pytest.mark.parametrize("change", ["version", "no version", "size"])
    def test_another_version_gets_no_hints(self, store: Store, change: str, leftovers: Leftovers) -> None:
        ref, data = ref_of(MODEL), MODEL[WEIGHTS]
        version = "" if change == "no version" else "v1"
        first = store.ingest(ref.key, wanted(MODEL, version=version))
        write_chunks(weights_of(list(first.files)), data, [0])
        first.keep()
        files = MODEL | ({WEIGHTS: data + b"+"} if change == "size" else {})
        now = ref_of(files)
        second = store.ingest(now.key, wanted(files, version="v2" if change == "version" else version))
        assert weights_of(list(second.files)).hints() == {}
        complete_all(second, files)
        second.publish(manifest_of(files), now)
        assert leftovers() == []

    def test_files_that_are_no_longer_wanted_go(self, store: Store, leftovers: Leftovers) -> None:
        old = MODEL | {"old/deep/file": content(5000, seed=5), "turns": b"file"}
        first = store.ingest(ref_of(MODEL).key, wanted(old))
        complete_all(first, old)
        first.keep()
        new = MODEL | {"turns/into/directory": b"x", "old": b"a file now"}
        second = store.ingest(ref_of(MODEL).key, wanted(new))
        complete_all(second, new)
        snapshot = second.publish(manifest_of(new), ref_of(new))
        assert leftovers() == [] or all(name.startswith("blob") for name in leftovers())
        assert store.verify(snapshot.digest, Cancellation()).damages == ()
        assert store.collect().blobs_removed == len(leftovers_of(old, new))
        assert leftovers() == []

    def test_restart_forgets(self, store: Store, read: Read) -> None:
        ref, data = ref_of(MODEL), MODEL[WEIGHTS]
        first = store.ingest(ref.key, wanted(MODEL))
        weights = weights_of(list(first.files))
        write_chunks(weights, content(len(data), seed=9))
        weights.restart()
        assert weights.ranges() == RangeSet()
        write_chunks(weights, data, [1])
        first.keep()
        second = store.ingest(ref.key, wanted(MODEL))
        weights = weights_of(list(second.files))
        assert weights.hints() == {1: mark_of(chunk_of(data, 1))}
        weights.restart()
        assert weights.hints() == {}
        complete_all(second, MODEL)
        assert read(second.publish(manifest_of(MODEL), ref), WEIGHTS) == data

    def test_link_to_what_another_published_meanwhile(self, store: Store, read: Read) -> None:
        ref, data = ref_of(MODEL), MODEL[WEIGHTS]
        ingest = store.ingest(ref.key, wanted(MODEL))
        weights = weights_of(list(ingest.files))
        write_chunks(weights, content(len(data), seed=9), [0])
        assert not weights.link(digest_of(data))
        assert [file.sha256 for file in ingest.files].count(None) == len(ingest.files)
        fill(store, {"other": data, "short": b"short"}, uri="s3://b/other")
        assert not weights.link(digest_of(b"short"))
        assert weights.link(digest_of(data))
        assert weights.sha256 == digest_of(data)
        assert weights.ranges() == RangeSet([ByteRange(0, len(data))])
        assert store.usage().ingest_bytes < len(data)
        complete_all(ingest, MODEL)
        assert read(ingest.publish(manifest_of(MODEL), ref), WEIGHTS) == data

    def test_flush_before_complete(self, store: Store, read: Read) -> None:
        files = {f"part-{number:02}": content(1000 + number, number) for number in range(20)}
        ref = ref_of(files)
        ingest = store.ingest(ref.key, wanted(files))
        for file in ingest.files:
            write_chunks(file, files[file.path])
        ingest.flush(ingest.files[:15])
        last = files["part-14"][:500] + b"x" * 514
        ingest.files[14].write(0, memoryview(last), Route.BUFFERED)  # A write after the flush counts too.
        files["part-14"] = last
        for file in ingest.files:
            file.complete(digest_of(files[file.path]), table_of(files[file.path]))
        snapshot = ingest.publish(manifest_of(files), ref_of(files))
        assert {path: read(snapshot, path) for path in files} == files

    def test_completed_together(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        """Small and large, empty, of equal content among themselves and with what is here."""
        here = {"there": content(900, 1)}
        earlier = fill(store, here)
        files = {f"part-{number:02}": content(900, number % 7) for number in range(20)}
        files |= {"empty": b"", "large": content(CHUNK_BYTES + 9, 3)}
        ingest = store.ingest(ref_of(files).key, wanted(files))
        for file in ingest.files:
            write_chunks(file, files[file.path])
        ingest.complete([])
        ingest.complete([(file, digest_of(files[file.path]), table_of(files[file.path])) for file in ingest.files])
        assert {file.path: file.sha256 for file in ingest.files} == {path: digest_of(data) for path, data in files.items()}
        snapshot = ingest.publish(manifest_of(files), ref_of(files))
        assert {path: read(snapshot, path) for path in files} == files
        assert store.usage().content_bytes == sum(map(len, set(files.values())))
        store.evict(snapshot.digest)
        store.evict(earlier.digest)
        assert leftovers() == []

    @pytest.mark.parametrize("paths", [["../up"], ["/absolute"], ["a", "a"], ["a", "a/b"], ["x" * 256], ["nul\0"]])
    def test_unsafe_names_are_refused(self, store: Store, leftovers: Leftovers, paths: list[str]) -> None:
        files = [item for path in paths for item in wanted({path: b"data"})]
        with pytest.raises(UnsafePath):
            store.ingest(ref_of({}).key, files)
        assert leftovers() == []

    def test_what_makes_no_sense_is_refused(self, store: Store) -> None:
        files = model(1, 5000)
        ingest = store.ingest(ref_of(files).key, wanted(files))
        file = ingest.files[0]
        for offset, data in ((4999, b"12"), (5000, b"1"), (-1, b"1")):
            with pytest.raises(ValueError, match="outside"):
                file.write(offset, memoryview(data), Route.BUFFERED)
        for chunk in (-1, chunk_count(5000)):
            with pytest.raises(ValueError, match="chunk"):
                file.mark(chunk, b"m" * 16)
        with pytest.raises(ValueError, match="4999"):
            file.complete(digest_of(b""), ChunkTable(4999, (b"m" * 16,)))
        with pytest.raises(ValueError, match="completed"):
            ingest.publish(manifest_of(files), ref_of(files))
        complete_all(ingest, files)
        with pytest.raises(ValueError, match="complete"):
            file.write(0, memoryview(b"1"), Route.BUFFERED)
        with pytest.raises(ValueError, match="completed"):
            ingest.publish(manifest_of(model(2, 5000)), ref_of(model(2, 5000)))
        ingest.discard()

    @pytest.mark.parametrize("end", ["keep", "discard", "publish"])
    def test_an_ended_ingest_takes_nothing_more(self, store: Store, end: str) -> None:
        ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
        file = weights_of(list(ingest.files))
        if end == "publish":
            complete_all(ingest, MODEL)
            ingest.publish(manifest_of(MODEL), ref_of(MODEL))
        else:
            getattr(ingest, end)()
        for act in (
            lambda: file.write(0, memoryview(b"1"), Route.BUFFERED),
            lambda: file.mark(0, b"m" * 16),
            lambda: file.complete(digest_of(MODEL[WEIGHTS]), table_of(MODEL[WEIGHTS])),
            lambda: file.link(digest_of(MODEL[WEIGHTS])),
            file.restart,
            lambda: ingest.publish(manifest_of(MODEL), ref_of(MODEL)),
        ):
            with pytest.raises(Cancelled):
                act()
        ingest.keep()
        ingest.discard()
        assert (store.snapshot(ref_of(MODEL).manifest) is not None) == (end == "publish")

    def test_waiting_for_a_range(self, store: Store) -> None:
        data = MODEL[WEIGHTS]
        ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
        file = weights_of(list(ingest.files))
        never = Cancellation()
        assert not file.wait(ByteRange(0, 1), 0.0, never)
        assert file.wait(ByteRange(5, 5), 0.0, never)
        asked, cancel = Cancellation(), Cancellation()
        with ThreadPoolExecutor(8) as pool:
            waits = [pool.submit(file.wait, ByteRange(3 * MIB, 5 * MIB), LONG_S, never) for _ in range(4)]
            over = pool.submit(file.wait, ByteRange(9 * MIB, 9 * MIB + 1), LONG_S, never)
            withdrawn = pool.submit(file.wait, ByteRange(9 * MIB, 9 * MIB + 1), LONG_S, cancel)
            write_chunks(file, data, [1, 0])
            assert all(wait.result(LONG_S) for wait in waits)
            cancel.cancel()
            with pytest.raises(Cancelled):
                withdrawn.result(LONG_S)
            ingest.discard()
            with pytest.raises(Cancelled):
                over.result(LONG_S)
        asked.cancel()
        with pytest.raises(Cancelled):
            file.wait(ByteRange(9 * MIB, 9 * MIB + 1), LONG_S, asked)

    def test_many_threads_write_and_read_one_file(self, store: Store, read: Read) -> None:
        data = content(5 * CHUNK_BYTES + 4096 + 3, seed=3)
        files = {"big": data}
        ref = ref_of(files)
        ingest = store.ingest(ref.key, wanted(files))
        file = ingest.files[0]
        chunks = list(range(chunk_count(len(data))))

        def wait_and_read(chunk: int) -> bool:
            span = chunk_range(chunk, len(data))
            assert file.wait(span, LONG_S, Cancellation())
            buffer = bytearray(span.size_bytes)
            file.read(span.start, memoryview(buffer))
            return buffer == chunk_of(data, chunk)

        barrier = threading.Barrier(len(chunks))

        def write(chunk: int) -> None:
            barrier.wait(LONG_S)
            write_chunks(file, data, [chunk], Route.DIRECT if chunk % 2 else Route.BUFFERED)

        with ThreadPoolExecutor(3 * len(chunks)) as pool:
            reads = [pool.submit(wait_and_read, chunk) for chunk in chunks * 2]
            for done in [pool.submit(write, chunk) for chunk in chunks]:
                done.result(LONG_S)
            assert all(task.result(LONG_S) for task in reads)
            file.complete(digest_of(data), table_of(data))
            assert wait_and_read(0)
            snapshot = ingest.publish(manifest_of(files), ref)
            assert wait_and_read(1)  # Who streams goes on after the publish.
        assert read(snapshot, "big") == data

    def test_five_thousand_small_files(self, store: Store, read: Read, leftovers: Leftovers) -> None:
        files = {f"{number % 50:02}/{number}.json": b"%d" % (number % 4000) for number in range(5000)}
        ref = ref_of(files)
        ingest = store.ingest(ref.key, wanted(files))
        for file in ingest.files:
            write_chunks(file, files[file.path])
        ingest.flush(ingest.files)
        for file in ingest.files:
            file.complete(digest_of(files[file.path]), table_of(files[file.path]))
        snapshot = ingest.publish(manifest_of(files), ref)
        assert store.list()[0].file_count == 5000
        assert all(read(snapshot, path) == files[path] for path in list(files)[::250])
        again = store.ingest(ref.key, wanted(files, known=True))
        assert again.reserved_bytes == 0
        again.discard()
        store.evict(snapshot.digest)
        assert leftovers() == []

    def test_a_kept_ingest_has_a_grace(self, store: Store, clock: Clock, leftovers: Leftovers) -> None:
        ingest = store.ingest(ref_of(MODEL).key, wanted(MODEL))
        write_chunks(weights_of(list(ingest.files)), MODEL[WEIGHTS])
        weights_of(list(ingest.files)).complete(digest_of(MODEL[WEIGHTS]), table_of(MODEL[WEIGHTS]))
        ingest.keep()
        assert store.collect().ingests_removed == 0
        clock.pass_(25 * 3600)
        dry = store.collect(dry_run=True)
        assert (dry.ingests_removed, dry.blobs_removed, dry.dry_run) == (1, 1, True)
        assert dry.freed_bytes >= len(MODEL[WEIGHTS])
        real = store.collect()
        assert (real.ingests_removed, real.blobs_removed, real.freed_bytes) == (1, 1, dry.freed_bytes)
        assert leftovers() == []
