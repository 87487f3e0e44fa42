"""What archives are made of, and which of it becomes files of a snapshot."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from modelcache.errors import BadArchive, UnsafePath
from modelcache.paths import check_tree, checked_path
from modelcache.sources.archive.limits import MAX_NAMES_CHARACTERS

LINKS = 16
"""A chain of links inside an archive is followed this far."""


class ArchiveBytes(Protocol):
    """The archive: complete, verified, at hand. Safe for many threads. An `IncomingFile` is one."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what is at `offset`."""
        ...


class Bytes(Protocol):
    """The expanded bytes of something, in order, once. Used by one thread."""

    def read(self, want: int) -> bytes:
        """The next bytes, at most `want`; none only at the end.

        Raises:
            BadArchive: they are damaged, or end too early.
        """
        ...


class Kind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    HARD_LINK = "hard link"
    SYMBOLIC_LINK = "symbolic link"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive, as its headers say.

    Attributes:
        name: as written; not checked.
        size_bytes: of a file.
        target: of a link, as written.
        start: opens a file's expanded bytes at one of them (0 where `ranged` is False).
        ranged: whether starting in the middle costs nothing.
        crc32: of a file's bytes, where the archive says it.
    """

    name: str
    kind: Kind
    size_bytes: int = 0
    target: str = ""
    start: Callable[[int], Bytes] | None = None
    ranged: bool = False
    crc32: int | None = None


def selected_files(entries: Iterable[Entry], selects: Callable[[str], bool], *, address: str) -> dict[str, Entry]:
    """Path in the snapshot → the file that has its bytes; links are replaced by what they lead to.

    Raises:
        BadArchive: of longer names than fit into memory.
        UnsafePath: of what is selected, a name that can't be kept, one that occurs twice, a link to no file of this archive,
            or something that is neither a file nor a link.
    """
    named: list[tuple[str, Entry]] = []
    characters = 0
    for entry in entries:
        if entry.kind is not Kind.DIRECTORY:
            named.append((_plain(entry.name), entry))
            characters += len(entry.name) + len(entry.target)
        if characters > MAX_NAMES_CHARACTERS:
            raise BadArchive(f"the names in the archive are over {MAX_NAMES_CHARACTERS:,} characters", address=address)
    chosen = [(name, entry) for name, entry in named if selects(name)]
    check_tree((checked_path(name, address=address) for name, _ in chosen), address=address)
    counts = Counter(name for name, _ in named)
    by_name = {name: entry for name, entry in named if counts[name] == 1}
    return {name: _followed(name, entry, by_name, address) for name, entry in chosen}


def _plain(name: str) -> str:
    """`./a` is `a`: what `tar -C directory .` writes."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _followed(name: str, entry: Entry, by_name: Mapping[str, Entry], address: str) -> Entry:
    at, found = name, entry
    for _ in range(LINKS):
        if found.kind is Kind.FILE:
            return found
        if found.kind is Kind.DEVICE:
            raise UnsafePath(f"{name!a} is a device, a pipe or a socket", address=address, got=ascii(name))
        at = _target(at, found)
        if at not in by_name:
            raise UnsafePath(
                f"{name!a} is a {entry.kind.value} to {found.target[:80]!a}, no file of this archive", address=address, got=ascii(name)
            )
        found = by_name[at]
    raise UnsafePath(f"{name!a} is a chain of more than {LINKS} links", address=address, got=ascii(name))


def _target(name: str, link: Entry) -> str:
    """Where a link leads, by its letters; what leads out of the archive is no name in it."""
    if link.kind is Kind.HARD_LINK:
        return _plain(link.target)
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link.target))
