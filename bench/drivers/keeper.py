"""`keeper.py SIZE`: hold memory in huge pages, and free as much as others take: what they get next was freed a moment ago.

A virtual machine gives free blocks back to its host, looking for some every two seconds (Linux, mm/page_reporting.c); whoever
touches such a block next pays for it, up to 1.25 CPU s/GiB instead of 0.05 (measured), and that says nothing about that one. So memory
that is to be measured in must not lie free for long before it is asked for.
"""

from __future__ import annotations

import mmap
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
PIECE_BYTES = 32 * MIB
AHEAD_BYTES = 128 * MIB
"""Free ahead of what is taken: the less, the shorter it lies free; the more, the less often somebody is faster than the keeper."""
LOOK_S = 0.01
READY_TIMEOUT_S = 300
POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE (Linux 5.14); Python has no name for it."""


@contextmanager
def kept(size_bytes: int) -> Iterator[None]:
    """Inside the block so much memory can be had that the host has backed, by whoever asks. In a process of its own, because the peak of
    this one is measured."""
    argv, pipe = [sys.executable, "-I", "-S", __file__, str(size_bytes)], subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as keeper:
        try:
            assert keeper.stdout is not None
            readable, _, _ = select.select([keeper.stdout], [], [], READY_TIMEOUT_S)
            if not readable or not keeper.stdout.readline():
                raise RuntimeError("the memory that was to be kept can't be had")
            yield
        finally:
            keeper.kill()  # it has nothing to leave in order


def main() -> None:
    pieces = [_piece() for _ in range(-(-int(sys.argv[1]) // PIECE_BYTES))]
    free_before, given_bytes = free_bytes(), 0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        taken_bytes = free_before + given_bytes - free_bytes()
        while pieces and given_bytes < taken_bytes + AHEAD_BYTES:
            pieces.pop().close()
            given_bytes += PIECE_BYTES


def _piece() -> mmap.mmap:
    piece = mmap.mmap(-1, PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    piece.madvise(mmap.MADV_HUGEPAGE)
    piece.madvise(POPULATE_WRITE)
    return piece


def free_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """`MemFree` (proc(5))."""
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemFree:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
