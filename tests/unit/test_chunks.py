"""Chunks of a file and the chunk table's bytes, which are format 1 on disk."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelcache.chunks import CHUNK_BYTES, MARK_BYTES, ChunkTable, chunk_count, chunk_range
from modelcache.errors import DamagedRecord

SIZES = st.integers(0, 20 * CHUNK_BYTES)
MARK = bytes(range(16))
TABLE = ChunkTable(CHUNK_BYTES + 1, (MARK, b"\xff" * 16))
GOLDEN = b"modelcache chunks 1\n" + bytes.fromhex("0000000000400001") + MARK + b"\xff" * 16


@given(SIZES)
@example(0)
@example(1)
@example(CHUNK_BYTES)
@example(CHUNK_BYTES + 1)
def test_chunks_tile_a_file(size_bytes: int) -> None:
    spans = [chunk_range(index, size_bytes) for index in range(chunk_count(size_bytes))]
    assert [span.start for span in spans] == [index * CHUNK_BYTES for index in range(len(spans))]
    assert [span.stop for span in spans[:-1]] == [span.start for span in spans[1:]]
    assert all(0 < span.size_bytes <= CHUNK_BYTES for span in spans)
    assert (spans[-1].stop if spans else 0) == size_bytes


def test_golden_bytes() -> None:
    assert TABLE.encode() == GOLDEN
    assert ChunkTable.decode(GOLDEN) == TABLE
    assert ChunkTable(0, ()).encode() == b"modelcache chunks 1\n" + bytes(8)


@given(SIZES)
def test_what_is_written_reads_back(size_bytes: int) -> None:
    table = ChunkTable(size_bytes, tuple(index.to_bytes(MARK_BYTES, "big") for index in range(chunk_count(size_bytes))))
    assert ChunkTable.decode(table.encode()) == table


@pytest.mark.parametrize("length", [*range(len(GOLDEN)), len(GOLDEN) + 1, len(GOLDEN) + MARK_BYTES])
def test_another_length_is_refused(length: int) -> None:
    with pytest.raises(DamagedRecord) as caught:
        ChunkTable.decode((GOLDEN * 2)[:length], address="chunks/x")
    assert caught.value.address == "chunks/x"


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(DamagedRecord):
        ChunkTable.decode(data)


@pytest.mark.parametrize("at", range(28))
def test_a_changed_head_is_refused_or_means_the_same_number_of_chunks(at: int) -> None:
    damaged = bytearray(GOLDEN)
    damaged[at] ^= 0x40
    if at == 27:
        assert ChunkTable.decode(bytes(damaged)).size_bytes == CHUNK_BYTES + 0x41
    elif at == 26:
        assert ChunkTable.decode(bytes(damaged)).size_bytes == CHUNK_BYTES + 0x4001
    else:
        with pytest.raises(DamagedRecord):
            ChunkTable.decode(bytes(damaged))


@pytest.mark.parametrize(("size_bytes", "marks"), [(0, (MARK,)), (1, ()), (CHUNK_BYTES, (MARK, MARK)), (1, (MARK[:15],))])
def test_marks_that_are_no_table_are_refused(size_bytes: int, marks: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="not the chunk table"):
        ChunkTable(size_bytes, marks)
