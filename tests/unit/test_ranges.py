"""RangeSet against a plain set of integers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.ranges import ByteRange, RangeSet

TOP = 12
SPANS = st.tuples(st.integers(0, TOP), st.integers(0, TOP)).map(lambda ends: ByteRange(min(ends), max(ends)))


def numbers(spans: list[ByteRange]) -> set[int]:
    return {number for span in spans for number in range(span.start, span.stop)}


@given(st.lists(SPANS, max_size=12), SPANS)
def test_behaves_as_a_set_of_bytes(spans: list[ByteRange], asked: ByteRange) -> None:
    held, model = RangeSet(spans), numbers(spans)
    kept = list(held)
    assert numbers(kept) == model
    assert held.size_bytes == len(model)
    assert all(before.stop < after.start for before, after in pairwise(kept)), "sorted, disjoint and not touching"
    assert all(span.size_bytes for span in kept)
    assert held.covers(asked) == (numbers([asked]) <= model)
    gaps = held.missing(asked)
    assert numbers(gaps) == numbers([asked]) - model
    assert sum(gap.size_bytes for gap in gaps) == len(numbers(gaps))
    assert gaps == sorted(gaps)
    assert all(gap.size_bytes for gap in gaps)


@given(st.lists(SPANS, max_size=8), st.data())
def test_order_of_adding_does_not_matter(spans: list[ByteRange], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(spans))
    assert RangeSet(spans) == RangeSet(shuffled)
    assert repr(RangeSet(spans)) == repr(RangeSet(shuffled))
    assert (RangeSet(spans) == RangeSet([ByteRange(0, TOP + 1)])) is False
    assert RangeSet(spans) != set()


@pytest.mark.parametrize(("start", "stop"), [(-1, 0), (2, 1), (-2, -1)])
def test_what_is_no_range_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="not a byte range"):
        ByteRange(start, stop)


def test_http_counts_the_last_byte_in() -> None:
    assert ByteRange(0, 1).http_header == "bytes=0-0"
    assert ByteRange(5, 10).http_header == "bytes=5-9"
    with pytest.raises(ValueError, match="no empty range"):
        _ = ByteRange(5, 5).http_header
