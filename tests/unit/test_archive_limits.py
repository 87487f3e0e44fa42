"""What an archive may take of whoever reads it: bytes, entries, names and links."""

from __future__ import annotations

import tarfile
from dataclasses import replace

import pytest

from modelcache.errors import BadArchive
from modelcache.sources.archive import ArchiveLimits, members
from modelcache.sources.archive.limits import ALWAYS_BYTES
from modelcache.testing.archives import Written, tar_of, zip_of
from modelcache.units import MIB
from tests.unit.opened_archive import EXPECTED, GOOD, gz, opened, unpacked


def test_a_bomb_is_found_before_its_data_is_read() -> None:
    bomb = tarfile.TarInfo("zeros")
    bomb.size = 1 << 40
    head = bomb.tobuf(tarfile.GNU_FORMAT)
    for data in (gz(head + bytes(MIB)), head + bytes(MIB)):
        with pytest.raises(BadArchive, match="expands to more than") as caught:
            unpacked(data)
        assert caught.value.hint is not None
        assert "MODELCACHE_ARCHIVE_MAX_RATIO" in caught.value.hint


def test_zeros_behind_the_end_of_a_tar_are_no_way_around_the_limit() -> None:
    limits = ArchiveLimits(max_bytes=2 * MIB)
    assert unpacked(gz(GOOD["tar"] + bytes(MIB)), limits=limits) == EXPECTED
    with pytest.raises(BadArchive, match="expands to more than"):
        unpacked(gz(GOOD["tar"] + bytes(5 * MIB)), limits=limits)


def test_a_ratio_counts_above_what_any_archive_may() -> None:
    limits = ArchiveLimits(max_ratio=2)
    assert limits.bytes_of(1000) == ALWAYS_BYTES
    assert limits.bytes_of(ALWAYS_BYTES) == 2 * ALWAYS_BYTES
    assert ArchiveLimits(max_bytes=5).bytes_of(ALWAYS_BYTES) == 5
    with pytest.raises(BadArchive, match="expands"):
        unpacked(zip_of([Written("zeros", bytes(ALWAYS_BYTES + 1))], level=1), limits=limits)


def test_too_many_entries_are_refused() -> None:
    entries = [Written(f"d{number}/", kind=tarfile.DIRTYPE) for number in range(20)] + [Written("f", b"x")]
    for data in (tar_of(entries), zip_of(entries)):
        assert unpacked(data, limits=ArchiveLimits(max_entries=21)) == {"f": b"x"}
        with pytest.raises(BadArchive, match="more than 20 entries"):
            unpacked(data, limits=ArchiveLimits(max_entries=20))


def test_names_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in memory together, and packed they take next to nothing."""
    entries = [Written(f"{number:02}" + "n" * 98, b"x") for number in range(10)]
    monkeypatch.setattr(members, "MAX_NAMES_CHARACTERS", 1000)
    for pack in (tar_of, zip_of):
        assert len(unpacked(pack(entries))) == 10
        with pytest.raises(BadArchive, match="over 1,000 characters"):
            unpacked(pack([*entries, Written("e", b"x")]))


def test_each_link_counts_as_much_as_its_file() -> None:
    """20,000 hard links of 512 bytes each are no way to book any room."""
    entries = [
        Written("f", bytes(MIB)),
        *(Written(f"l{number}", kind=tarfile.LNKTYPE, target="f") for number in range(ALWAYS_BYTES // MIB)),
    ]
    for data in (gz(tar_of(entries)), gz(tar_of([replace(entry, kind=entry.kind.replace(b"1", b"2")) for entry in entries]))):
        with pytest.raises(BadArchive, match="expands to more than"):
            opened(data)
        assert len(opened(data, include=("f", "l1", "l2"))[1]) == 3
    assert len(opened(tar_of(entries[:-1]))[1]) == len(entries) - 1
