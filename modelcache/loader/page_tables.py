"""A mapped file's pages in the page tables of this process, before anybody uses them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterable, Sequence

from modelcache.loader.memory import Memory
from modelcache.ranges import ByteRange
from modelcache.units import KIB, MIB

LARGE_PAGE_BYTES = 2 * MIB
"""A fault in a page of the cache that is so large maps all of it (x86-64, arm64 with 4 KiB pages)."""
AROUND_BYTES = 64 * KIB
"""And elsewhere so much around it, as far as it is in memory (Linux, mm/memory.c, fault_around_bytes)."""


def populate(memory: Memory) -> None:
    """Have the pages of a mapped file in the page tables, and in memory: here, and not one fault of the consumer after the other. Costs the
    CPU time of those faults; a kernel before Linux 5.14 leaves them to the consumer.

    MADV_POPULATE_READ goes from page to page, those that one fault maps together, too: 0.2 µs for each, half its time; and holds the lock
    that mmap and new threads need. So a byte here and there is read first, and it is asked for what is missing then (where the kernel
    tells: PAGEMAP_SCAN, Linux 6.7): half the time of a load in pages of 4 KiB, a tenth of one in large ones (2 cores).

    Raises:
        OSError: a page can't be read. Its consumer would be ended by SIGBUS.
    """
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    start, stop = ctypes.addressof(memory), ctypes.addressof(memory) + len(memory)
    whole = ByteRange(start - start % page_bytes, -(-stop // page_bytes) * page_bytes)
    missing: Sequence[ByteRange] = [whole]
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # a sandbox; no descriptor left
        pages = -1
    try:
        for step_bytes in (LARGE_PAGE_BYTES, AROUND_BYTES):
            if pages < 0 or not missing:
                break
            _read_a_byte_of_each(step_bytes, missing)
            missing = _joined(_unmapped(pages, whole))
    finally:
        if pages >= 0:
            os.close(pages)
    for span in missing:
        _populate(span)


def _unmapped(pages: int, whole: ByteRange) -> Iterable[ByteRange]:
    """What of these addresses is in no page table; all, if the kernel doesn't tell."""
    regions = array("Q", bytes(8 * 3 * _REGIONS))  # of each: start, stop, categories
    at = whole.start
    while at < whole.stop:
        asked = [_SCAN.size, 0, at, whole.stop, 0, regions.buffer_info()[0], _REGIONS, 0, _IS_PRESENT, _IS_PRESENT, 0, _IS_PRESENT]
        answer = bytearray(_SCAN.pack(*asked))
        try:
            count = fcntl.ioctl(pages, _PAGEMAP_SCAN, answer, True)
        except OSError:  # an older kernel
            yield ByteRange(at, whole.stop)
            return
        yield from map(ByteRange, regions[0 : 3 * count : 3], regions[1 : 3 * count : 3])
        at = _SCAN.unpack(answer)[4]


def _joined(spans: Iterable[ByteRange]) -> Sequence[ByteRange]:
    """With what lies between those that are near each other."""
    joined: list[ByteRange] = []
    for span in spans:
        if joined and span.start - joined[-1].stop <= AROUND_BYTES:
            joined[-1] = ByteRange(joined[-1].start, span.stop)
        else:
            joined.append(span)
    return joined


def _read_a_byte_of_each(step_bytes: int, spans: Iterable[ByteRange]) -> None:
    """By a system call, in which a page that can't be read is no signal; it ends there then, and what it left is for `populate` to tell."""
    addresses = array("Q")
    for span in spans:
        addresses.append(span.start)
        addresses.extend(range(span.start - span.start % step_bytes + step_bytes, span.stop, step_bytes))
    wanted = array("Q", bytes(16 * len(addresses)))  # struct iovec: address, size
    wanted[0::2] = addresses
    wanted[1::2] = array("Q", [1]) * len(addresses)
    into = ctypes.create_string_buffer(_MOST)
    given = array("Q", [ctypes.addressof(into), _MOST])
    for at in range(0, len(addresses), _MOST):
        count = min(_MOST, len(addresses) - at)
        if _LIBC.process_vm_readv(os.getpid(), given.buffer_info()[0], 1, wanted.buffer_info()[0] + 16 * at, count, 0) != count:
            return


def _populate(span: ByteRange) -> None:
    ctypes.set_errno(0)
    if _LIBC.madvise(span.start, span.size_bytes, _POPULATE_READ) != 0:
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            raise OSError(code, os.strerror(code))


_POPULATE_READ = 22
"""MADV_POPULATE_READ (madvise(2)); Python has no name for it."""
_PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg) (include/uapi/linux/fs.h)."""
_SCAN = struct.Struct("=12Q")
"""struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask,
return_mask."""
_IS_PRESENT = 1 << 3
"""PAGE_IS_PRESENT."""
_REGIONS = 1024
"""That one call tells."""
_MOST = 1024
"""IOV_MAX (process_vm_readv(2))."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_LIBC.process_vm_readv.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_ulong, ctypes.c_size_t, ctypes.c_ulong, ctypes.c_ulong)
_LIBC.process_vm_readv.restype = ctypes.c_ssize_t
