"""The directory of an ingest: its lock, its plan, its journal, and the tree that becomes a snapshot."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelcache.abc.ingest import IngestFile
from modelcache.abc.snapshot import RefKey
from modelcache.digest import sha256
from modelcache.errors import DamagedRecord, ModelCacheError, UnsafePath
from modelcache.store import durable, records
from modelcache.store.forked import is_of_this_process
from modelcache.store.journal import Journal
from modelcache.store.keys import decode_key, encode_key
from modelcache.store.lock import release, try_lock
from modelcache.store.records import field
from modelcache.store.root import Root
from modelcache.store.trash import remove_tree

LOCK, PLAN, JOURNAL, TREE, TEMPORARY, RESERVED = "lock", "plan.json", "journal", "tree", "tmp", "reserved"


class Workspace:
    """An ingest's directory, owned by this process: it keeps `lock` flock-ed, so that others see that the owner lives.

    Attributes:
        adopted: paths in `tree` that an earlier, interrupted ingest left and that this one goes on with.
    """

    def __init__(self, root: Root, path: Path, lock_fd: int, journal: Journal, adopted: set[str]) -> None:
        self._root = root
        self.path = path
        self._lock_fd = lock_fd
        self.journal = journal
        self.adopted = adopted
        self.tree = path / TREE
        self._directories = {"": self.tree} | {name: self.tree / name for name in _directories_of(adopted)}
        is_of_this_process(self)

    @classmethod
    def create(cls, root: Root) -> Workspace:
        """A new one."""
        path = root.layout.ingest(secrets.token_hex(16))
        with root.lock.shared():  # `collect` must not see it before it is locked.
            durable.mkdir(path, 0o700)
            lock_fd = durable.create(path / LOCK)
            try_lock(lock_fd)
        try:
            durable.mkdir(path / TREE, 0o755)
            durable.mkdir(path / TEMPORARY, 0o700)
            return cls(root, path, lock_fd, Journal.create(path / JOURNAL), set())
        except BaseException:
            os.close(lock_fd)
            remove_tree(path)
            raise

    @classmethod
    def take_over(cls, root: Root, key: RefKey, files: Sequence[IngestFile]) -> Workspace | None:
        """That of an ended ingest of the same ref, emptied of what `files` has no use for.

        Its tree may have become a snapshot: of an ingest that was killed before the ref was written, the journal still knows which
        blobs it made.
        """
        with root.lock.shared():  # `collect` asks under the exclusive one who is owned.
            ended = _ended(root, key)
        if ended is None:
            return None
        path, lock_fd, planned = ended
        kept = {(file.path, file.size_bytes, file.version) for file in planned if file.version}
        kept &= {(file.path, file.size_bytes, file.version) for file in files}
        try:
            for directory, mode in ((TREE, 0o755), (TEMPORARY, 0o700)):
                if not (path / directory).is_dir():
                    durable.mkdir(path / directory, mode)
            for name in os.listdir(path / TEMPORARY):
                remove_tree(path / TEMPORARY / name)
            adopted = _prune(path / TREE, {name: size for name, size, _ in kept})
            return cls(root, path, lock_fd, _journal(path / JOURNAL), adopted)
        except BaseException:
            os.close(lock_fd)
            raise

    @property
    def id(self) -> str:
        return self.path.name

    def file(self, relative: str) -> Path:
        return self.tree / relative

    def temporary(self, name: str) -> Path:
        return self.path / TEMPORARY / name

    def write_plan(self, key: RefKey, files: Sequence[IngestFile]) -> None:
        """Say what this ingest is of, for who takes it over. Not fsynced: a lost plan costs only the resumption."""
        temporary = self.temporary(PLAN)
        durable.write_new(temporary, encode_plan(key, files), sync=False)
        durable.rename(temporary, self.path / PLAN)

    def is_adopted(self, relative: str) -> bool:
        """Whether the file that an earlier ingest left is still here: who has the claim on it may have taken it."""
        if relative in self.adopted and not os.path.lexists(self.file(relative)):
            self.adopted.discard(relative)
        return relative in self.adopted

    def place(self, relative: str) -> Path:
        """The place of a file that is to come, its directories made.

        Raises:
            UnsafePath: the file system takes this name for another one of this tree (it folds case or composes letters).
        """
        parent, _, name = relative.rpartition("/")
        path = self._directory(parent) / name
        if relative not in self.adopted and os.path.lexists(path):
            raise self._collision(relative)
        return path

    def make(self, relative: str, size_bytes: int) -> bool:
        """Make a file that has its place at its full size, its blocks booked; False if this file system can't book."""
        path = self.file(relative)
        if relative in self.adopted:
            if not os.stat(path).st_mode & 0o200:
                durable.chmod(path, 0o600)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        else:
            try:
                fd = durable.create(path)
            except FileExistsError:
                raise self._collision(relative) from None
        return self._book(fd, size_bytes)

    def make_at(self, path: Path, size_bytes: int) -> bool:
        """The same for a file outside of the tree."""
        return self._book(durable.create(path), size_bytes)

    @staticmethod
    def _book(fd: int, size_bytes: int) -> bool:
        try:
            booked = durable.fallocate(fd, size_bytes)
            if not booked:
                durable.truncate(fd, size_bytes)
            return booked
        finally:
            os.close(fd)

    def write_reserved(self, total_bytes: int) -> None:
        """Where blocks can't be booked: what the tree will take in all, for others to count with."""
        temporary = self.temporary(RESERVED)
        durable.write_new(temporary, f"{total_bytes}\n".encode(), sync=False)
        durable.rename(temporary, self.path / RESERVED)

    def forget_reserved(self) -> None:
        records.remove(self.path / RESERVED)

    def directories(self) -> Iterator[Path]:
        """Every directory of the tree, the deepest first."""
        for name in sorted(self._directories, key=lambda name: -len(name)):  # A parent's name is shorter; the tree's is empty.
            yield self._directories[name]

    def unlock(self) -> None:
        """Stop owning it: from here on it is an ended ingest that anybody may take over or remove. Idempotent."""
        self.journal.close()
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            release(fd)
            os.close(fd)

    def forked(self) -> None:
        """As `Inherited.forked`."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def _directory(self, name: str) -> Path:
        known = self._directories.get(name)
        if known is None:
            parent, _, last = name.rpartition("/")
            known = self._directory(parent) / last
            try:
                durable.mkdir(known, 0o755)
            except FileExistsError:
                raise self._collision(name) from None
            self._directories[name] = known
        return known

    def _collision(self, relative: str) -> UnsafePath:
        return UnsafePath(
            f"unsafe file name {relative!a}: this file system takes it for another name of the same model",
            address=str(self._root.layout.root),
            got=ascii(relative),
            hint="keep the store on a file system that tells upper from lower case, or exclude one of the two files",
        )


def ingest_directories(root: Root) -> list[Path]:
    """Those of living and of ended ingests, in a stable order."""
    with os.scandir(root.layout.ingests) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def try_own(path: Path) -> int | None:
    """Lock an ended ingest's directory; None if its owner lives. Closing the descriptor ends the ownership."""
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if try_lock(fd) and _is_at(fd, path / LOCK):
        return fd
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    """Whether the locked file still has its name: an owner lets go of the lock after it has removed the directory."""
    try:
        return os.fstat(fd).st_ino == os.lstat(path).st_ino
    except FileNotFoundError:
        return False


