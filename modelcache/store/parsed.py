"""Records that were read once, believed while their files stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from modelcache.errors import DamagedRecord

T = TypeVar("T")
Signature = tuple[int, int, int]


class Parsed(Generic[T]):
    """What `parse` makes of files, kept in memory and believed while a file's inode, size and mtime stay the same. Thread-safe."""

    def __init__(self, parse: Callable[[Path], T]) -> None:
        """`parse` raises FileNotFoundError, DamagedRecord."""
        self._parse = parse
        self._kept: dict[str, tuple[Signature, T | None]] = {}

    def of(self, path: Path) -> T | None:
        """None if the file is gone or can't be read as what it should be."""
        try:
            found = os.stat(path)
            signature = (found.st_ino, found.st_size, found.st_mtime_ns)
            kept = self._kept.get(path.name)
            if kept is not None and kept[0] == signature:
                return kept[1]
            record: T | None = self._parse(path)
        except FileNotFoundError:
            return None
        except DamagedRecord:
            record = None
        self._kept[path.name] = (signature, record)
        return record

    def forget_all_but(self, names: Collection[str], start: str = "") -> None:
        """Of the files whose names begin so, those are here; what is kept of others is of no use."""
        for name in list(self._kept):  # others may add to it meanwhile
            if name.startswith(start) and name not in names:
                self._kept.pop(name, None)


def damaged_of(paths: Iterable[Path], parse: Callable[[Path], object]) -> list[DamagedRecord]:
    """Why those of these files that can't be read can't be."""
    found = []
    for path in paths:
        try:
            parse(path)
        except DamagedRecord as error:
            found.append(error)
        except FileNotFoundError:
            continue
    return found
