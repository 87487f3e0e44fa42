"""Archives: members are read in any order and in ranges, from wherever expanding can begin."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.abc.source import Listing
from modelcache.errors import Cancelled
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.archive import ArchiveSource
from modelcache.sources.archive.streams import MOST_MARKS, MarkedGzip
from modelcache.testing.archives import MemoryArchive, Written, tar_of
from modelcache.testing.memory_source import MemorySource
from modelcache.testing.source_contract import read
from modelcache.units import KIB, MIB
from modelcache.uri import StorageUri
from tests.unit.opened_archive import ADDRESS, EXPECTED, GOOD, LIMITS, gz, opened


@settings(max_examples=40)
@given(st.lists(st.integers(0, 300 * KIB), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_members_of_a_gzip_are_read_in_any_order(sizes: list[int], chance: random.Random) -> None:
    content = random.Random(7).randbytes(300 * KIB)
    files = {f"f{number}": content[:size] for number, size in enumerate(sizes)}
    source, listed = opened(gz(tar_of([Written(name, data) for name, data in files.items()])))
    shuffled = list(listed)
    chance.shuffle(shuffled)
    assert {file.path: read(source, file) if file.size_bytes else b"" for file in shuffled} == files


def test_marks_thin_out_and_every_byte_is_still_found() -> None:
    plain = random.Random(3).randbytes(3 * MIB)
    marked = MarkedGzip(MemoryArchive(gz(plain)), address=ADDRESS)
    marked._distance_bytes = 512
    stream = marked.first()
    while stream.read(1000):
        marked.mark(stream)
    assert len(marked._marks) <= MOST_MARKS < 3 * MIB // 1000
    for position in (0, 1, 999, 1000, MIB + 17, 3 * MIB - 1):
        assert marked.at(position).read(5) == plain[position : position + 5]


def test_a_listing_can_be_cancelled() -> None:
    archive = MemoryArchive(GOOD["tgz"])
    cancel = Cancellation()

    def bring(listing: Listing, cancel: Cancellation) -> MemoryArchive:
        cancel.cancel()
        return archive

    source = ArchiveSource(MemorySource({"model.tar": b"x"}), bring, lambda revision, listing, cancel: None, LIMITS)
    with pytest.raises(Cancelled):
        source.list(StorageUri("memory", "origin", "model.tar"), cancel)


def test_ranges_of_a_stored_member_are_exact() -> None:
    source, files = opened(GOOD["stored zip"])
    [file] = [file for file in files if file.path == "w.bin"]
    assert file.resumable
    assert read(source, file, ByteRange(2990, 3010)) == EXPECTED["w.bin"][2990:3010]
    assert zlib.crc32(EXPECTED["w.bin"]) == int(file.digests[0].hex, 16)
