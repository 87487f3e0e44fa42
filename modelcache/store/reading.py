"""Reading blobs back: every byte from the disk, compared with the digest and with the chunk table."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from modelcache.chunks import CHUNK_BYTES, ChunkTable
from modelcache.digest import Digest
from modelcache.patience import Cancellation
from modelcache.store.direct import disk_reader
from modelcache.store.faults import is_of_the_disk

READERS = 4
"""Files read at once at most: hashing takes a core for each 1.6 GiB/s."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file turned out to hold.

    Attributes:
        got: sha256 of its bytes (hex); None if the disk could not give them all.
        marks: of the chunks that could be read, in order.
        error: why not all could.
    """

    size_bytes: int
    got: str | None
    marks: tuple[bytes, ...]
    error: str | None


class Counting:
    """Bytes done of bytes in all, told to the caller one at a time."""

    def __init__(self, total_bytes: int, progress: Callable[[int, int], None] | None) -> None:
        self.done_bytes = 0
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.done_bytes += count
            if self._progress is not None:
                self._progress(self.done_bytes, max(self.done_bytes, self._total_bytes))


def read_all(paths: Sequence[Path], cancel: Cancellation, counting: Counting) -> list[Reading | None]:
    """Read these files, several at once; None for one that was removed meanwhile. Raises Cancelled."""
    stop = Cancellation()
    with cancel.on_cancel(stop.cancel), ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), "verify") as pool:
        todo = [pool.submit(read_file, path, stop, counting) for path in paths]
        try:
            return [task.result() for task in todo]
        except BaseException:
            stop.cancel()
            raise


def read_file(path: Path, cancel: Cancellation, counting: Counting, after: Callable[[int], None] | None = None) -> Reading | None:
    """One file; None if it is gone. A disk that fails is a finding, not an error. Raises OSError: too many files are open, or there is no
    memory, which says nothing of it.

    Args:
        after: for reading in the background: called after each chunk with its bytes. What others have in the page cache is then left
            there, also where a file system has no O_DIRECT and it would hide the disk.
    """
    cancel.check()
    try:
        with disk_reader(path, CHUNK_BYTES, drop_cached=after is None) as reader:
            total = hashlib.sha256()
            marks: list[bytes] = []
            size_bytes = 0
            try:
                for view in reader.chunks():
                    cancel.check()
                    total.update(view)
                    marks.append(xxhash.xxh3_128_digest(view))
                    size_bytes += len(view)
                    counting.add(len(view))
                    if after is not None:
                        after(len(view))
            except OSError as error:
                if not is_of_the_disk(error):
                    raise
                return Reading(size_bytes, None, tuple(marks), f"the disk can't give it back ({error.strerror})")
            return Reading(size_bytes, total.hexdigest(), tuple(marks), None)
    except FileNotFoundError:
        return None
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        return Reading(0, None, (), f"it can't be opened ({error.strerror})")


def reason(digest: Digest, reading: Reading) -> str | None:
    """What is wrong with a blob that was read, if anything."""
    if reading.error is not None:
        return reading.error
    if reading.got != digest.hex:
        return f"its {reading.size_bytes} bytes have sha256:{reading.got}"
    return None


def bad_chunks(table: ChunkTable | None, reading: Reading) -> tuple[int, ...]:
    """Indexes of the chunks that are not as the table says; of a blob without a table (one chunk), that one."""
    if table is None:
        return tuple(range(max(1, len(reading.marks))))
    bad = [index for index, mark in enumerate(table.marks) if index >= len(reading.marks) or reading.marks[index] != mark]
    return tuple(bad + list(range(len(table.marks), len(reading.marks))))
