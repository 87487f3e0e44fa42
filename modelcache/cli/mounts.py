"""Which mounted file system a path is on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: where it is mounted, and its file system's kind."""

    place: str
    kind: str


def mount_of(path: Path, table: str | None = None) -> Mount:
    """The mount that `path` is on: the last of those with the longest place above it, as later mounts cover earlier ones.

    Args:
        table: text of mountinfo; None: of this process. Source of its format: proc_pid_mountinfo(5).
    """
    text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape") if table is None else table
    wanted = os.path.realpath(path)
    best = Mount("/", "unknown")
    for line in text.splitlines():
        fields = line.split(" ")
        place = _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), fields[4])
        if len(place) >= len(best.place) and (wanted == place or wanted.startswith(place.rstrip("/") + "/")):
            best = Mount(place, fields[fields.index("-") + 1])
    return best
