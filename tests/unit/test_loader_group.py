"""Ranks that meet and read together, as threads of one process: each block is read once, and whoever is missing is named."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from modelcache.errors import BadShard, Cancelled, GroupBroken, ModelCacheError, StoreFault
from modelcache.loader.exchange import Block, Exchange
from modelcache.loader.files import TensorFile, Way
from modelcache.loader.group import NodeGroup
from modelcache.loader.meeting import Arrival, Seat, Terms, _close_all, _seat_all, meet
from modelcache.loader.memory import Memory
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.loader.segment import Segment, create_segment
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.units import KIB

T = TypeVar("T")
NAME = f"test-{os.getpid()}"
WAIT_S = 60.0


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


def blocks_of(count: int) -> list[Block]:
    """So small in their slots that a test of many takes no time."""
    return [Block(0, ByteRange(number * BLOCK_BYTES, number * BLOCK_BYTES + 4 * KIB)) for number in range(count)]


def arrival(rank: int, world: int, *, reads: str = "same", timeout_s: float = WAIT_S, name: str = NAME) -> Arrival:
    return Arrival(name, rank, tuple(range(world)), reads, timeout_s)


def settle(slots: int) -> Callable[[], Terms]:
    return lambda: Terms(slots, frozenset({1, 70}))


@contextmanager
def each(world: int, act: Callable[[int], T]) -> Iterator[list[Future[T]]]:
    """Every rank in a thread of its own."""
    with ThreadPoolExecutor(world) as threads:
        yield [threads.submit(act, rank) for rank in range(world)]


def seats(world: int, slots: int) -> list[Seat]:
    with each(world, lambda rank: meet(arrival(rank, world), settle(slots), Cancellation())) as found:
        return [seat.result() for seat in found]


def leave(seat: Seat) -> None:
    for link in seat.links.values():
        link.close()
    os.close(seat.segment_fd)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Room for so many more open files than there are, all lower numbers taken."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(int(name) for name in os.listdir("/proc/self/fd"))
    with ExitStack() as fillers, ExitStack() as room:
        while fillers.enter_context(socket.socket()).fileno() < top:
            pass
        last = [room.enter_context(socket.socket()).fileno() for _ in range(spare + 1)][-1]
        room.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (last, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- meeting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 5])
def test_all_get_links_to_each_other_the_memory_and_the_terms(world: int) -> None:
    before = open_fds()
    found = seats(world, slots=2)
    for rank, seat in enumerate(found):
        assert set(seat.links) == set(range(world)) - {rank}
        assert seat.skipped == {1, 70}
        for other, link in seat.links.items():
            link.send(f"{rank}>{other}".encode())
    for rank, seat in enumerate(found):
        assert {link.recv(100).decode() for link in seat.links.values()} == {f"{other}>{rank}" for other in seat.links}
    found_segments = [Segment(os.dup(seat.segment_fd)) for seat in found]
    with found_segments[0].slot(1) as slot:
        slot[:5] = b"bytes"
    read = bytearray(5)
    for segment in found_segments:
        segment.copy(1, memoryview(read))
        assert (bytes(read), segment.slots) == (b"bytes", 2)
        segment.close()
    for seat in found:
        leave(seat)
    assert open_fds() == before
    assert arrival(0, world).address[1:] not in Path("/proc/net/unix").read_text()


def test_the_memory_can_not_be_made_smaller_and_is_nobody_elses() -> None:
    fd = create_segment(1)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
    finally:
        os.close(fd)
    other = os.memfd_create("not-sealed")
    before = open_fds()
    with pytest.raises(GroupBroken, match="not sealed"):
        Segment(other)
    assert open_fds() == before - 1


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(GroupBroken, match=r"missing: 1, 2"):
        meet(arrival(0, 3, timeout_s=0.1), settle(1), Cancellation())
    with pytest.raises(GroupBroken, match="rank 0 did not come"):
        meet(arrival(1, 3, timeout_s=0.1), settle(1), Cancellation())


def test_who_waits_for_the_others_is_told_that_one_did_not_come() -> None:
    def come(rank: int) -> Seat:
        return meet(arrival(rank, 3, timeout_s=1.0 if rank == 0 else 5.0), settle(1), Cancellation())

    with each(2, come) as found:
        for seat in found:
            with pytest.raises(GroupBroken, match=r"missing: (1, )?2|rank 0 did not come"):  # where this machine stood still for 1 s
                seat.result()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (arrival(1, 2, reads="another model"), "rank 1 of group `.*` reads something else than rank 0"),
        (arrival(1, 3), "rank 1 of group `.*` expects other ranks than rank 0"),
    ],
)
def test_ranks_that_want_different_things_are_both_told(other: Arrival, said: str) -> None:
    with each(2, lambda rank: meet(other if rank else arrival(0, 2), settle(1), Cancellation())) as found:
        for seat in found:
            with pytest.raises(BadShard, match=said) as caught:
                seat.result()
            assert caught.value.expected != caught.value.got


def test_a_rank_that_died_before_all_were_there_may_come_again() -> None:
    def come(rank: int) -> Seat:
        if rank == 1:
            first = arrival(1, 2)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
                while True:
                    with suppress(ConnectionRefusedError):
                        link.connect(first.address)
                        break
                link.send(b"{}")
        return meet(arrival(rank, 2), settle(1), Cancellation())

    with each(2, come) as found:
        for seat in found:
            leave(seat.result())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_meeting_is_cancelled(rank: int) -> None:
    cancel = Cancellation()
    timer = threading.Timer(0.05, cancel.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        meet(arrival(rank, 2), settle(1), cancel)
    timer.join()


@pytest.mark.parametrize("spare", range(12))
def test_nothing_is_left_open_where_one_is_short_of_descriptors(spare: int) -> None:
    """3 links, each with two ends, and the memory: 7 are enough."""
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    callers = {rank: pair[0] for rank, pair in pairs.items()}
    before = open_fds()
    try:
        with few_descriptors(spare), pytest.raises((GroupBroken, MemoryError)) if spare < 7 else nullcontext():
            leave(_seat_all(arrival(0, 3), callers, Terms(1, frozenset())))
        assert open_fds() == before
    finally:
        _close_all(callers)
        for _, other in pairs.values():
            other.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NodeGroup(""), "needs a name"),
        (lambda: NodeGroup("g", memory_bytes=BLOCK_BYTES - 1), "so much memory"),
        (lambda: NodeGroup("g", memory_bytes=1 << 40), "so much memory"),
        (lambda: NodeGroup("g", timeout_s=0), "no time"),
        (lambda: NodeGroup("g", ranks=[0, 1]).member(2, 4), "other ranks"),
        (lambda: NodeGroup("g", ranks=[0, 4]).member(0, 4), "other ranks"),
    ],
)
def test_groups_that_can_not_be(make: Callable[[], object], said: str) -> None:
    with pytest.raises(BadShard, match=said):
        make()


def test_the_ranks_of_one_node_of_several() -> None:
    assert NodeGroup("g", ranks=[5, 4]).member(5, 8).ranks == (4, 5)
    assert NodeGroup("g").member(1, 3).ranks == (0, 1, 2)


# -- exchange ---------------------------------------------------------------------------------------------------------


def take_all(exchange: Exchange, count: int, cancel: Cancellation) -> list[tuple[int, Way]]:
    """As the reader of a load does: four at a time, begun in order. What each block holds, and how it came."""

    def take(number: int) -> tuple[int, Way]:
        into = bytearray(4 * KIB)
        way = exchange.take(number, memoryview(into), cancel)
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

    def open_file(number: int) -> TensorFile:
        files.append(CountedFile(reads))
        return files[-1]

    def run(rank: int) -> list[tuple[int, Way]]:
        with Exchange(joined[rank], rank, blocks_of(count), open_file, WAIT_S) as exchange:
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
        with Exchange(joined[rank], rank, blocks_of(20), lambda number: file, timeout_s) as exchange:
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

    def open_file(number: int) -> TensorFile:
        raise ValueError("an error that nobody thought of")

    def run(rank: int) -> object:
        opened = (lambda number: CountedFile(Counter())) if rank else open_file
        with Exchange(joined[rank], rank, blocks_of(20), opened, WAIT_S) as exchange:
            return take_all(exchange, 20, Cancellation())

    with each(2, run) as found:
        first, second = (each.exception() for each in found)
    assert isinstance(first, ValueError), first
    assert isinstance(second, GroupBroken), second
    assert "rank 0 of the group ended" in str(second)


def test_without_threads_to_read_with_a_rank_ends_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = open_fds(), threading.active_count()
    ours, others = socket.socketpair()
    exchange = Exchange(Seat({1: ours}, create_segment(2), frozenset()), 0, blocks_of(20), lambda number: CountedFile(Counter()), WAIT_S)
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
        slow = ends.enter_context(Exchange(joined[1], 1, blocks_of(4), lambda number: CountedFile(reads), WAIT_S))
        with Exchange(joined[0], 0, blocks_of(4), lambda number: CountedFile(reads), WAIT_S) as fast:
            take_all(fast, 4, Cancellation())
        assert [number for number, _ in take_all(slow, 4, Cancellation())] == [0, 1, 2, 3]
