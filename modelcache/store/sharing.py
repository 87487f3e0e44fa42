"""Block sharing: equal chunks of different blobs use the same blocks, where the file system can (XFS, btrfs)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from modelcache.abc.upkeep import DedupeReport
from modelcache.chunks import CHUNK_BYTES, MARK_BYTES, ChunkTable, chunk_count, chunk_range
from modelcache.digest import Digest
from modelcache.errors import StoreReadOnly
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.store import durable
from modelcache.store.background import give_way
from modelcache.store.blobs import Blobs, readable_table
from modelcache.store.extents import can_share, doubly_used_bytes, places
from modelcache.store.filesystem import filesystem_magic
from modelcache.store.parts import Compartment, Parts

PASS_CHUNKS = 500_000
"""Marks kept in memory at once (about 100 MB, of 2 TB of models): more are looked at in several passes over the tables."""
SHARING = (0x58465342, 0x9123683E)
"""`f_type` of XFS and btrfs: only there FIEMAP is asked."""
INCAPABLE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM)
"""These two files can't share: of different settings (nodatacow, a swap file, encryption), or made read-only for all."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob whose chunks may share blocks with others of its compartment.

    Attributes:
        arrived_s: when its chunk table was written: the later one gives its blocks up.
    """

    digest: Digest
    path: Path
    size_bytes: int
    arrived_s: float
    held: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk of a candidate."""

    candidate: int
    span: ByteRange


class Sharing:
    """`Upkeep.dedupe`. Finds equal chunks by their marks, all at offsets that are multiples of the chunk size; the kernel compares
    the bytes. Equal bytes at other distances can't be found so, and could be shared only if those are multiples of a block."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def dedupe(self, cancel: Cancellation, progress: Callable[[DedupeReport], None] | None) -> DedupeReport:
        """Raises Cancelled, StoreReadOnly."""
        if self._parts.root.read_only:
            raise StoreReadOnly("a store that can't be written can't be changed", address=self._parts.root.address)
        if not can_share(self._parts.root.layout.trash):
            return DedupeReport(possible=False)
        with ThreadPoolExecutor(1, "share", initializer=give_way) as worker:
            return worker.submit(self._share, cancel, progress).result()

    def doubly_used_bytes(self) -> int:
        """Blocks that blobs share with each other, counted as often as they are used beyond the first time."""
        if filesystem_magic(self._parts.root.layout.root) not in SHARING:
            return 0
        every = (row for compartment in self._parts.compartments() for row in compartment.blobs.every())
        return doubly_used_bytes(path for path, _, found in every if found.st_size > CHUNK_BYTES)

    def _share(self, cancel: Cancellation, progress: Callable[[DedupeReport], None] | None) -> DedupeReport:
        report = DedupeReport(possible=True)
        for compartment in self._parts.compartments():  # one by one: whose blocks are shared with whom can be seen from outside
            candidates = self._candidates(compartment)
            chunks = sum(chunk_count(item.size_bytes) for item in candidates)
            passes = max(1, -(-chunks // PASS_CHUNKS))
            report = replace(report, looked_chunks=report.looked_chunks + chunks)
            for number in range(passes):
                for older, newer in self._equal(compartment.blobs, candidates, number, passes):
                    cancel.check()
                    report = self._share_two(candidates, older, newer, report)
                    if progress is not None:
                        progress(report)
        return report

    def _candidates(self, compartment: Compartment) -> list[Candidate]:
        """Blobs of several chunks, in the order in which they came."""
        held, layout = self._held(compartment.name), self._parts.root.layout.within(compartment.name)
        found = []
        for path, digest, status in compartment.blobs.every():
            if path.name != digest.hex:
                continue
            try:
                arrived_s = os.stat(layout.table(digest)).st_mtime
            except FileNotFoundError:
                continue
            found.append(Candidate(digest, path, status.st_size, arrived_s, digest.hex in held))
        return sorted(found, key=lambda item: (item.arrived_s, item.digest.hex))

    def _held(self, compartment: str) -> set[str]:
        """Blobs of snapshots of this compartment that somebody holds; of all of them if the leases can't be read."""
        leases, unclear = self._parts.leases.holding()
        names = self._parts.snapshots.every() if unclear else {lease.manifest for lease in leases}
        summaries = (self._parts.snapshots.summary(name) for name in names)
        return {digits for summary in summaries if summary.compartment == compartment for digits in summary.names}

    @staticmethod
    def _equal(blobs: Blobs, candidates: list[Candidate], number: int, passes: int) -> Iterator[tuple[Place, Place]]:
        """Pairs of equal marks, the earlier one first; of marks whose first two bytes fall to this pass."""
        first: dict[bytes, Place] = {}
        for index, candidate in enumerate(candidates):
            table = readable_table(blobs, candidate.digest)
            for mark, place in _marks(index, table):
                if int.from_bytes(mark[:2], "big") * passes >> 16 != number:
                    continue
                known = first.setdefault(mark, place)
                if known is not place:
                    yield known, place

    def _share_two(self, candidates: list[Candidate], older: Place, newer: Place, report: DedupeReport) -> DedupeReport:
        """One pair. The unheld one gives its blocks up: where a reader has it mapped, its pages come and go meanwhile."""
        source, target = (newer, older) if candidates[newer.candidate].held else (older, newer)
        size_bytes = older.span.size_bytes
        if candidates[target.candidate].held:
            return replace(report, held_bytes=report.held_bytes + size_bytes)
        with ExitStack() as opened:
            try:
                fds = [_open(candidates[place.candidate].path, opened) for place in (source, target)]
                if (same := places(fds[0], source.span.start, size_bytes)) and same == places(fds[1], target.span.start, size_bytes):
                    return replace(report, already_bytes=report.already_bytes + size_bytes)
                done = _dedupe(fds[0], source.span, fds[1], target.span)
            except FileNotFoundError:
                return report  # Evicted meanwhile.
            except OSError as error:
                if error.errno not in INCAPABLE:
                    raise
                return report
            for fd, place in zip(fds, (source, target), strict=True):
                if not candidates[place.candidate].held:
                    os.posix_fadvise(fd, place.span.start, size_bytes, os.POSIX_FADV_DONTNEED)
        if done is None:
            return replace(report, differing_bytes=report.differing_bytes + size_bytes)
        return replace(report, shared_bytes=report.shared_bytes + done)


def _marks(index: int, table: ChunkTable | None) -> Iterator[tuple[bytes, Place]]:
    """The key and place of each chunk of a table: its mark, and for a shorter one also its length."""
    if table is None:
        return
    full_bytes = chunk_range(0, table.size_bytes).size_bytes
    for number, mark in enumerate(table.marks):
        span = chunk_range(number, table.size_bytes)
        key = mark if span.size_bytes == full_bytes else mark + span.size_bytes.to_bytes(MARK_BYTES, "big")
        yield key, Place(index, span)


def _open(path: Path, opened: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    opened.callback(os.close, fd)
    return fd


def _dedupe(source_fd: int, source: ByteRange, target_fd: int, target: ByteRange) -> int | None:
    """Share a whole chunk, in as many steps as the kernel takes; how many bytes, None if they differ."""
    done = 0
    while done < source.size_bytes:
        step = durable.dedupe_range(source_fd, source.start + done, target_fd, target.start + done, source.size_bytes - done)
        if step is None:
            return None
        if step == 0:
            break
        done += step
    return done