def is_owned(path: Path) -> bool:
    """Whether a living process owns this ingest. Under the exclusive store lock: one being made has its lock by then."""
    fd = try_own(path)
    if fd is None:
        return (path / LOCK).exists()
    release(fd)
    os.close(fd)
    return False


def encode_plan(key: RefKey, files: Sequence[IngestFile]) -> bytes:
    """`docs/format.md`, Ingests."""
    listed = [
        {
            "path": file.path,
            "size_bytes": file.size_bytes,
            "version": file.version,
            "sha256": None if file.sha256 is None else file.sha256.hex,
        }
        for file in files
    ]
    return records.encode({**encode_key(key), "files": listed})


def read_plan(path: Path) -> tuple[RefKey, list[IngestFile]] | None:
    """The plan of the ingest in this directory; None if there is none or it can't be read, and so nothing to go on with."""
    try:
        record: Any = records.decode(records.read(path / PLAN), str(path / PLAN))
        key = decode_key(record)
        files = [
            IngestFile(
                path=field(item, "path", str),
                size_bytes=field(item, "size_bytes", int),
                version=field(item, "version", str),
                sha256=None if item["sha256"] is None else sha256(field(item, "sha256", str)),
                compartment=key.compartment,
            )
            for item in field(record, "files", list)
        ]
        return key, files
    except (FileNotFoundError, DamagedRecord, ModelCacheError, ValueError, KeyError, TypeError):
        return None


def _is_of(path: Path, key: RefKey) -> bool:
    """Whether the plan here may be of this ref, by its last bytes alone: an import's names very many files, and is looked at often."""
    end = records.encode({"uri": key.uri, "origin": key.origin})[1:]
    try:
        with (path / PLAN).open("rb") as plan:
            plan.seek(max(0, plan.seek(0, os.SEEK_END) - len(end)))
            return plan.read() == end
    except OSError:
        return False  # none, or one that the disk doesn't give back: nothing to go on with


def _ended(root: Root, key: RefKey) -> tuple[Path, int, list[IngestFile]] | None:
    """An ended ingest of this ref, locked for us, and its plan."""
    for path in ingest_directories(root):
        plan = read_plan(path) if _is_of(path, key) else None
        if plan is not None and plan[0] == key:
            lock_fd = try_own(path)
            if lock_fd is not None:
                return path, lock_fd, plan[1]
    return None


def _journal(path: Path) -> Journal:
    try:
        return Journal(path)
    except FileNotFoundError:
        return Journal.create(path)


def _directories_of(paths: set[str]) -> set[str]:
    found = set()
    for path in paths:
        while "/" in path:
            path = path.rpartition("/")[0]
            found.add(path)
    return found


def _prune(tree: Path, kept: dict[str, int]) -> set[str]:
    """Remove all but the files of these paths and (at most) sizes, and directories that are empty then; what is left."""
    left = set()

    def unread(error: OSError) -> None:
        raise error  # what it holds would become a part of a snapshot that doesn't have it

    for parent, directories, files in os.walk(tree, topdown=False, onerror=unread):
        durable.chmod(parent, 0o755)  # A publish that was interrupted may have sealed it.
        for name in files:
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, tree)
            with contextlib.suppress(FileNotFoundError):  # Who has the claim on a file may take it at any moment.
                if kept.get(relative, -1) >= os.lstat(path).st_size:  # Less: killed between two steps of giving its room back.
                    left.add(relative)
                else:
                    durable.unlink(path)
        for name in directories:
            if not os.listdir(os.path.join(parent, name)):
                durable.rmdir(os.path.join(parent, name))
    return left
