"""Blobs: immutable verified bytes under the name of their sha256, each an inode that snapshots and ingests link to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelcache.chunks import ChunkTable
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord
from modelcache.store import durable
from modelcache.store.layout import Layout, is_hex
from modelcache.store.records import read, remove
from modelcache.store.root import Root
from modelcache.store.trash import Trash

EMPTY = sha256("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""sha256 of no bytes; empty files are created, never linked, so this blob is on no disk and always here."""
BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's block size: stat(2)."""
SWEEP_BATCH = 512
"""Blobs removed under one hold of the store lock: about 10 ms."""


@dataclass(frozen=True, slots=True)
class BlobFact:
    """What the directory says about one content, its further inodes counted in.

    Attributes:
        size_bytes: of the content, once.
        allocated_bytes: blocks of all its inodes.
        names: links that are not the blob's own names: files of snapshots and ingests.
    """

    size_bytes: int
    allocated_bytes: int
    names: int


class Blobs:
    """The blobs and chunk tables of a store, or of one of its compartments."""

    def __init__(self, root: Root, trash: Trash, layout: Layout | None = None) -> None:
        """Args: layout: that of a compartment; None: of what all share."""
        self._root = root
        self._layout = layout or root.layout
        self._trash = trash

    # -- looking --------------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        return digest == EMPTY or next(self.inodes(digest), None) is not None

    def inodes(self, digest: Digest) -> Iterator[tuple[Path, os.stat_result]]:
        """Every inode of this content. Numbers have no gaps, except one where a crash came between two steps of a quarantine."""
        gaps = 0
        for number in itertools.count():
            path = self._layout.blob(digest, number)
            try:
                yield path, os.lstat(path)
            except FileNotFoundError:
                gaps += 1
                if gaps == 2:
                    return

    def shows(self, path: str, digest: Digest) -> bool:
        """Whether the file at `path` is an inode of this content. Plain strings: asked of very many under the store lock."""
        try:
            inode = os.lstat(path).st_ino
        except FileNotFoundError:
            return False
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(f"{self._layout.blobs}/{digest.hex[:2]}/{digest.hex}").st_ino == inode:
                return True
        return any(found.st_ino == inode for _, found in self.inodes(digest))

    def every(self) -> Iterator[tuple[Path, Digest, os.stat_result]]:
        """Every blob inode of the store; names that are none of ours are left out."""
        return ((Path(path), sha256(digits), found) for path, digits, found in self._rows())

    def fact(self, digest: Digest) -> BlobFact | None:
        """None if it is not here."""
        fact = None
        for _, row in self.inodes(digest):
            fact = _with(fact, row, {})
        return fact

    def facts(self, doomed: Mapping[int, int] | None = None) -> Iterator[tuple[str, dict[str, BlobFact]]]:
        """Of all blobs, one `ab/` directory at a time, so that no more is in memory at once: its name, and hex digits → fact.

        Args:
            doomed: names (inode → count) that count as gone already.
        """
        gone = doomed or {}
        for parent in _parents(self._layout.blobs):
            found: dict[str, BlobFact] = {}
            for _, digits, row in _blob_rows(parent):
                found[digits] = _with(found.get(digits), row, gone)
            yield parent.rpartition("/")[2], found

    def blocks(self) -> Iterator[dict[int, int]]:
        """Inode → blocks (`st_blocks`) of every blob inode, one `ab/` directory at a time."""
        return ({row.st_ino: row.st_blocks for _, _, row in _blob_rows(parent)} for parent in _parents(self._layout.blobs))

    def _rows(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Path, hex digits and status of every blob inode; plain strings, because there may be very many."""
        return (row for parent in _parents(self._layout.blobs) for row in _blob_rows(parent))

    def table(self, digest: Digest) -> ChunkTable | None:
        """The chunk table of a blob; None if there is none (blobs of one chunk need none). Raises DamagedRecord."""
        path = self._layout.table(digest)
        try:
            return ChunkTable.decode(read(path), address=str(path))
        except FileNotFoundError:
            return None

    def quarantined(self) -> frozenset[Digest]:
        """Contents of which a damaged inode is kept aside."""
        return frozenset(sha256(digits) for digits, _ in self._aside())

    def quarantined_inodes(self, digest: Digest) -> list[Path]:
        """The damaged inodes of this content, the latest first."""
        numbers = sorted((number for digits, number in self._aside() if digits == digest.hex), reverse=True)
        return [self._layout.quarantine / f"{digest.hex}.{number}" for number in numbers]

    def _aside(self) -> Iterator[tuple[str, int]]:
        for name in os.listdir(self._layout.quarantine):
            digits, _, number = name.partition(".")
            if is_hex(digits, 64) and number.isdecimal():
                yield digits, int(number)

    # -- making; `publish` takes the store lock, the others are called under it -----------------------------------

    def link(self, digest: Digest, size_bytes: int, target: Path, temporary: Path) -> bool:
        """Make `target` a name of this blob, in place of what is there; False if the blob is not here.

        A blob of another size is damaged, and one whose inodes all have as many names as the file system allows can't be
        linked: both count as not here.
        """
        for path, found in self.inodes(digest):
            if found.st_size != size_bytes or not stat.S_ISREG(found.st_mode):
                continue
            try:
                self._link_over(path, target, temporary)
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.ENOENT):
                    raise
            else:
                return True
        return False

    def publish(self, digest: Digest, source: Path, table: ChunkTable | None, temporary: Path) -> None:
        """Make the complete, verified, durable file `source` the blob of this digest; takes the store lock.

        If somebody else was first, `source` becomes a link to theirs and its own bytes are given back. The blob's name is durable
        after `fsync_names`, its chunk table when this returns.
        """
        if table is not None:
            durable.write_new(temporary, table.encode(), sync=True, mode=0o444)
        published = False
        while not published:
            with self._root.lock.shared():
                if table is not None:
                    self._publish_table(digest, temporary)
                    table = None
                published = self.name(digest, source, temporary)
            if not published:
                self._clear(digest, os.lstat(source).st_size)

    def replace_table(self, digest: Digest, table: ChunkTable) -> None:
        """Write the table of a verified blob anew, in place of a missing or damaged one."""
        target = self._layout.table(digest)
        self._make_parent(target)
        temporary = Layout.temporary(target.parent)
        durable.write_new(temporary, table.encode(), sync=True, mode=0o444)
        durable.rename(temporary, target)
        durable.fsync_directory(target.parent)
        durable.fsync_directory(self._layout.tables)

    def adopt(self, digest: Digest, source: Path) -> None:
        """Give a verified file of a snapshot its blob's name back."""
        target = self._layout.blob(digest)
        self._publish_as(target, source)
        self.fsync_names([digest])

    def fsync_names(self, digests: Iterable[Digest]) -> None:
        """Make the names of these blobs durable, whoever made them."""
        directories = {self._layout.blob(digest).parent for digest in digests if digest != EMPTY}
        for directory in [*sorted(directories), self._layout.blobs]:
            durable.fsync_directory(directory)

    def quarantine(self, path: Path, digest: Digest) -> Path | None:
        """Take a damaged inode out of service; where it is now, None if it was gone. Under the exclusive store lock."""
        number = next(number for number in itertools.count() if not (self._layout.quarantine / f"{digest.hex}.{number}").exists())
        target = self._layout.quarantine / f"{digest.hex}.{number}"
        try:
            durable.rename(path, target)
        except FileNotFoundError:
            return None
        self._fill_gap(path, digest)
        durable.fsync_directory(path.parent)
        return target

    # -- removing; takes the exclusive store lock -----------------------------------------------------------------

    def unnamed(self, doomed: Mapping[int, int] | None = None) -> Iterator[tuple[Digest, int]]:
        """Blobs with inodes that no snapshot and no ingest names, and the blocks of those in bytes. A look: `drop_unnamed` looks again."""
        gone = doomed or {}
        for parent in _parents(self._layout.blobs):
            allocated: Counter[str] = Counter()
            for _, digits, row in _blob_rows(parent):
                if row.st_nlink - 1 - gone.get(row.st_ino, 0) <= 0:
                    allocated[digits] += row.st_blocks * BLOCK_BYTES
            for digits in sorted(allocated):
                yield sha256(digits), allocated[digits]

    def drop_unnamed(self, digests: Iterable[Digest]) -> int:
        """Move the inodes of these blobs that nothing else names to the trash; of how many blobs some went."""
        dropped = 0
        todo = iter(digests)
        while batch := list(itertools.islice(todo, SWEEP_BATCH)):
            with self._root.lock.exclusive():
                dropped += sum(self._drop(digest) for digest in batch)
        return dropped

    def drop_tables(self) -> int:
        """Remove chunk tables and temporary files that a crash left without a blob; how many. That of a blob in quarantine stays:
        it says which chunks of it are sound."""
        dropped = 0
        with self._root.lock.exclusive():
            aside = {digits for digits, _ in self._aside()}
            for parent in _parents(self._layout.tables):
                for path, name, _ in _files(parent):
                    if not is_hex(name, 64) or (name not in aside and next(self.inodes(sha256(name)), None) is None):
                        dropped += remove(Path(path))
        return dropped

    def _drop(self, digest: Digest) -> bool:
        spare = [path for path, found in self.inodes(digest) if found.st_nlink == 1]
        for path in reversed(spare):
            self._trash.take(path)
            self._fill_gap(path, digest)
        if spare and not self.has(digest) and not self.quarantined_inodes(digest):
            remove(self._layout.table(digest))
        return bool(spare)

    def _fill_gap(self, path: Path, digest: Digest) -> None:
        """Give the last inode of this content the name that became free, if that is a lower one: numbers have no gaps."""
        for last, _ in list(self.inodes(digest))[-1:]:
            if len(last.name) > len(path.name) or (len(last.name) == len(path.name) and last.name > path.name):
                durable.rename(last, path)

    def name(self, digest: Digest, source: durable.StrPath, temporary: Path) -> bool:
        """`publish` of a file of one chunk, under the shared store lock; False if a blob of another size stands in the way."""
        first = f"{self._layout.blobs}/{digest.hex[:2]}/{digest.hex}"  # as text: of very many under the store lock
        for number in itertools.count():
            target = self._layout.blob(digest, number) if number else first
            if self._publish_as(target, source):
                return True
            ours, theirs = os.lstat(source), os.lstat(target)
            if theirs.st_ino == ours.st_ino:
                return True
            if theirs.st_size != ours.st_size:
                return False
            try:
                self._link_over(target, source, temporary)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
            else:
                return True
        return False

    def _publish_table(self, digest: Digest, temporary: Path) -> None:
        """Before the blob: one that is seen has its table. One that is here and says otherwise is damaged, or of a damaged blob."""
        target = self._layout.table(digest)
        if self._publish_as(target, temporary):
            durable.fsync_directory(target.parent)
            durable.fsync_directory(self._layout.tables)
        elif target.read_bytes() != temporary.read_bytes():
            durable.rename(temporary, target)
            durable.fsync_directory(target.parent)
        remove(temporary)

    def _clear(self, digest: Digest, size_bytes: int) -> None:
        """Quarantine blobs of another size than a verified file of this digest has."""
        with self._root.lock.exclusive():
            for path, found in list(self.inodes(digest)):
                if found.st_size != size_bytes:
                    self.quarantine(path, digest)

    def _publish_as(self, target: durable.StrPath, source: durable.StrPath) -> bool:
        """Whether `source` got this name; False if it was taken."""
        try:
            durable.link(source, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self._make_parent(Path(target))
            try:
                durable.link(source, target)
            except FileExistsError:
                return False
        return True

    @staticmethod
    def _link_over(blob: durable.StrPath, target: durable.StrPath, temporary: Path) -> None:
        try:
            durable.link(blob, target)
        except FileExistsError:
            durable.link(blob, temporary)
            durable.rename(temporary, target)
            remove(temporary)  # A rename onto another name of the same inode does nothing and leaves both.

    @staticmethod
    def _make_parent(path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            durable.mkdir(path.parent, 0o700)


def readable_table(blobs: Blobs, digest: Digest) -> ChunkTable | None:
    """The chunk table if it is there and can be read."""
    try:
        return blobs.table(digest)
    except DamagedRecord:
        return None


def total_names(trees: Iterable[Mapping[int, int]]) -> Counter[int]:
    """Names per inode over several trees."""
    found: Counter[int] = Counter()
    for tree in trees:
        found.update(tree)
    return found


def _with(before: BlobFact | None, row: os.stat_result, gone: Mapping[int, int]) -> BlobFact:
    """The fact with one more inode of the same content."""
    allocated_bytes, names = row.st_blocks * BLOCK_BYTES, row.st_nlink - 1 - gone.get(row.st_ino, 0)
    if before is not None:
        allocated_bytes, names = allocated_bytes + before.allocated_bytes, names + before.names
    return BlobFact(row.st_size, allocated_bytes, names)


def _parents(directory: Path) -> list[str]:
    """The `ab/` directories below `directory`."""
    with os.scandir(directory) as prefixes:
        return [entry.path for entry in prefixes if entry.is_dir(follow_symlinks=False)]


def _files(parent: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Path, name and status of what is in a directory; what vanishes meanwhile is left out."""
    with os.scandir(parent) as entries:
        for entry in entries:
            try:
                yield entry.path, entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _blob_rows(parent: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Path, hex digits and status of every blob inode in a directory."""
    for path, name, found in _files(parent):
        digits, dot, number = name.partition(".")
        if is_hex(digits, 64) and (not dot or number.isdecimal()) and stat.S_ISREG(found.st_mode):
            yield path, digits, found
