"""Memory that the ranks of a group share: slots of one block each, in a file without a name that only they have open."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

from modelcache.errors import GroupBroken
from modelcache.loader.memory import Memory
from modelcache.loader.plan import BLOCK_BYTES

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create_segment(slots: int) -> int:
    """A descriptor of new memory, all of it there: nobody can make it smaller, and it goes with the last process that has it.

    memfd_create(2) needs no directory, is not bounded by the size of /dev/shm (64 MiB in a container by default), and its pages count
    for the memory limit of who asked.

    Raises:
        MemoryError: the machine has no more.
    """
    size_bytes = slots * BLOCK_BYTES
    try:
        fd = os.memfd_create("modelcache-group", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, 0o600)
            if size_bytes:
                os.posix_fallocate(fd, 0, size_bytes)  # what is not there would end a process by SIGBUS later
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise MemoryError(f"{size_bytes} bytes of memory to share can't be had ({error.strerror})") from error
    return fd


class Segment:
    """One process's view of it. Closed by its owner, after the last use of a slot."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over. Raises GroupBroken: it is no such memory, or this process can't have it mapped."""
        self._fd = fd
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise GroupBroken("the memory that a group shares is not sealed")
            self._map = mmap.mmap(fd, 0) if os.fstat(fd).st_size else mmap.mmap(-1, 1)
        except OSError as error:
            os.close(fd)
            raise GroupBroken(f"the memory that a group shares can't be mapped ({error.strerror})") from error
        except BaseException:
            os.close(fd)
            raise
        self._map.madvise(mmap.MADV_DONTFORK)
        self._view = memoryview(self._map)
        self.slots = len(self._view) // BLOCK_BYTES

    def slot(self, number: int) -> memoryview:
        """The memory of one slot, to be written and released; it begins at a page."""
        return self._view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]

    def memory(self, number: int) -> Memory:
        """The same, for as long as anybody has it."""
        return (ctypes.c_ubyte * BLOCK_BYTES).from_buffer(self._map, number * BLOCK_BYTES)

    def copy(self, number: int, at: int, into: memoryview) -> None:
        """Fill `into` from a place in a slot. By the kernel: it lets other threads go on, where a copy between views would not."""
        done = 0
        while done < len(into):
            done += os.preadv(self._fd, [into[done:]], number * BLOCK_BYTES + at + done)

    def close(self) -> None:
        self._view.release()
        del self._map  # it goes with the last `memory`: who receives something just now does so to the end
        os.close(self._fd)
