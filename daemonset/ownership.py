"""One agent to a store: a locked file in it, which the kernel lets go with its process."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelcache.errors import StoreBusy

NAME = "agent"
"""Below the store's root (docs/format.md)."""


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Be this store's agent for the block.

    Raises:
        StoreBusy: another one is; the message names it.
    """
    fd = os.open(root / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusy(
                f"another agent has this store ({_who(fd)})", address=str(root), hint="end it first; one agent serves a node"
            ) from None
        told = {"pid": os.getpid(), "host": platform.node(), "since_s": int(time.time())}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(told).encode(), 0)
        yield
    finally:
        os.close(fd)


def _who(fd: int) -> str:
    try:
        told = json.loads(os.pread(fd, 4096, 0))
        return f"process {told['pid']} on {told['host']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said who it is"
