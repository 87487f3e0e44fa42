"""How much of a range of a file is in the page cache: cachestat(2), Linux 6.5, of windows; and where that isn't told, by samples."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Iterator

from modelcache.ranges import ByteRange
from modelcache.units import KIB, MIB

_CACHESTAT = 451
"""The system call's number on every architecture (include/uapi/asm-generic/unistd.h)."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WINDOW_BYTES = 256 * KIB
WINDOW_EVERY_BYTES = 8 * MIB
"""So much is asked about in the middle of each so many: cachestat looks at page after page, and a load of 4 GiB that are in memory takes
50 ms. It took 18 of them for pages of 4 KiB, and 50 to 200 where they were there and had been driven out; windows take 2 and 4."""
SAMPLED_BYTES = 2 * MIB
"""One sample for each so many. What is in memory is there in long runs: whole files, or what was read ahead."""


class _Range(ctypes.Structure):
    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class _Stat(ctypes.Structure):
    _fields_ = [
        ("nr_cache", ctypes.c_uint64),
        ("nr_dirty", ctypes.c_uint64),
        ("nr_writeback", ctypes.c_uint64),
        ("nr_evicted", ctypes.c_uint64),
        ("nr_recently_evicted", ctypes.c_uint64),
    ]


_LIBC = ctypes.CDLL(None, use_errno=True)
_UNKNOWN = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL)
"""An older kernel; a file of somebody else (it tells only owners and who may write); a sandbox; a file system without pages."""


def resident_share(fd: int, span: ByteRange) -> float | None:
    """Share of the pages of `span` (not empty) that are in memory, 0 to 1, as windows of it show; None: the kernel doesn't tell.

    Exact up to two windows. What is in memory is there in long runs, so of a block that is there in part the middle tells more or less
    than half.

    Raises:
        OSError: the descriptor is none.
    """
    asked_pages = resident_pages = 0
    for window in _windows(span):
        resident = _resident_pages(fd, window)
        if resident is None:
            return None
        asked_pages += (window.stop - 1) // _PAGE_BYTES - window.start // _PAGE_BYTES + 1
        resident_pages += resident
    return min(1.0, resident_pages / asked_pages)


def _windows(span: ByteRange) -> Iterator[ByteRange]:
    if span.size_bytes <= 2 * WINDOW_BYTES:
        yield span
        return
    for start in range(span.start, span.stop, WINDOW_EVERY_BYTES):
        stop = min(start + WINDOW_EVERY_BYTES, span.stop)
        middle = (start + stop) // 2
        yield ByteRange(max(start, middle - WINDOW_BYTES // 2), min(stop, middle + WINDOW_BYTES // 2))


def _resident_pages(fd: int, span: ByteRange) -> int | None:
    asked, answer = _Range(span.start, span.size_bytes), _Stat()
    if _LIBC.syscall(_CACHESTAT, ctypes.c_uint(fd), ctypes.byref(asked), ctypes.byref(answer), ctypes.c_uint(0)) != 0:
        code = ctypes.get_errno()
        if code in _UNKNOWN:
            return None
        raise OSError(code, os.strerror(code))
    return int(answer.nr_cache)


def sampled_share(fd: int, span: ByteRange) -> float | None:
    """The same by looking at single pages, which anybody who may read the file can do (preadv2(2), RWF_NOWAIT); None: not here.

    A byte of a page in each SAMPLED_BYTES is read if it is in memory. If not, the kernel begins to read that page (measured, 6.18: 4 KiB
    and no more, 8 µs): so places are drawn anew each time, or the next look would find what this one left.

    Raises:
        OSError: the disk failed, or the descriptor is none.
    """
    byte = bytearray(1)
    there = count = 0
    for start in range(span.start, span.stop, SAMPLED_BYTES):
        at = random.randrange(start, min(start + SAMPLED_BYTES, span.stop))
        try:
            there += os.preadv(fd, [byte], at, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _UNKNOWN:
                return None
            raise
        count += 1
    return there / count
