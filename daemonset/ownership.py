"""One agent to a store: a locked file in it, which the kernel lets go with its process."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelcache.errors import StoreBusy
from modelcache.store.faults import translated

NAME = "agent"
"""Below the store's root (docs/format.md)."""


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Be this store's agent for the block.

    Raises:
        StoreBusy: another one is; the message names it.
        StoreError, NoSpace: the disk can't be used.
    """
    fd = _opened(root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreBusy(
                f"another agent has this store ({_who(fd)})", address=str(root), hint="end it first; one agent serves a node"
            ) from None
        with suppress(OSError):  # the disk is full, or can't be written: what is here is served, and who serves it isn't named
            _sign(fd)
        yield
    finally:
        os.close(fd)


def why_unusable(root: Path) -> str | None:
    """The code of the error that new work would get; None: the disk of the store that is owned is there, and can be written."""
    try:
        os.utime(root / NAME)  # of a disk that failed and refuses writes nothing else tells: statvfs(3) may not
    except OSError as error:
        return str(translated(error, str(root)).code)
    return None


def _opened(root: Path) -> int:
    try:
        return os.open(root / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        try:
            return os.open(root / NAME, os.O_RDONLY | os.O_CLOEXEC)  # of an agent before this one, on a disk that failed since then
        except OSError:
            raise translated(error, str(root)) from error


def _sign(fd: int) -> None:
    told = json.dumps({"pid": os.getpid(), "host": platform.node(), "since_s": int(time.time())}).encode()
    os.pwrite(fd, told, 0)
    os.ftruncate(fd, len(told))  # afterwards: the block that is there may be the last one


def _who(fd: int) -> str:
    try:
        told = json.loads(os.pread(fd, 4096, 0))
        return f"process {told['pid']} on {told['host']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said who it is"
