"""Which snapshots a table of mounts shows. Pure: text in, mounts out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{64})(/.*)?$")
DELETED = "//deleted"
"""At the end of the root of a mount whose directory was removed."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5)).

    Attributes:
        device: `major:minor`.
        root: what of that file system is mounted; of a bind mount, the directory.
        point: where.
        source: what is mounted, as `/dev/nvme0n1p1`: each subvolume of btrfs has a `device` of its own.
    """

    device: str
    root: str
    point: PurePosixPath
    source: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mount that is, by its root's name, of a snapshot.

    Attributes:
        digest: in hex.
        whole: the snapshot's directory itself, and not something below.
        covered: a later mount lies over it, so that what is at its point tells nothing.
    """

    mount: Mount
    digest: str
    whole: bool
    covered: bool


def parse(table: bytes) -> Sequence[Mount]:
    """The mounts of a table, in its order. Raises ValueError: a line is not of that format."""
    mounts = []
    for line in table.splitlines():
        fields = line.split(b" ")
        if len(fields) < 10 or b"-" not in fields[6:] or fields[2].count(b":") != 1:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        source = fields[fields.index(b"-", 6) + 2 :]
        mounts.append(Mount(_text(fields[2]), _text(fields[3]), PurePosixPath(_text(fields[4])), _text(source[0]) if source else ""))
    return mounts


def candidates(mounts: Sequence[Mount]) -> Sequence[Candidate]:
    """Mounts of what has a snapshot's name and was not removed."""
    found = []
    for number, mount in enumerate(mounts):
        match = _SNAPSHOT.search(mount.root)
        if match and not mount.root.endswith(DELETED):
            covered = any(mount.point.is_relative_to(later.point) for later in mounts[number + 1 :])
            found.append(Candidate(mount, match[1], match[2] is None, covered))
    return found


def same_file_system(mounts: Sequence[Mount], one: PurePosixPath, other: PurePosixPath) -> bool:
    """Whether two absolute paths, without symbolic links in them, are on one file system."""
    first, second = _holding(mounts, one), _holding(mounts, other)
    if first is None or second is None:
        return first is second
    return first.device == second.device or (first.source.startswith("/dev/") and first.source == second.source)


def _holding(mounts: Sequence[Mount], path: PurePosixPath) -> Mount | None:
    """The last one of the longest point."""
    found = None
    for mount in mounts:
        if path.is_relative_to(mount.point) and (found is None or mount.point.is_relative_to(found.point)):
            found = mount
    return found


def _text(field: bytes) -> str:
    """A field with its octal escapes undone (space, tab, newline, backslash)."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field).decode("utf-8", "surrogateescape")
