"""A small real file system, to run out of space on. Needs root; Linux only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from modelcache.testing.servers.process import program
from modelcache.units import MIB

COMMAND_DEADLINE_S = 60


class Kind(StrEnum):
    EXT4 = "ext4"
    """An image file on a loop device: a disk with blocks, a journal and 4 KiB rounding."""
    XFS = "xfs"
    """An image file on a loop device; blocks can be shared (reflink). 300 MiB at least, says mkfs.xfs."""
    BTRFS = "btrfs"
    """As XFS; 110 MiB at least."""
    TMPFS = "tmpfs"
    """Memory with a size limit: quickest, no O_DIRECT before Linux 6.6."""


@contextmanager
def small_filesystem(directory: Path, *, size_bytes: int, kind: Kind = Kind.EXT4, options: str = "") -> Iterator[Path]:
    """Mount a new, empty file system of `size_bytes` in all (its own records included); gives its mount point.

    Args:
        directory: an empty or new directory to work in; holds the image and the mount point, and is left without both.
        options: further mount options, such as `ro` or `nosuid`.

    Raises:
        PermissionError: this process is not root.
        RuntimeError: the mount failed; the message holds what the program said.
    """
    if os.geteuid() != 0:
        raise PermissionError("mounting a small file system needs root; leave such tests out with `-m 'not root'`")
    mount_point = directory / "mount"
    image = directory / "image"
    mount_point.mkdir(parents=True)
    try:
        _mount(image, mount_point, size_bytes, kind, options)
        try:
            yield mount_point
        finally:
            # Lazy: a file that a failing test still holds open must not keep the mount; it goes with the last holder.
            _run(["umount", "--lazy", str(mount_point)])
    finally:
        mount_point.rmdir()
        image.unlink(missing_ok=True)


def kernel_has(kind: Kind) -> bool:
    """Whether this kernel knows the file system, or has a module that does."""
    if f"\t{kind}\n" in Path("/proc/filesystems").read_text("ascii"):
        return True
    try:
        return subprocess.run(["modprobe", "-q", str(kind)], check=False, timeout=COMMAND_DEADLINE_S).returncode == 0
    except FileNotFoundError:  # no modprobe, as in most containers: the kernel has what it lists
        return False


def _mount(image: Path, mount_point: Path, size_bytes: int, kind: Kind, options: str) -> None:
    extra = f",{options}" if options else ""
    if kind is Kind.TMPFS:
        _run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700{extra}", "tmpfs", str(mount_point)])
        return
    with image.open("wb") as file:
        file.truncate(size_bytes)
    if kind is not Kind.EXT4:
        _run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)] if kind is Kind.XFS else ["mkfs.btrfs", "-q", str(image)])
        _run(["mount", "-t", str(kind), "-o", f"loop{extra}", str(image), str(mount_point)])
        return
    inode_per_bytes = 4096 if size_bytes <= 512 * MIB else 16384
    # No reserved blocks (-m 0): root would otherwise get the last 5 % that statvfs does not count as available.
    _run(["mkfs.ext4", "-q", "-F", "-m", "0", "-i", str(inode_per_bytes), "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)])
    _run(["mount", "-t", "ext4", "-o", f"loop{extra}", str(image), str(mount_point)])


def _run(command: list[str]) -> None:
    done = subprocess.run([program(command[0]), *command[1:]], capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
