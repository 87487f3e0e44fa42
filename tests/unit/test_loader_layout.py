"""Where tensors lie on a device: aligned, apart, and every byte of theirs copied once."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from modelcache.loader.header import Dtype, TensorEntry
from modelcache.loader.layout import PAGE_BYTES, RUN_ALIGNMENT, TENSOR_ALIGNMENT, layout
from modelcache.ranges import ByteRange


@st.composite
def entries(draw: st.DrawFn) -> list[TensorEntry]:
    """Tensors in file order, with and without gaps, of any size and start."""
    at = draw(st.integers(0, 5000))
    found = []
    for number, (gap, size_bytes) in enumerate(draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 16, 700]), st.integers(0, 300))))):
        at += gap
        found.append(TensorEntry(f"t{number}", Dtype.U8, (size_bytes,), ByteRange(at, at + size_bytes)))
        at += size_bytes
    return found


@given(entries(), st.integers(1, 400), st.booleans())
def test_every_tensor_is_aligned_and_gets_its_bytes_once(tensors: Sequence[TensorEntry], block_bytes: int, by_pages: bool) -> None:
    planned = layout(tensors, by_pages=by_pages)
    full = [entry for entry in tensors if entry.span.size_bytes]
    device: list[int | None] = [None] * planned.size_bytes  # which byte of the file came there
    for start in range(0, max((entry.span.stop for entry in tensors), default=0), block_bytes):
        for piece in planned.pieces(ByteRange(start, start + block_bytes)):
            assert piece.size_bytes > 0
            assert piece.offset + piece.size_bytes <= block_bytes
            for index in range(piece.size_bytes):
                assert device[piece.at + index] is None
                device[piece.at + index] = start + piece.offset + index
    for entry in full:
        place = planned.place_of(entry)
        assert place % TENSOR_ALIGNMENT == 0
        assert device[place : place + entry.span.size_bytes] == list(range(entry.span.start, entry.span.stop))
    copied = sum(byte is not None for byte in device)
    assert copied == sum(entry.span.size_bytes for entry in full)
    assert planned.size_bytes - copied <= (2 * PAGE_BYTES if by_pages else RUN_ALIGNMENT) * len(full)
    if by_pages:
        assert all(run.at % PAGE_BYTES == run.span.start % PAGE_BYTES for run in planned.runs if run.span.start % TENSOR_ALIGNMENT == 0)


def test_what_is_aligned_in_the_file_is_one_run() -> None:
    tensors = [TensorEntry(f"t{at}", Dtype.BF16, (4096,), ByteRange(100 + at, 100 + at + 8192)) for at in range(0, 9 * 8192, 8192)]
    planned = layout(tensors)
    assert len(planned.runs) == 1
    assert planned.size_bytes == 9 * 8192
    assert [planned.place_of(entry) for entry in tensors] == [number * 8192 for number in range(9)]


def test_no_bytes_take_no_memory() -> None:
    planned = layout([TensorEntry("nothing", Dtype.F32, (0, 3), ByteRange(8, 8))])
    assert planned.size_bytes == 0
    assert list(planned.pieces(ByteRange(0, 100))) == []
