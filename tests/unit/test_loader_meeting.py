"""Ranks that meet, as threads of one process: all get links to each other and the memory, and whoever is missing is named."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from modelcache.errors import BadShard, Cancelled, GroupBroken
from modelcache.loader.group import NodeGroup
from modelcache.loader.meeting import Arrival, Seat, Terms, _close_all, _seat_all, meet
from modelcache.loader.plan import BLOCK_BYTES
from modelcache.loader.segment import Segment, create_segment
from modelcache.patience import Cancellation
from tests.unit.ranks import arrival, each, leave, open_fds, seats, settle


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
        segment.copy(1, 0, memoryview(read))
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
