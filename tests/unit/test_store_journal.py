from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.abc.ingest import IngestFile
from modelcache.digest import Digest, sha256
from modelcache.errors import Cancelled
from modelcache.store import durable
from modelcache.store.journal import RECORD_BYTES, Journal, Remembered, decode_journal, encode_entry, file_key

KEYS = [file_key(IngestFile(path, 10, version, None)) for path in ("a", "b") for version in ("1", "2")]
DONE = sha256("d" * 64)


@st.composite
def entries(draw: st.DrawFn) -> list[tuple[bytes, int | None, bytes]]:
    """(key, chunk, mark), or (key, None, …) for forgetting."""
    chunks = st.none() | st.integers(0, 5)
    marks = st.binary(min_size=16, max_size=16)
    return draw(st.lists(st.tuples(st.sampled_from(KEYS), chunks, marks), max_size=20))


def model(written: list[tuple[bytes, int | None, bytes]]) -> dict[bytes, Remembered]:
    found: dict[bytes, Remembered] = {}
    for key, chunk, mark in written:
        if chunk is None:
            found.pop(key, None)
        else:
            found.setdefault(key, Remembered()).marks[chunk] = mark
    return found


def write(journal: Journal, written: list[tuple[bytes, int | None, bytes]]) -> None:
    for key, chunk, mark in written:
        if chunk is None:
            journal.forgotten(key)
        else:
            journal.marked(key, chunk, mark)


@given(entries(), entries(), st.binary(max_size=RECORD_BYTES - 1))
def test_what_is_written_is_remembered_past_a_torn_record(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[bytes, int | None, bytes]],
    second: list[tuple[bytes, int | None, bytes]],
    torn: bytes,
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal.create(path)
    write(journal, first)
    journal.close()
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path)
    assert journal.read() == model(first)
    write(journal, second)
    assert journal.read() == model(first + second)
    journal.close()
    with pytest.raises(Cancelled):
        journal.marked(KEYS[0], 0, b"m" * 16)


@given(st.integers(0, RECORD_BYTES * 8 - 1))
def test_a_flipped_bit_costs_its_record_and_no_other(bit: int) -> None:
    records = [encode_entry(KEYS[number], number, bytes([number]) * 16) for number in range(3)]
    damaged = bytearray(records[1])
    damaged[bit // 8] ^= 1 << bit % 8
    assert set(decode_journal(records[0] + bytes(damaged) + records[2])) == {KEYS[0], KEYS[2]}


def test_booked_room_is_no_record(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal")
    journal.book(1000)
    journal.completed([(KEYS[0], DONE)])
    assert journal.read() == {KEYS[0]: Remembered({}, DONE)}
    assert (tmp_path / "journal").stat().st_size == RECORD_BYTES
    assert (tmp_path / "journal").stat().st_blocks * 512 >= 1000 * RECORD_BYTES
    journal.close()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = durable.write
    monkeypatch.setattr(durable, "write", lambda fd, data, offset: whole(fd, bytes(data[:7]), offset))
    journal = Journal.create(tmp_path / "journal")
    journal.marked(KEYS[0], 3, b"m" * 16)
    assert journal.read() == {KEYS[0]: Remembered({3: b"m" * 16})}
    journal.close()


def test_zeros_are_no_records() -> None:
    assert decode_journal(bytes(RECORD_BYTES * 3)) == {}


def test_keys_tell_path_size_and_version_apart() -> None:
    files = [IngestFile(*item, None) for item in (("a", 1, "v"), ("a", 11, "v"), ("a1", 1, "v"), ("a", 1, "1v"), ("a\x001", 1, "v"))]
    assert len({file_key(file) for file in files}) == len(files)
    assert file_key(files[0]) == file_key(IngestFile("a", 1, "v", Digest.parse(str(DONE))))
