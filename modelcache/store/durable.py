"""Every operation of the store that changes the disk, one function each; no other module of the store changes anything.

Callers write `durable.link(…)`, never `from … import link`, and operations made of several go through this module's names too:
so a test can stop the process before or after the n-th change by wrapping these functions.
"""

# Plain calls, so that each function is one system call:
# ruff: noqa: PTH101, PTH102, PTH104, PTH106
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable

StrPath = str | os.PathLike[str]

FALLOC_FL_KEEP_SIZE = 1
"""<linux/falloc.h>: book the blocks, leave the file's size."""
SYNC_FILE_RANGE_WRITE = 2
"""sync_file_range(2): start writing the range's dirty pages, don't wait for them."""

FIDEDUPERANGE = 0xC0189436
"""ioctl_fideduperange(2)."""
FILE_DEDUPE_RANGE_DIFFERS = 1
_DEDUPE = struct.Struct("=QQHHI" + "qQQiI")
"""struct file_dedupe_range, and one struct file_dedupe_range_info."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.syncfs.argtypes = (ctypes.c_int,)


def link(source: StrPath, target: StrPath) -> None:
    os.link(source, target, follow_symlinks=False)


def rename(source: StrPath, target: StrPath) -> None:
    os.rename(source, target)


def unlink(path: StrPath) -> None:
    os.unlink(path)


def mkdir(path: StrPath, mode: int) -> None:
    os.mkdir(path, mode)


def rmdir(path: StrPath) -> None:
    os.rmdir(path)


def chmod(path: StrPath, mode: int) -> None:
    os.chmod(path, mode)


def utime(path: StrPath, at_s: float) -> None:
    """Set both times of a file, in Unix seconds."""
    at_ns = int(at_s * 1_000_000_000)
    os.utime(path, ns=(at_ns, at_ns))


def create(path: StrPath, mode: int = 0o600) -> int:
    """Make a new file and open it for reading and writing; FileExistsError if the name is taken."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def truncate(fd: int, size_bytes: int) -> None:
    os.ftruncate(fd, size_bytes)


def write(fd: int, data: bytes | memoryview, offset: int) -> int:
    """One pwrite(2); how many bytes it took."""
    return os.pwrite(fd, data, offset)


WRITE_BYTES = 256 << 10
"""Most bytes of one buffered write. Beyond 1 MiB ext4 takes 2 MiB folios for the page cache, which have to be found and cleared as
one piece: on a machine whose free memory is fragmented or lent to its host, a GiB written 4 MiB at a time cost 2.8 s of system time,
256 KiB at a time 0.43 s (measured, Linux 6.18)."""


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write until nothing is left; a short write is continued."""
    view = memoryview(data)
    while view.nbytes:
        done = write(fd, view[:WRITE_BYTES], offset)
        view = view[done:]
        offset += done


def fallocate(fd: int, size_bytes: int, mode: int = 0) -> bool:
    """Book blocks for the first `size_bytes` of a file; False if this file system can't.

    fallocate(2) itself: os.posix_fallocate would write zeros where the file system can't, which fills the disk instead of
    booking it.

    Raises:
        OSError: ENOSPC and the like.
    """
    if size_bytes == 0:
        return True
    try:
        _checked(lambda: int(_libc.fallocate(fd, mode, 0, size_bytes)), "fallocate")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True


def start_writeback(fd: int, offset: int, size_bytes: int) -> None:
    """Have the kernel begin to write a range, so that the fsync at the end finds little left. No promise of durability."""
    _checked(lambda: int(_libc.sync_file_range(fd, offset, size_bytes, SYNC_FILE_RANGE_WRITE)), "sync_file_range")


def dedupe_range(source_fd: int, source_offset: int, target_fd: int, target_offset: int, size_bytes: int) -> int | None:
    """Have a range of the target use the blocks of an equal range of the source; the kernel compares first, under both inodes' locks.

    Returns:
        How many bytes are shared now; None if the ranges differ.

    Raises:
        OSError: EOPNOTSUPP, EXDEV, EINVAL and the like: this file system, or these two files, can't share.
    """
    request = bytearray(_DEDUPE.pack(source_offset, size_bytes, 1, 0, 0, target_fd, target_offset, 0, 0, 0))
    fcntl.ioctl(source_fd, FIDEDUPERANGE, request, True)
    *_, done_bytes, status, _ = _DEDUPE.unpack(request)
    if status == FILE_DEDUPE_RANGE_DIFFERS:
        return None
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return int(done_bytes)


def fsync(fd: int) -> None:
    os.fsync(fd)


def fsync_directory(path: StrPath) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Make everything written so far to the file system of `fd` durable."""
    _checked(lambda: int(_libc.syncfs(fd)), "syncfs")


def write_new(path: StrPath, data: bytes, *, sync: bool, mode: int = 0o600) -> None:
    """Make a new file with these bytes."""
    fd = create(path, mode)
    try:
        write_all(fd, data, 0)
        if sync:
            fsync(fd)
    finally:
        os.close(fd)


def _checked(call: Callable[[], int], name: str) -> None:
    while call() != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, f"{name}: {os.strerror(number)}")
