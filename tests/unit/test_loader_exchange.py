"""Ranks that read together, as threads of one process: each block is read once, and who ends early ends all."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelcache.errors import Cancelled, GroupBroken, ModelCacheError, StoreFault
from modelcache.loader.council import Council
from modelcache.loader.division import Block, Division
from modelcache.loader.exchange import Exchange
from modelcache.loader.files import TensorFile, Way
from modelcache.loader.group import NodeGroup
from modelcache.loader.meeting import Seat
from modelcache.loader.memory import Memory
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.loader.segment import create_segment
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import KIB
from tests.unit.ranks import WAIT_S, each, open_fds, seats


class CountedFile:
    """A file whose blocks hold their own number, and that knows who read them."""

    path = Path("counted")

    def __init__(self, reads: Counter[int], fail_at: int | None = None) -> None:
        self.reads = reads
        self.closed = False
        self._fail_at = fail_at

    def may_map(self, span: ByteRange) -> bool:
        return False

    def mapped(self, span: ByteRange) -> Memory:
        raise AssertionError("nothing is mapped here")

    def read(self, block: ByteRange, into: memoryview) -> Way:
        number = block.start // BLOCK_BYTES
        if number == self._fail_at:
            raise OSError(5, "Input/output error")
        self.reads[number] += 1
        into[: block.size_bytes] = number.to_bytes(4, "little") * (block.size_bytes // 4)
        return Way.DIRECT

    def close(self) -> None:
        self.closed = True


def even(count: int, world: int) -> Division:
    """Of blocks so small in their slots that a test of many takes no time."""
    blocks = [Block(0, ByteRange(number * BLOCK_BYTES, number * BLOCK_BYTES + 4 * KIB)) for number in range(count)]
    return Division.even(blocks, range(world))


def take_all(exchange: Exchange, count: int, cancel: Cancellation) -> list[tuple[int, Way]]:
    """As the reader of a load does: four at a time, begun in order. What each block holds, and how it came."""

    def take(number: int) -> tuple[int, Way]:
        into = bytearray(4 * KIB)
        way = exchange.take(number, 0, memoryview(into), cancel)
        assert into == into[:4] * KIB
        return int.from_bytes(into[:4], "little"), way

    with ThreadPoolExecutor(4) as threads:
        return [each.result() for each in [threads.submit(take, number) for number in range(count)]]


@pytest.mark.parametrize(("world", "slots", "count"), [(2, 1, 40), (2, 3, 100), (3, 2, 64), (4, 8, 200), (4, 2, 3), (5, 1, 12)])
def test_each_block_is_read_once_and_comes_to_all(world: int, slots: int, count: int) -> None:
    reads: Counter[int] = Counter()
    files: list[CountedFile] = []
    joined = seats(world, slots)
    before = threading.active_count()

    def open_file(number: int, ended: Cancellation) -> TensorFile:
        files.append(CountedFile(reads))
        return files[-1]

    def run(rank: int) -> list[tuple[int, Way]]:
        with Exchange(joined[rank], rank, even(count, world), open_file, WAIT_S) as exchange:
            return take_all(exchange, count, Cancellation())

    with each(world, run) as found:
        results = [each.result() for each in found]
    assert reads == dict.fromkeys(range(count), 1)
    for rank, got in enumerate(results):
        assert [number for number, _ in got] == list(range(count))
        assert [number for number, way in got if way is Way.DIRECT] == list(range(rank, count, world))
    assert all(file.closed for file in files)
    assert threading.active_count() == before


def broken(
    world: int, act: Callable[[int, Exchange], object], *, timeout_s: float = WAIT_S, fail_at: int | None = None
) -> Sequence[ModelCacheError]:
    """What each rank fails with."""
    joined = seats(world, 2)

    def run(rank: int) -> object:
        file = CountedFile(Counter(), fail_at)
        with Exchange(joined[rank], rank, even(20, world), lambda number, ended: file, timeout_s) as exchange:
            return act(rank, exchange)

    with each(world, run) as found:
        errors = [each.exception() for each in found]
    assert all(isinstance(each, ModelCacheError) for each in errors), errors
    return [each for each in errors if isinstance(each, ModelCacheError)]


def test_a_disk_that_fails_one_rank_ends_all() -> None:
    errors = broken(3, lambda rank, exchange: take_all(exchange, 20, Cancellation()), fail_at=7)
    assert isinstance(errors[1], StoreFault)
    assert "Input/output error" in str(errors[1])
    assert all(isinstance(errors[rank], GroupBroken) and "ended before its load did" in str(errors[rank]) for rank in (0, 2))


def test_whatever_ends_one_that_reads_ends_all() -> None:
    """Not only what files and disks fail with."""
    joined = seats(2, 2)

    def open_file(number: int, ended: Cancellation) -> TensorFile:
        raise ValueError("an error that nobody thought of")

    def run(rank: int) -> object:
        opened = (lambda number, ended: CountedFile(Counter())) if rank else open_file
        with Exchange(joined[rank], rank, even(20, 2), opened, WAIT_S) as exchange:
            return take_all(exchange, 20, Cancellation())

    with each(2, run) as found:
        first, second = (each.exception() for each in found)
    assert isinstance(first, ValueError), first
    assert isinstance(second, GroupBroken), second
    assert "rank 0 of the group ended" in str(second)


def test_without_threads_to_read_with_a_rank_ends_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = open_fds(), threading.active_count()
    ours, others = socket.socketpair()
    exchange = Exchange(
        Seat({1: ours}, create_segment(2), frozenset()), 0, even(20, 2), lambda number, ended: CountedFile(Counter()), WAIT_S
    )
    start, started = threading.Thread.start, Counter[str]()

    def short_of_threads(thread: threading.Thread) -> None:
        started["threads"] += 1
        if started["threads"] == 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", short_of_threads)
    with others, pytest.raises(GroupBroken, match="can't start"), exchange:
        raise AssertionError("unreachable")
    assert (open_fds(), threading.active_count()) == (before, threads)


class ArrivingFile(CountedFile):
    """Nothing of it comes; its reads wait."""

    def __init__(self, ended: Cancellation, waits: threading.Event) -> None:
        super().__init__(Counter())
        self._ended = ended
        self._waits = waits

    def read(self, block: ByteRange, into: memoryview) -> Way:
        self._waits.set()
        self._ended.wait(WAIT_S)
        raise AssertionError("nobody ended it")


def part_of_two(kind: str, waits: threading.Event) -> tuple[Exchange | Council, socket.socket]:
    """The first rank's part in a group of two, and the other end of its link."""
    ours, others = socket.socketpair()
    if kind == "council":
        return Council(NodeGroup("two").member(0, 2), {1: ours}), others
    seat = Seat({1: ours}, create_segment(2), frozenset())
    return Exchange(seat, 0, even(20, 2), lambda number, ended: ArrivingFile(ended, waits), WAIT_S), others


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("kind", ["exchange", "council"])
def test_ctrl_c_while_threads_of_a_group_begin_leaves_none(kind: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads, start, waits = open_fds(), threading.active_count(), threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        if not runs:
            vars(thread)["_started"].wait = lambda *timeout: None  # whoever starts a thread waits until it runs
        start(thread)
        if runs and kind == "exchange":
            assert waits.wait(WAIT_S)
        raise KeyboardInterrupt

    part, others = part_of_two(kind, waits)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with others, pytest.raises(KeyboardInterrupt), part:
        raise AssertionError("unreachable")
    assert (open_fds(), threading.active_count()) == (before, threads)


def test_one_that_leaves_ends_the_others() -> None:
    def act(rank: int, exchange: Exchange) -> object:
        if rank == 2:
            raise Cancelled("cancelled")
        return take_all(exchange, 20, Cancellation())

    errors = broken(3, act)
    assert [str(error) for error in errors[:2]] == ["rank 2 of the group ended before its load did"] * 2


def test_one_that_stands_still_is_waited_for_until_the_deadline() -> None:
    others_failed = threading.Barrier(3)

    def act(rank: int, exchange: Exchange) -> object:
        try:
            if rank != 1:
                take_all(exchange, 20, Cancellation())
        except GroupBroken:
            others_failed.wait(WAIT_S)
            raise
        others_failed.wait(WAIT_S)
        raise Cancelled("cancelled")

    errors = broken(3, act, timeout_s=0.3)
    assert all("no block came within 0.3 s" in str(errors[rank]) for rank in (0, 2))


def test_a_wait_for_a_block_is_cancelled() -> None:
    cancel = Cancellation()
    gone = threading.Event()

    def act(rank: int, exchange: Exchange) -> object:
        if rank == 1:
            assert gone.wait(WAIT_S)
            raise Cancelled("cancelled")
        timer = threading.Timer(0.05, cancel.cancel)
        timer.start()
        try:
            return take_all(exchange, 20, cancel)
        finally:
            timer.join()
            gone.set()

    assert isinstance(broken(2, act)[0], Cancelled)


def test_a_rank_that_is_done_may_leave_while_others_still_take() -> None:
    joined = seats(2, 4)
    reads: Counter[int] = Counter()
    with ExitStack() as ends:
        slow = ends.enter_context(Exchange(joined[1], 1, even(4, 2), lambda number, ended: CountedFile(reads), WAIT_S))
        with Exchange(joined[0], 0, even(4, 2), lambda number, ended: CountedFile(reads), WAIT_S) as fast:
            take_all(fast, 4, Cancellation())
        assert [number for number, _ in take_all(slow, 4, Cancellation())] == [0, 1, 2, 3]
