"""Ranks as threads of one process that come to a meeting."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from modelcache.loader.meeting import Arrival, Seat, Terms, meet
from modelcache.patience import Cancellation

T = TypeVar("T")
NAME = f"test-{os.getpid()}"
WAIT_S = 60.0


def arrival(rank: int, world: int, *, reads: str = "same", timeout_s: float = WAIT_S) -> Arrival:
    return Arrival(NAME, rank, tuple(range(world)), reads, timeout_s)


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
    gc.collect()  # what an earlier test left
    return len(os.listdir("/proc/self/fd"))
