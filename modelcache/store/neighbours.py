"""The other ingests of a store, as one of them sees them: what they are to become, and how far they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.ingest import Elsewhere, IngestFile
from modelcache.chunks import chunk_range
from modelcache.digest import Digest
from modelcache.store.blobs import Blobs
from modelcache.store.journal import JournalTail, Remembered, file_key
from modelcache.store.root import Root
from modelcache.store.workspace import JOURNAL, PLAN, TREE, ingest_directories, read_plan


@dataclass(frozen=True)
class Remains:
    """A file that another ingest has begun, and the chunks that its journal has of it."""

    neighbour: Neighbour
    path: Path
    marks: dict[int, bytes]


class Neighbour:
    """One other ingest. Its journal is kept open: what it says at its end can be read when the directory is gone."""

    def __init__(self, path: Path, stamp: tuple[int, int]) -> None:
        self.path = path
        self.stamp = stamp
        plan = read_plan(path)
        self._files: dict[str, list[IngestFile]] = {}
        for file in () if plan is None else plan[1]:
            if file.identity:
                self._files.setdefault(file.identity, []).append(file)
        self._tail: JournalTail | None = None

    def listen(self, identities: Collection[str]) -> None:
        """Read what its journal says by now, if it is of any of these."""
        if self._tail is None and not self._files.keys().isdisjoint(identities):
            try:
                self._tail = JournalTail(self.path / JOURNAL)
            except FileNotFoundError:
                return
        if self._tail is not None:
            self._tail.read()

    def files(self, identity: str) -> list[IngestFile]:
        return self._files.get(identity, [])

    def said(self, file: IngestFile) -> Remembered:
        found = None if self._tail is None else self._tail.found.get(file_key(file))
        return found or Remembered()

    def place(self, file: IngestFile) -> Path:
        return self.path / TREE / file.path

    @property
    def is_current(self) -> bool:
        """Whether its plan still holds: who takes an ingest over writes another one before it makes files, maybe by the same names."""
        return _stamp(self.path / PLAN) == self.stamp

    @property
    def pulse(self) -> int:
        return 0 if self._tail is None else self._tail.size_bytes

    def close(self) -> None:
        if self._tail is not None:
            self._tail.close()


class Neighbours:
    """Every other ingest that was seen since this one began. For one thread at a time."""

    def __init__(self, root: Root, own_id: str) -> None:
        self._root = root
        self._own_id = own_id
        self._known: dict[tuple[str, tuple[int, int]], Neighbour] = {}

    def look(self, identities: Collection[str]) -> None:
        """See what the others are and say by now, as far as they have files of these identities."""
        for path in ingest_directories(self._root):
            stamp = _stamp(path / PLAN)
            if path.name != self._own_id and stamp is not None and (path.name, stamp) not in self._known:
                self._known[path.name, stamp] = Neighbour(path, stamp)
        for neighbour in self._known.values():
            neighbour.listen(identities)

    def published(self, file: IngestFile) -> Iterator[Digest]:
        """What the journals say that this file became."""
        for neighbour, theirs in self._bringing(file):
            digest = neighbour.said(theirs).sha256
            if digest is not None and file.sha256 in (None, digest):
                yield digest

    def sight(self, file: IngestFile, blobs: Blobs) -> Elsewhere:
        """How far they are with this file."""
        here_bytes, pulse = 0, []
        for neighbour, theirs in self._bringing(file):
            if neighbour.place(theirs).exists():
                pulse.append(neighbour.pulse)
                marks = len(neighbour.said(theirs).marks)
                here_bytes = max(here_bytes, min(file.size_bytes, marks * chunk_range(0, 1 << 62).size_bytes))
        digests = [file.sha256] if file.sha256 is not None else self.published(file)
        return Elsewhere(here_bytes, next((digest for digest in digests if blobs.has(digest)), None), tuple(pulse))

    def remains(self, file: IngestFile) -> Remains | None:
        """The furthest of what they have begun of this file. Only for who has the claim on it: then none of them writes to it."""
        found = []
        for neighbour, theirs in self._bringing(file) if file.version else ():
            marks = neighbour.said(theirs).marks if theirs.version else {}
            if marks and neighbour.is_current and _is_begun(neighbour.place(theirs), file.size_bytes):
                found.append(Remains(neighbour, neighbour.place(theirs), dict(marks)))
        return max(found, key=lambda each: len(each.marks), default=None)

    def close(self) -> None:
        for neighbour in self._known.values():
            neighbour.close()
        self._known.clear()

    def _bringing(self, file: IngestFile) -> Iterator[tuple[Neighbour, IngestFile]]:
        if file.identity:
            for neighbour in self._known.values():
                for theirs in neighbour.files(file.identity):
                    if theirs.size_bytes == file.size_bytes:
                        yield neighbour, theirs


def _stamp(plan: Path) -> tuple[int, int] | None:
    """Tells one plan of an ingest from the next: whoever takes it over writes a new one."""
    try:
        found = os.lstat(plan)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _is_begun(place: Path, size_bytes: int) -> bool:
    """Whether this is a file that is being filled, and no blob's name."""
    try:
        found = os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size <= size_bytes
