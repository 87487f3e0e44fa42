"""The trash: what was taken out of the store and is not deleted yet. A rename into it is the instant of removal."""

from __future__ import annotations

import os
import secrets
import stat
from collections import Counter
from pathlib import Path

from modelcache.store import durable
from modelcache.store.faults import unless_of_the_disk
from modelcache.store.layout import Layout


class Trash:
    """Things move in under the store lock; deleting them needs none, and many may delete at once."""

    def __init__(self, layout: Layout) -> None:
        self._directory = layout.trash

    def take(self, path: Path) -> bool:
        """Move a file or directory in; False if it was gone."""
        try:
            durable.rename(path, self._directory / f"{path.name}.{secrets.token_hex(8)}")
        except FileNotFoundError:
            return False
        return True

    def empty(self) -> None:
        """Delete everything in the trash."""
        for name in os.listdir(self._directory):
            remove_tree(self._directory / name)

    def links(self) -> Counter[int]:
        """How many names each inode has in the trash."""
        return inode_names(self._directory)


def remove_tree(path: Path) -> None:
    """Delete a file or a directory with all in it; what somebody else deletes at the same time is fine."""
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode):
            durable.unlink(path)
            return
        if not mode & stat.S_IWUSR:
            durable.chmod(path, 0o700)
        for name in os.listdir(path):
            remove_tree(path / name)
        durable.rmdir(path)
    except FileNotFoundError:
        return


def inode_names(directory: Path) -> Counter[int]:
    """How many names each regular file has below a directory; what vanishes meanwhile is left out."""
    found: Counter[int] = Counter()
    for parent, _, files in os.walk(directory, onerror=unless_of_the_disk):
        for name in files:
            try:
                found[os.lstat(os.path.join(parent, name)).st_ino] += 1
            except FileNotFoundError:
                continue
    return found
