"""`SourceContract` with faults around the source: mixed into the contract of a source, it runs all of that once more."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

import modelcache.registry
from modelcache import Config, ModelCache
from modelcache.ranges import ByteRange
from modelcache.sources.retrying import RetryingSource, RetryLimits
from modelcache.testing import source_contract
from modelcache.testing.faulty_source import AT_OPEN, MIDWAY, Fault, FaultySource
from modelcache.testing.source_contract import LARGE, SMALL, Place, SourceContract, put_and_list, read
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

AT_ONCE = RetryLimits(deadline_s=60.0, base_s=0.0, cap_s=0.0)
FILES = {"model.safetensors": LARGE[: 9 * MIB + 5], "deep/config.json": SMALL, "empty": b"", "one": b"1"}


class FaultedContract(SourceContract):
    """Goes before the contract of a source among the bases: the `place` of that has the faults around its source then, and above
    them what the product puts there."""

    @pytest.fixture(autouse=True)
    def smaller_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Faults break bodies at any byte, whatever sockets hold; the full sizes are for the contract without them."""
        for name in ("LARGE", "OTHER"):
            monkeypatch.setattr(source_contract, name, getattr(source_contract, name)[: 5 * MIB + 7])

    @pytest.fixture(autouse=True)
    def faults(self, place: Place) -> FaultySource:
        faults = FaultySource(place.source, seed=7)
        place.source = RetryingSource(faults, AT_ONCE)
        return faults

    def test_odd_names_are_listed_and_read(self, place: Place, name: str = "ü 100%+#?") -> None:
        """One name for all: what names do shows without faults."""
        super().test_odd_names_are_listed_and_read(place, name)

    def test_every_range_is_exact(self, place: Place) -> None:
        """A few ranges: a range is whatever is left of another, too."""
        file = put_and_list(place, "f", SMALL)
        draw = Random(9)
        for size_bytes in (1, 2, 4095, 4096, 65_537, len(SMALL) - 1):
            start = draw.randrange(len(SMALL) - size_bytes)
            span = ByteRange(start, start + size_bytes) if file.resumable else ByteRange(0, len(SMALL))
            assert read(place.source, file, span, buffer_bytes=draw.choice([1000, 4096, 65_536])) == SMALL[span.start : span.stop]

    def test_every_fault_strikes_once_and_no_byte_is_read_twice(self, place: Place, faults: FaultySource) -> None:
        file = put_and_list(place, "f", SMALL)
        assert read(place.source, file) == SMALL
        strikes = {Fault.LISTING_BUSY, *AT_OPEN, *(MIDWAY if file.resumable else ())}
        assert faults.books.struck == dict.fromkeys(strikes, 1)
        assert faults.books.bytes == {"f": len(SMALL)}
        assert faults.books.open_bodies == 0

    def test_a_snapshot_is_exact_and_no_byte_is_fetched_twice(
        self, place: Place, faults: FaultySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Through the registry, the fetch engine and the store, which starts over what can't be resumed."""
        for path, data in FILES.items():
            place.put(path, data)
        around = FaultySource(faults.inner, seed=8, breaks_whole=True)
        monkeypatch.setattr(modelcache.registry, "_bare", lambda config, uri, secrets: around)
        with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", retry=AT_ONCE, limits=NO_LIMITS)) as cache:
            for path in [""] if place.lists_many else FILES:
                expected = {path.rpartition("/")[2]: FILES[path]} if path else FILES
                snapshot = cache.ensure(str(place.uri(path)))
                assert {name: (snapshot.path / name).read_bytes() for name in expected} == expected
                kept = {item.path: item.sha256.hex for item in cache.manifest(str(snapshot.digest)).files}
                assert kept == {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
        books = around.books
        assert books.open_bodies == 0
        assert min(books.struck[fault] for fault in Fault) > 0
        assert dict(books.bytes - books.again) == self.sizes_bytes(place)

    def sizes_bytes(self, place: Place) -> Mapping[str, int]:
        """Of what there is to fetch of a place that has `FILES`, by path, without what is empty."""
        return {path if place.lists_many else path.rpartition("/")[2]: len(data) for path, data in FILES.items() if data}
