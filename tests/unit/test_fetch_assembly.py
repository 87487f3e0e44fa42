from __future__ import annotations

import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from modelcache.abc.ingest import IngestFile, Route
from modelcache.abc.snapshot import RefKey
from modelcache.digest import sha256
from modelcache.errors import DigestMismatch, StoreFault
from modelcache.fetch.assembly import Assembly
from modelcache.fetch.buffers import Buffer, BufferPool
from modelcache.testing.memory_ingest import MemoryIncoming
from modelcache.testing.memory_store import MemoryStore
from modelcache.testing.store_filling import content, digest_of, mark_of, table_of

pytestmark = pytest.mark.usefixtures("chunk_bytes")


class CountingPool(BufferPool):
    """Knows how many buffers are out, and the most that ever were."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.out = self.most = 0

    def try_take(self) -> Buffer | None:
        taken = super().try_take()
        self.out += taken is not None
        self.most = max(self.most, self.out)
        return taken

    def give_back(self, buffer: Buffer) -> None:
        self.out -= 1
        super().give_back(buffer)


def incoming(size_bytes: int) -> MemoryIncoming:
    return MemoryStore().ingest(RefKey("memory://x", "memory://x"), [IngestFile("f", size_bytes, "v", None)]).files[0]


def arrive(assembly: Assembly, file: MemoryIncoming, data: bytes, chunk: int, buffer: Buffer) -> tuple[Buffer, bool]:
    """As a worker does with one chunk."""
    part = data[chunk * 4096 : chunk * 4096 + 4096]
    buffer.view[: len(part)] = part
    file.write(chunk * 4096, buffer.view[: len(part)], Route.BUFFERED)
    file.mark(chunk, mark_of(part))
    buffer, whole = assembly.arrived(chunk, buffer, mark_of(part))
    buffer.view[:4096] = b"\xee" * 4096  # the buffer is the worker's again: nobody may still need what was in it
    return buffer, whole


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(12)), spare=st.integers(0, 13), tail=st.integers(1, 4096))
def test_any_order_and_any_number_of_buffers_give_the_same_digest(order: list[int], spare: int, tail: int) -> None:
    data = content(11 * 4096 + tail)
    file, pool = incoming(len(data)), CountingPool(spare)
    assembly = Assembly(file, [digest_of(data)], pool)
    buffer = Buffer()
    told = 0
    for chunk in order:
        buffer, whole = arrive(assembly, file, data, chunk, buffer)
        told += whole
    assert told == 1
    assert assembly.result("x") == (digest_of(data), table_of(data))
    assert pool.out == 0
    ahead = sum(chunk > min(set(range(12)) - set(order[:at])) for at, chunk in enumerate(order))
    assert pool.most <= min(spare, ahead)
    if spare >= ahead:
        assert assembly.read_back_bytes == 0


def test_many_threads_feed_one_file_and_one_hashes() -> None:
    data = content(200 * 4096)
    file, pool = incoming(len(data)), BufferPool(3)
    assembly = Assembly(file, [], pool)
    order = list(range(200))
    random.Random(7).shuffle(order)
    left, lock = iter(order), threading.Lock()

    def work() -> int:
        buffer, told = Buffer(), 0
        while True:
            with lock:
                chunk = next(left, None)
            if chunk is None:
                return told
            buffer, whole = arrive(assembly, file, data, chunk, buffer)
            told += whole

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(lambda _: work(), range(6))) == 1
    assert assembly.result("x")[0] == digest_of(data)
    taken = [pool.try_take() for _ in range(4)]
    assert taken.count(None) == 1  # all three came back


def test_what_reads_back_otherwise_than_it_was_written_is_a_fault_of_the_store() -> None:
    data = content(3 * 4096)
    file = incoming(len(data))
    assembly = Assembly(file, [], BufferPool(0))
    buffer, _ = arrive(assembly, file, data, 1, Buffer())
    file.write(4096, memoryview(b"x"), Route.BUFFERED)
    with pytest.raises(StoreFault, match="chunk 1 of `f`"):
        arrive(assembly, file, data, 0, buffer)


def test_restart_begins_from_the_first_byte_and_gives_buffers_back() -> None:
    good, bad = content(4 * 4096, seed=1), content(4 * 4096, seed=2)
    file, pool = incoming(len(good)), CountingPool(8)
    assembly = Assembly(file, [digest_of(good)], pool)
    buffer = Buffer()
    for chunk in (3, 1, 0, 2):
        buffer, whole = arrive(assembly, file, bad, chunk, buffer)
    assert whole
    with pytest.raises(DigestMismatch) as error:
        assembly.result("memory://x f")
    assert (error.value.expected, error.value.got) == (str(digest_of(good)), str(digest_of(bad)))
    assembly.restart()
    assert pool.out == 0
    for chunk in (2, 0, 3, 1):
        buffer, whole = arrive(assembly, file, good, chunk, buffer)
    assert whole
    assert assembly.result("x")[0] == digest_of(good)


def test_release_gives_back_what_waits_for_a_chunk_that_never_comes() -> None:
    data = content(4 * 4096)
    file, pool = incoming(len(data)), CountingPool(8)
    assembly = Assembly(file, [], pool)
    buffer = Buffer()
    for chunk in (1, 2, 3):
        buffer, _ = arrive(assembly, file, data, chunk, buffer)
    assert pool.out == 3
    assembly.release()
    assembly.release()
    assert pool.out == 0


def test_restart_gives_back_what_waits() -> None:
    data = content(4 * 4096)
    file, pool = incoming(len(data)), CountingPool(8)
    assembly = Assembly(file, [], pool)
    buffer, _ = arrive(assembly, file, data, 2, Buffer())
    assembly.restart()
    assert pool.out == 0
    for chunk in range(4):
        buffer, whole = arrive(assembly, file, data, chunk, buffer)
        assert whole == (chunk == 3)


def test_an_empty_file_is_hashed_from_the_start() -> None:
    assembly = Assembly(incoming(0), [], BufferPool(0))
    assert assembly.result("x")[0] == sha256(hashlib.sha256().hexdigest())


def test_a_pool_has_as_many_buffers_as_it_says_and_uses_them_again() -> None:
    pool = BufferPool(2)
    first, second = pool.try_take(), pool.try_take()
    assert first is not None
    assert second is not None
    assert pool.try_take() is None
    pool.give_back(first)
    assert pool.try_take() is first
    pool.give_back(first)
    pool.give_back(second)
    pool.trim()
    again = [pool.try_take(), pool.try_take(), pool.try_take()]
    assert [buffer is None for buffer in again] == [False, False, True]
    assert again[0] not in (first, second)
