"""Which pages the page cache is asked about, and what is read while mapped ones are in use."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import modelcache
from modelcache.loader import loading, residency
from modelcache.loader.files import Way
from modelcache.loader.residency import WINDOW_BYTES, WINDOW_EVERY_BYTES
from modelcache.loader.shard_file import ShardFile
from modelcache.ranges import ByteRange
from modelcache.units import MIB


def there_below(mark: int, asked: list[ByteRange], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has the pages before `mark` in memory."""

    def resident_pages(fd: int, span: ByteRange) -> int:
        asked.append(span)
        pages = range(span.start // 4096, (span.stop - 1) // 4096 + 1)
        return sum(page * 4096 < mark for page in pages)

    monkeypatch.setattr(residency, "_resident_pages", resident_pages)


@given(start_page=st.integers(0, 10_000), size_bytes=st.integers(1, 40 * MIB), data=st.data())
def test_windows_tell_of_a_long_run_within_one_step(start_page: int, size_bytes: int, data: st.DataObject) -> None:
    span = ByteRange(start_page * 4096, start_page * 4096 + size_bytes)
    mark = data.draw(st.integers(span.start // 4096, -(-span.stop // 4096))) * 4096
    asked: list[ByteRange] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        there_below(mark, asked, monkeypatch)
        share = residency.resident_share(-1, span)
    assert share is not None
    assert 0.0 <= share <= 1.0
    true_share = min(1.0, (mark - span.start) / span.size_bytes)
    assert abs(share - true_share) * span.size_bytes <= WINDOW_EVERY_BYTES
    assert all(span.start <= each.start < each.stop <= span.stop for each in asked)
    assert all(before.stop <= after.start for before, after in pairwise(asked))
    assert sum(each.size_bytes for each in asked) <= max(2 * WINDOW_BYTES, size_bytes // 32 + WINDOW_BYTES)
    if mark in (span.start, -(-span.stop // 4096) * 4096):
        assert share == (mark > span.start)


def test_a_block_that_is_there_to_its_middle_or_beyond_is_taken_for_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    block = ByteRange(8 * MIB, 16 * MIB)
    for mark, expected in ((11 * MIB, 0.0), (12 * MIB, 0.5), (13 * MIB, 1.0)):
        there_below(mark, [], monkeypatch)
        assert residency.resident_share(-1, block) == expected


def test_a_descriptor_that_is_none_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        residency.resident_share(fd, ByteRange(0, 1))


def test_the_disk_is_read_behind_what_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        save_file({f"t{number}": torch.full((MIB,), number, dtype=torch.int16)}, tmp_path / f"{number}.safetensors")
    read = threading.Event()
    real = ShardFile.read

    def told(self: ShardFile, block: ByteRange, into: memoryview) -> Way:
        read.set()
        return real(self, block, into)

    monkeypatch.setattr(ShardFile, "read", told)
    monkeypatch.setattr(ShardFile, "may_map", lambda self, span: self.path.name == "1.safetensors")
    monkeypatch.setattr(loading, "AHEAD_BYTES", 1)
    with closing(modelcache.stream(tmp_path, may_map=True)) as tensors:
        assert next(tensors)[0] == "t1"
        assert read.wait(60), "the second file is read while the first, mapped, is in the consumer's hands"
        name, tensor = next(tensors)
    assert name == "t2"
    assert tensor.eq(2).all()
