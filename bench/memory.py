"""The state of memory before a run: pages for what it will write, and not for the first time."""

from __future__ import annotations

import os
from pathlib import Path

from modelcache.units import MIB

STEP_BYTES = MIB
"""The kernel reads ahead no more than a few MiB for one call."""


def warm_free_pages(path: Path, size_bytes: int) -> None:
    """Take `size_bytes` of page cache and give it back: the kernel hands out last what it got back longest ago.

    A virtual machine may return free pages to its host (free page reporting). The first touch of each then costs between 1 and
    2.4 CPU s/GiB (measured), falls on whoever writes through the page cache next, and says nothing about that one: 1 GiB
    written to the page cache took 0.16 s or 2.4 s, by chance. The pages are those of a file that is one hole: no disk is touched.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
        for at in range(0, size_bytes, STEP_BYTES):
            os.posix_fadvise(fd, at, STEP_BYTES, os.POSIX_FADV_WILLNEED)
    finally:
        os.unlink(path)
        os.close(fd)
