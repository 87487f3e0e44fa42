"""How much of a range of a file is in the page cache: cachestat(2), Linux 6.5; and where that isn't told, by samples."""

from __future__ import annotations

import ctypes
import errno
import os
import random

from modelcache.ranges import ByteRange
from modelcache.units import MIB

_CACHESTAT = 451
"""The system call's number on every architecture (include/uapi/asm-generic/unistd.h)."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
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
    """Share of the pages of `span` (not empty) that are in memory, 0 to 1; None: the kernel doesn't tell.

    Raises:
        OSError: the descriptor is none.
    """
    asked, answer = _Range(span.start, span.size_bytes), _Stat()
    if _LIBC.syscall(_CACHESTAT, ctypes.c_uint(fd), ctypes.byref(asked), ctypes.byref(answer), ctypes.c_uint(0)) != 0:
        code = ctypes.get_errno()
        if code in _UNKNOWN:
            return None
        raise OSError(code, os.strerror(code))
    pages = (span.stop - 1) // _PAGE_BYTES - span.start // _PAGE_BYTES + 1
    return min(1.0, int(answer.nr_cache) / pages)


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
