"""Work that gives way to everybody: lowest priority of CPU and disk, and no more bytes a second than allowed."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable

from modelcache.patience import Cancellation

IOPRIO_WHO_PROCESS = 1
IOPRIO_IDLE = 3 << 13
"""<linux/ioprio.h>: class idle. It is served when nobody else asks, by schedulers that know priorities (BFQ, mq-deadline)."""
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
"""Number of ioprio_set(2): <asm/unistd.h> of each machine."""
LOWEST_NICE = 19

_libc = ctypes.CDLL(None, use_errno=True)


def give_way() -> None:
    """Have this thread, and no other, come after everybody else. For a thread that does nothing else until it ends."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_NICE)
    number = IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(ctypes.c_long(number), ctypes.c_int(IOPRIO_WHO_PROCESS), ctypes.c_int(0), ctypes.c_int(IOPRIO_IDLE))


class RateLimit:
    """Bytes a second, over all that was read since the first byte: after a pause that others forced there is a burst of a second at
    most."""

    def __init__(self, bytes_per_s: float | None, cancel: Cancellation, now_s: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._cancel = cancel
        self._now_s = now_s
        self._due_s = now_s()

    def pause_s(self, count: int) -> float:
        """How long to wait after `count` more bytes."""
        if self._bytes_per_s is None:
            return 0.0
        now_s = self._now_s()
        self._due_s = max(self._due_s, now_s - 1.0) + count / self._bytes_per_s
        return max(0.0, self._due_s - now_s)

    def __call__(self, count: int) -> None:
        """Wait. Raises Cancelled."""
        pause_s = self.pause_s(count)
        if pause_s > 0:
            self._cancel.wait(pause_s)
