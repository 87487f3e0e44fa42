"""What every `Source` must do; subclassed once per source, with a fixture that puts files at its origin."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.abc.source import Body, Listing, RemoteFile, Source
from modelcache.digest import Algorithm
from modelcache.errors import Cancelled, NotFound, SourceChanged, UnsafePath
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.store_filling import content
from modelcache.units import MIB
from modelcache.uri import StorageUri

HASHES: dict[Algorithm, Callable[[bytes], str]] = {
    Algorithm.SHA256: lambda data: hashlib.sha256(data).hexdigest(),
    Algorithm.SHA1: lambda data: hashlib.sha1(data).hexdigest(),
    Algorithm.MD5: lambda data: hashlib.md5(data).hexdigest(),
    Algorithm.CRC32: lambda data: f"{zlib.crc32(data):08x}",
}
SMALL = content(100_003, seed=1)
LARGE = content(24 * MIB + 7, seed=2)
"""More than a socket's two buffers hold, so that most of it is still at the origin once its first bytes were read."""
OTHER = content(len(LARGE), seed=3)
NAMES = ("weights.bin", "a b", "ünïcödé-模型", "100%", "%41", "a+b", "n#1", "what?", "a&b=c", "semi;colon,comma", "'quoted'", "~tilde")
HARMLESS = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]  # one place serves all examples of a subclass
EXAMPLES = settings(deadline=None, max_examples=60, suppress_health_check=HARMLESS)


class Place(Protocol):
    """An empty origin, and the source that reads from it.

    Attributes:
        source: the source under test.
        lists_many: whether one URI can stand for many files.
        unsafe_names: names that this origin can hold and no snapshot may.
    """

    source: Source
    lists_many: bool
    unsafe_names: tuple[str, ...]

    def put(self, path: str, data: bytes) -> None:
        """Add a file, or replace it whole, as a new version."""
        ...

    def overwrite(self, path: str, data: bytes) -> None:
        """Write a new version into the old one's place, byte by byte, where the origin knows such a thing; else as `put`."""
        ...

    def remove(self, path: str) -> None: ...

    def uri(self, path: str = "") -> StorageUri:
        """Of one file, or of everything here (only where the source lists many)."""
        ...


def listing(place: Place, path: str = "") -> Listing:
    return place.source.list(place.uri(path), Cancellation())


def put_and_list(place: Place, path: str, data: bytes) -> RemoteFile:
    place.put(path, data)
    [file] = listing(place, path).files
    return file


def whole(file: RemoteFile) -> ByteRange:
    return ByteRange(0, file.size_bytes)


def read_on(body: Body, size_bytes: int, *, buffer_bytes: int = 256 << 10) -> bytes:
    """Read up to this many bytes, checking that nothing behind the returned count was touched."""
    data = bytearray()
    while len(data) < size_bytes:
        want = min(buffer_bytes, size_bytes - len(data))
        buffer = bytearray(b"\xa5" * (want + 8))
        count = body.readinto(memoryview(buffer)[:want])
        assert 0 <= count <= want
        assert buffer[want:] == b"\xa5" * 8
        if count == 0:
            break
        data += buffer[:count]
    return bytes(data)


def read(source: Source, file: RemoteFile, span: ByteRange | None = None, *, buffer_bytes: int = 256 << 10) -> bytes:
    """A whole span, to its final 0 and once more."""
    span = span or whole(file)
    body = source.open(file, span, Cancellation())
    try:
        data = read_on(body, span.size_bytes + 1, buffer_bytes=buffer_bytes)
        assert body.readinto(memoryview(bytearray(8))) == 0
        return data
    finally:
        body.close()
        body.close()


