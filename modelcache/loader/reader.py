"""Reads extents with a few threads, several blocks at a time, wherever they land."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Self

from modelcache.errors import StoreFault
from modelcache.loader.checkpoint import told_of
from modelcache.loader.crew import Crew, Task
from modelcache.loader.files import TensorFile, Way
from modelcache.loader.landing import Landing, Staging
from modelcache.loader.plan import Extent
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange

THREADS = 4
"""Reads in flight: with blocks of 8 MiB, what reached the ceiling of the disk and of memory (`bench/README.md`, bench.load)."""

MAPPING_THREADS = 1
"""That put mapped pieces into the page tables, beside the one who waits for a piece and does others meanwhile. Two get 4 GiB there in half
the time of one, a third gains nothing, and takes CPU time from a consumer who needn't wait: 27 ms instead of 22 (2 cores)."""


class Reading:
    """One extent on its way.

    Attributes:
        landing: has its tensors, once it was waited for.
    """

    def __init__(self, extent: Extent, landing: Landing, parts: list[Task[tuple[Way, int]]], mapping: Crew, owner_pid: int) -> None:
        self.extent = extent
        self.landing = landing
        self._parts = parts
        self._mapping = mapping
        self._owner_pid = owner_pid

    @property
    def read_bytes(self) -> int:
        """Of what is read for it, and takes memory until it is handed out."""
        return self.landing.lent_bytes

    def wait(self) -> Mapping[Way, int]:
        """Wait until every byte is there, and see to mapped pieces meanwhile; how many came by which way.

        Raises:
            BadCheckpoint: the file shrank. StoreFault: the disk failed. MemoryError. Cancelled.
            RuntimeError: the load was begun before a fork, by the other process.
        """
        _expect_owner(self._owner_pid)
        ways: dict[Way, int] = {}
        for part in self._parts:
            self._mapping.help_until(part)
            way, size_bytes = part.result()
            ways[way] = ways.get(way, 0) + size_bytes
        return ways


class Reader:
    """Reads extents of one load. A context manager; what is not read when it ends is dropped, and reads that wait are cancelled."""

    def __init__(self, cancel: Cancellation, threads: int = THREADS) -> None:
        """
        Args:
            cancel: the load's own; asked for when the block ends with an error.
            threads: that read.
        """
        self._cancel = cancel
        self._owner_pid = os.getpid()
        self._crew = Crew(threads, "load", cancel)
        # another, so that the disk isn't idle while what is in memory gets into page tables: 0.1 s of a half resident load of 4 GiB
        self._mapping_crew = Crew(MAPPING_THREADS, "load-mapped", cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if os.getpid() != self._owner_pid:
            return  # a fork has none of the threads
        if kind is not None:
            self._cancel.cancel()
        try:
            self._mapping_crew.dismiss()
        finally:
            self._crew.dismiss()

    def start(self, extent: Extent, file: TensorFile, staging: Staging) -> Reading:
        """Begin to read an extent; blocks are read in the order in which extents were started. Raises MemoryError, StoreFault."""
        _expect_owner(self._owner_pid)
        with told_of(file.path):
            landing = staging.land(extent, file)
        crew = self._crew if landing.lent_bytes else self._mapping_crew
        parts = [crew.give(partial(self._fill, landing, file, block)) for block in landing.missing]
        return Reading(extent, landing, parts, self._mapping_crew, self._owner_pid)

    def _fill(self, landing: Landing, file: TensorFile, block: ByteRange) -> tuple[Way, int]:
        self._cancel.check()
        try:
            return landing.fill(file, block), block.size_bytes
        except OSError as error:
            raise StoreFault(f"the file can't be read ({error.strerror})", address=str(file.path)) from error


def _expect_owner(pid: int) -> None:
    """Raises RuntimeError: this is a fork of that process, and has none of its threads."""
    if pid != os.getpid():
        raise RuntimeError("a load goes on in the process that began it, and this is a fork of that one")
