"""Half-open byte ranges and sets of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes `start` (included) to `stop` (excluded) of a file; may be empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a byte range: [{self.start}, {self.stop})")

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def http_header(self) -> str:
        """Value of a `Range` header; HTTP counts the last byte in (RFC 9110 §14.1.2)."""
        if self.start == self.stop:
            raise ValueError("HTTP has no empty range")
        return f"bytes={self.start}-{self.stop - 1}"

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


class RangeSet:
    """A set of bytes kept as sorted, disjoint, non-touching ranges. Not thread-safe."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[ByteRange] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for item in ranges:
            self.add(item)

    def add(self, item: ByteRange) -> None:
        """Put the bytes of `item` in; those already here change nothing."""
        if item.start == item.stop:
            return
        first = bisect_left(self._stops, item.start)
        last = bisect_right(self._starts, item.stop)
        start, stop = item.start, item.stop
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def covers(self, item: ByteRange) -> bool:
        """Whether every byte of `item` is here (true of an empty range)."""
        if item.start == item.stop:
            return True
        at = bisect_right(self._starts, item.start) - 1
        return at >= 0 and item.stop <= self._stops[at]

    def missing(self, within: ByteRange) -> list[ByteRange]:
        """The parts of `within` that are not here, in order."""
        gaps = []
        at = within.start
        for held in self:
            if held.stop <= at:
                continue
            if held.start >= within.stop:
                break
            if held.start > at:
                gaps.append(ByteRange(at, held.start))
            at = max(at, held.stop)
        if at < within.stop:
            gaps.append(ByteRange(at, within.stop))
        return gaps

    @property
    def size_bytes(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def __iter__(self) -> Iterator[ByteRange]:
        return (ByteRange(start, stop) for start, stop in zip(self._starts, self._stops, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    def __repr__(self) -> str:
        return f"RangeSet({', '.join(str(item) for item in self)})"