class SourceContract:
    """A subclass gives the fixture `place`."""

    # -- listing ----------------------------------------------------------------------------------------------------------

    def test_a_single_file_is_listed_under_its_own_name(self, place: Place) -> None:
        place.put("deep/model.bin", SMALL)
        found = listing(place, "deep/model.bin")
        assert [(file.path, file.size_bytes) for file in found.files] == [("model.bin", len(SMALL))]
        assert found.uri == place.uri("deep/model.bin")
        assert found.origin == place.source.origin
        assert not found.immutable
        assert found.revision
        assert found.size_bytes == len(SMALL)

    def test_everything_below_a_place_is_listed_sorted(self, place: Place) -> None:
        if not place.lists_many:
            with pytest.raises(NotFound):
                listing(place, "nothing-here")
            return
        for path in ("b", "a/z", "a/b/c", "B", "a.txt"):
            place.put(path, path.encode())
        found = listing(place)
        assert [(file.path, file.size_bytes) for file in found.files] == [("B", 1), ("a.txt", 5), ("a/b/c", 5), ("a/z", 3), ("b", 1)]
        assert {file.path: read(place.source, file) for file in found.files} == {file.path: file.path.encode() for file in found.files}

    def test_patterns_select(self, place: Place) -> None:
        place.put("model.safetensors", b"x")
        place.put("model.bin", b"x")
        source = place.source
        if place.lists_many:
            chosen = source.list(replace(place.uri(), include=("*.safetensors",)), Cancellation())
            assert [file.path for file in chosen.files] == ["model.safetensors"]
            chosen = source.list(replace(place.uri(), exclude=("*.safetensors",)), Cancellation())
            assert [file.path for file in chosen.files] == ["model.bin"]
        only = place.uri("model.bin")
        for uri in (replace(only, include=("*.gguf",)), replace(only, exclude=("*.bin",))):
            with pytest.raises(NotFound):
                source.list(uri, Cancellation())

    def test_nothing_there_is_not_found(self, place: Place) -> None:
        with pytest.raises(NotFound) as caught:
            listing(place, "no/such/file")
        assert "no/such/file" in str(caught.value)

    def test_an_empty_file_is_listed(self, place: Place) -> None:
        assert put_and_list(place, "empty", b"").size_bytes == 0

    @pytest.mark.parametrize("name", NAMES)
    def test_odd_names_are_listed_and_read(self, place: Place, name: str) -> None:
        file = put_and_list(place, f"dir/{name}", name.encode())
        assert (file.path, read(place.source, file)) == (name, name.encode())

    def test_names_that_no_snapshot_may_hold_are_refused(self, place: Place) -> None:
        for name in place.unsafe_names:
            place.put(f"unsafe/{name}", b"x")
            with pytest.raises(UnsafePath):
                listing(place, f"unsafe/{name}")
            if place.lists_many:
                with pytest.raises(UnsafePath):
                    listing(place, "unsafe")
            place.remove(f"unsafe/{name}")

    def test_an_unchanged_place_is_listed_alike(self, place: Place) -> None:
        place.put("f", SMALL)
        before, after = listing(place, "f"), listing(place, "f")
        assert before == after
        assert before.files == after.files

    def test_a_new_version_is_listed_as_another(self, place: Place) -> None:
        place.put("f", SMALL)
        before = listing(place, "f")
        place.put("f", SMALL[::-1])
        after = listing(place, "f")
        assert before.revision != after.revision
        assert before.files[0].validator != after.files[0].validator

    def test_what_is_stated_of_a_file_is_true(self, place: Place) -> None:
        for digest in put_and_list(place, "f", SMALL).digests:
            if digest.algorithm in HASHES:
                assert digest.hex == HASHES[digest.algorithm](SMALL)

    # -- ranges -----------------------------------------------------------------------------------------------------------

    @given(data=st.data())
    @EXAMPLES
    def test_every_range_is_exact(self, place: Place, data: st.DataObject) -> None:
        size = data.draw(st.sampled_from([1, 2, 4096, 65_537, len(SMALL)]))
        file = put_and_list(place, f"f{size}", SMALL[:size])
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        if not file.resumable:
            start, stop = 0, size
        buffer_bytes = data.draw(st.sampled_from([1 << 20, 4096, 4095]) if stop - start > 100 else st.integers(1, 200))
        assert read(place.source, file, ByteRange(start, stop), buffer_bytes=buffer_bytes) == SMALL[start:stop]

    def test_a_large_file_is_exact(self, place: Place) -> None:
        file = put_and_list(place, "f", LARGE)
        assert read(place.source, file, buffer_bytes=4 * MIB) == LARGE

    def test_threads_read_one_file_at_once(self, place: Place) -> None:
        file = put_and_list(place, "f", LARGE)
        step = len(LARGE) // 16
        spans = [ByteRange(at * step, (at + 1) * step) for at in range(16)] if file.resumable else [whole(file)] * 8
        with ThreadPoolExecutor(8) as threads:
            parts = list(threads.map(lambda span: read(place.source, file, span), spans))
        assert parts == [LARGE[span.start : span.stop] for span in spans]

    # -- versions ---------------------------------------------------------------------------------------------------------

    def test_a_file_replaced_before_it_is_opened_has_changed(self, place: Place) -> None:
        file = put_and_list(place, "f", SMALL)
        place.put("f", SMALL[::-1])
        with pytest.raises(SourceChanged) as caught:
            read(place.source, file)
        assert caught.value.retryable
        assert read(place.source, listing(place, "f").files[0]) == SMALL[::-1]

    def test_a_file_removed_before_it_is_opened_has_changed(self, place: Place) -> None:
        file = put_and_list(place, "f", SMALL)
        place.remove("f")
        with pytest.raises(SourceChanged):
            read(place.source, file)

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_file_replaced_while_it_is_read_is_never_a_mixture(self, place: Place, in_place: bool) -> None:
        file = put_and_list(place, "f", LARGE)
        body = place.source.open(file, whole(file), Cancellation())
        data = read_on(body, MIB)
        (place.overwrite if in_place else place.put)("f", OTHER)
        try:
            data += read_on(body, len(LARGE) + 1)
        except SourceChanged:
            pass
        else:
            assert data == LARGE
        finally:
            body.close()
        with pytest.raises(SourceChanged):
            read(place.source, file, ByteRange(0, 10) if file.resumable else None)

    # -- life of a body ---------------------------------------------------------------------------------------------------

    def test_a_body_left_early_disturbs_no_other(self, place: Place) -> None:
        file = put_and_list(place, "f", LARGE)
        body = place.source.open(file, whole(file), Cancellation())
        assert read_on(body, 1000) == LARGE[:1000]
        body.close()
        assert read(place.source, file) == LARGE

    def test_an_open_body_outlives_the_sources_idle_connections(self, place: Place) -> None:
        file = put_and_list(place, "f", LARGE)
        body = place.source.open(file, whole(file), Cancellation())
        data = read_on(body, 1000)
        place.source.close()
        assert data + read_on(body, len(LARGE)) == LARGE
        body.close()

    @pytest.mark.parametrize("by", ["abort", "cancel"])
    def test_a_read_is_ended_from_another_thread(self, place: Place, by: str) -> None:
        file = put_and_list(place, "f", LARGE)
        cancel = Cancellation()
        body = place.source.open(file, whole(file), cancel)
        read_on(body, 1000)
        thread = threading.Thread(target=body.abort if by == "abort" else cancel.cancel)
        thread.start()
        thread.join()
        with pytest.raises(Cancelled):
            read_on(body, len(LARGE))
        with pytest.raises(Cancelled):
            body.readinto(memoryview(bytearray(1)))
        body.close()
        body.abort()
        assert read(place.source, file) == LARGE

    def test_a_cancelled_call_does_nothing(self, place: Place) -> None:
        file = put_and_list(place, "f", SMALL)
        cancel = Cancellation()
        cancel.cancel()
        with pytest.raises(Cancelled):
            place.source.list(place.uri("f"), cancel)
        with pytest.raises(Cancelled):
            place.source.open(file, whole(file), cancel)
