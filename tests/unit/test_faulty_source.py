"""The faults that the contract of sources is run with: they come as scheduled, and who tries nothing again fails by them."""

from __future__ import annotations

from collections import Counter

import pytest

from modelcache.errors import BodyCut, ModelCacheError, OriginBusy, OriginStalled, OriginUnreachable
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.testing.faulty_source import Fault, FaultySource
from modelcache.testing.fetching import place
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.source_contract import read
from modelcache.testing.store_filling import content

DATA = content(50_000, seed=1)


def failures(source: FaultySource, start: int = 0) -> list[tuple[type[ModelCacheError], int]]:
    """What is met, and at which byte, by who lists the file and reads it from `start`, each time on from where it failed."""
    met: list[tuple[type[ModelCacheError], int]] = []
    data = bytearray()
    while True:
        try:
            [file] = source.list(place(), Cancellation()).files
            break
        except ModelCacheError as error:
            met.append((type(error), -1))
    while start + len(data) < len(DATA):
        try:
            body = source.open(file, ByteRange(start + len(data), len(DATA)), Cancellation())
        except ModelCacheError as error:
            met.append((type(error), start + len(data)))
            continue
        buffer = memoryview(bytearray(4096))
        try:
            while count := body.readinto(buffer):
                data += buffer[:count]
        except ModelCacheError as error:
            met.append((type(error), start + len(data)))
        body.close()
    assert data == DATA[start:]
    return met


def test_each_fault_comes_once_where_the_seed_says() -> None:
    runs = [failures(FaultySource(MemorySource({"f": DATA}), seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    for met in runs:
        assert Counter(kind for kind, _ in met) == {OriginBusy: 2, OriginUnreachable: 1, BodyCut: 1, OriginStalled: 1}
        assert met[0] == (OriginBusy, -1)
        assert [at for _, at in met[:3]] == [-1, 0, 0]
        assert 0 < met[3][1] <= met[4][1] < len(DATA)


def test_without_patience_nothing_comes_through() -> None:
    broken = []
    source = FaultySource(MemorySource({"f": DATA}), seed=1, on_first_break=lambda: broken.append(1))
    with pytest.raises(OriginBusy):
        source.list(place(), Cancellation())
    [file] = source.list(place(), Cancellation()).files
    met = []
    for _ in range(4):
        with pytest.raises(ModelCacheError) as caught:
            read(source, file)
        met.append(type(caught.value))
    assert set(met[:2]) == {OriginBusy, OriginUnreachable}
    assert met[2] in (BodyCut, OriginStalled)
    assert met[3] in (OriginBusy, OriginUnreachable)  # from the start again, and not from where it broke: all faults are before it
    assert broken == [1]
    assert source.books.open_bodies == 0


@pytest.mark.parametrize("breaks_whole", [False, True])
def test_files_that_start_over_break_midway_only_if_asked_to(breaks_whole: bool) -> None:
    inner = MemorySource({"f": DATA}, resumable=False)
    source = FaultySource(inner, seed=1, breaks_whole=breaks_whole)
    [file] = inner.list(place(), Cancellation()).files
    for _ in range(4 if breaks_whole else 2):
        with pytest.raises(ModelCacheError):
            read(source, file)
    assert read(source, file) == DATA
    assert source.books.bytes - source.books.again == {"f": len(DATA)}
    assert (source.books.struck[Fault.CUT], source.books.struck[Fault.STALLED]) == ((1, 1) if breaks_whole else (0, 0))
