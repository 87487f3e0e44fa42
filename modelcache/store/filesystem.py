"""What a file system is, before a store trusts it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from modelcache.errors import StoreLocation

REFUSED_PLACES = (Path("/models"), Path("/mnt/models"))
"""KServe's roots of models: its agent removes directories there that it does not know."""

FUSE = 0x65735546
NETWORK = {
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0x517B: "smb",
    0xFE534D42: "smb2",
    FUSE: "fuse or virtiofs",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x01021997: "9p",
    0x5346414F: "afs",
    0x6B414653: "kafs",
    0x47504653: "gpfs",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0x73757245: "coda",
    0x19830326: "beegfs",
    0x20030528: "orangefs",
    0x786F4256: "vboxsf",
    0x564C: "ncp",
}
"""`f_type` of statfs(2), from <linux/magic.h> and the file systems' own headers. Shared by machines, or with locks, links or
durability that are not a local disk's; a FUSE file system can't be told from a network one, so a person has to say that it is none."""

_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_magic(path: Path) -> int:
    """`f_type` of the file system that holds `path`."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes on 64-bit Linux; f_type is its first word
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def check_place(root: Path, *, allow_fuse: bool = False) -> None:
    """Refuse what is no place for a store; `root` is absolute, without symbolic links, and need not exist.

    Args:
        allow_fuse: somebody vouches that a FUSE file system there is this machine's alone (fuse-overlayfs, mergerfs). flock(2) is
            then the kernel's own, rename and link go through the daemon; one without hard links is refused when the store is made.

    Raises:
        StoreLocation: one of KServe's model roots, or a network file system.
    """
    for refused in REFUSED_PLACES:
        if root == refused or refused in root.parents:
            raise StoreLocation(
                f"`{refused}` belongs to KServe, whose agent removes directories there that it does not know",
                address=str(root),
                hint="name another root with --root or MODELCACHE_ROOT",
            )
    existing = next(path for path in (root, *root.parents) if path.exists())
    magic = filesystem_magic(existing)
    kind = None if allow_fuse and magic == FUSE else NETWORK.get(magic)
    if kind is not None:
        vouched = "; or say that this one is this machine's alone: `store.allow_fuse` (MODELCACHE_ALLOW_FUSE)" if magic == FUSE else ""
        raise StoreLocation(
            f"a store needs a local file system, this is {kind}",
            address=str(root),
            got=kind,
            hint=f"name a directory on a local disk with --root or MODELCACHE_ROOT{vouched}",
        )
