"""What is put into the page tables: every page, by whatever the kernel has for it."""

import ctypes
import errno
import fcntl
import os
import struct

import pytest

from modelcache.loader import page_tables
from modelcache.loader.memory import Memory, map_file
from modelcache.loader.page_tables import populate
from modelcache.units import MIB

SIZE_BYTES = 3 * MIB + 5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def mapped_pages(memory: Memory) -> list[int]:
    """pagemap: bit 63 of a page's 64 (Linux, admin-guide/mm/pagemap)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        pages.seek(ctypes.addressof(memory) // PAGE_BYTES * 8)
        count = -(-len(memory) // PAGE_BYTES)
        return [number for number, (entry,) in enumerate(struct.iter_unpack("=Q", pages.read(8 * count))) if entry >> 63]


def refused(*arguments: object) -> int:
    ctypes.set_errno(errno.EPERM)
    return -1


def no_pagemap(*arguments: object) -> int:
    raise PermissionError


def old_kernel(*arguments: object) -> int:
    raise OSError(errno.ENOTTY, "no such call")


@pytest.mark.parametrize("without", ["nothing", "neighbours", "process_vm_readv", "pagemap", "PAGEMAP_SCAN"])
def test_every_page_is_in_the_page_tables(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.memfd_create("pages")  # which nobody drives out of memory
    try:
        os.truncate(fd, SIZE_BYTES)
        os.pwrite(fd, b"x" * SIZE_BYTES, 0)
        memory = map_file(fd, 0, SIZE_BYTES)
    finally:
        os.close(fd)
    assert mapped_pages(memory) == []
    if without == "neighbours":  # that faults take along: what is read leaves holes
        monkeypatch.setattr(page_tables, "AROUND_BYTES", MIB)
    if without == "process_vm_readv":
        monkeypatch.setattr(page_tables._LIBC, "process_vm_readv", refused)
    if without == "pagemap":
        monkeypatch.setattr(os, "open", no_pagemap)
    if without == "PAGEMAP_SCAN":
        monkeypatch.setattr(fcntl, "ioctl", old_kernel)
    piece = (ctypes.c_ubyte * (SIZE_BYTES - PAGE_BYTES)).from_buffer(memory, PAGE_BYTES)
    populate(piece)
    monkeypatch.undo()
    count = -(-SIZE_BYTES // PAGE_BYTES)
    assert mapped_pages(piece) == list(range(count - 1))
    assert bytes(piece[-2:]) == b"xx"
