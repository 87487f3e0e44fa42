"""Snapshots: the directory of a manifest, all hard links to blobs. It appears by one rename and goes by one rename."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelcache.abc.snapshot import Snapshot
from modelcache.digest import Digest, sha256
from modelcache.errors import DamagedRecord, NotCached
from modelcache.manifest import Manifest
from modelcache.paths import checked_compartment
from modelcache.store import durable, records
from modelcache.store.blobs import EMPTY
from modelcache.store.faults import unless_unwritable
from modelcache.store.layout import is_hex
from modelcache.store.root import Root
from modelcache.store.trash import Trash

DIRECTORY_MODE = 0o555
"""Of a snapshot's directories: a program that writes caches beside its model is refused, even one of the store's owner."""
MOVABLE_MODE = 0o755
"""Linux lets only who may write into a directory move it to another parent."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a manifest says, without its paths: hex digits of every content → (names in the tree, size)."""

    digest: Digest
    names: dict[str, int]
    sizes: dict[str, int]
    file_count: int
    compartment: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes[digits] * count for digits, count in self.names.items())

    @property
    def links(self) -> dict[str, int]:
        """`names` of what is linked: all but empty files."""
        return {digits: count for digits, count in self.names.items() if digits != EMPTY.hex}


class Snapshots:
    """The published snapshots and their manifests."""

    def __init__(self, root: Root, trash: Trash) -> None:
        self._root = root
        self._layout = root.layout
        self._trash = trash

    # -- looking --------------------------------------------------------------------------------------------------

    def find(self, digest: Digest) -> Snapshot | None:
        """The snapshot if it is published; no use is counted."""
        path = self._layout.snapshot(digest)
        if path.is_dir() and self._layout.manifest(digest).is_file():
            return Snapshot(digest, path)
        return None

    def traces(self, digest: Digest) -> bool:
        """Whether anything of it is here, whole or not."""
        return self._layout.snapshot(digest).is_dir() or self._layout.manifest(digest).is_file()

    def use(self, digest: Digest) -> Snapshot | None:
        """The snapshot if it is published; its last use is now."""
        found = self.find(digest)
        if found is not None and not self._root.read_only:
            try:
                with unless_unwritable():
                    durable.utime(self._layout.manifest(digest), self._root.clock())
            except FileNotFoundError:
                return None
        return found

    def last_used_at_s(self, digest: Digest) -> float:
        """Unix time; 0 if it is gone."""
        try:
            return os.stat(self._layout.manifest(digest)).st_mtime
        except FileNotFoundError:
            return 0.0

    def every(self) -> list[Digest]:
        """All published snapshots."""
        manifests = set(records.names(self._layout.manifests))
        return [sha256(name) for name in sorted(os.listdir(self._layout.snapshots)) if is_hex(name, 64) and name in manifests]

    def manifest(self, digest: Digest) -> Manifest:
        """Raises NotCached, or DamagedRecord."""
        path = self._layout.manifest(digest)
        try:
            return Manifest.decode(records.read(path), expect=digest, address=str(path))
        except FileNotFoundError:
            raise NotCached(f"there is no snapshot `{digest}`", address=str(self._layout.root)) from None

    def summary(self, digest: Digest) -> Summary:
        """What the manifest says, or, if it is damaged, what the tree shows. Not compared with its digest: `verify` does that."""
        try:
            return _summary(digest, records.read(self._layout.manifest(digest)))
        except (DamagedRecord, FileNotFoundError):
            return self._walked(digest)

    # -- changing -------------------------------------------------------------------------------------------------

    def publish(self, manifest: Manifest, tree: Path) -> Snapshot:
        """Make a durable tree the snapshot of `manifest`. Under the shared store lock.

        If there is one already it stays, and so does `tree` where it is.
        """
        digest = manifest.digest
        target = self._layout.snapshot(digest)
        records.replace(self._layout.manifest(digest), manifest.encode(), mtime_s=self._root.clock())
        try:
            durable.rename(tree, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        durable.chmod(target, DIRECTORY_MODE)
        durable.fsync_directory(self._layout.snapshots)
        return Snapshot(digest, target)

    def withdraw(self, digests: Iterable[Digest]) -> None:
        """Take snapshots out of sight: from here on nobody finds them. Under the exclusive store lock."""
        todo = list(digests)
        for digest in todo:
            path = self._layout.snapshot(digest)
            if path.is_dir():
                durable.chmod(path, MOVABLE_MODE)
                try:
                    self._trash.take(path)
                except OSError:
                    durable.chmod(path, DIRECTORY_MODE)
                    raise
        if todo:
            durable.fsync_directory(self._layout.snapshots)
        if sum(records.remove(self._layout.manifest(digest)) for digest in todo):
            durable.fsync_directory(self._layout.manifests)

    def rewrite(self, manifest: Manifest) -> bool:
        """Write the damaged manifest of a published snapshot anew; False if it is gone. Under the exclusive store lock."""
        digest = manifest.digest
        if self.find(digest) is None:
            return False
        records.replace(self._layout.manifest(digest), manifest.encode(), mtime_s=self.last_used_at_s(digest))
        return True

    def unsealed(self) -> list[Path]:
        """Directories of snapshots that may be written into: somebody is at it under the store lock, or a crash left them so."""
        found = []
        for digest in self.every():
            for parent, _, _ in os.walk(self._layout.snapshot(digest)):
                if _is_unsealed(parent):
                    found.append(Path(parent))
        return found

    def seal(self, directories: Iterable[Path]) -> None:
        """Take back the right to write into these. Under the exclusive store lock: nobody is at it."""
        for path in directories:
            if _is_unsealed(path):
                durable.chmod(path, DIRECTORY_MODE)

    def incomplete(self) -> list[Digest]:
        """Snapshots without a manifest and manifests without a snapshot: what a crash between two steps leaves."""
        manifests = {name for name in records.names(self._layout.manifests) if is_hex(name, 64)}
        trees = {name for name in os.listdir(self._layout.snapshots) if is_hex(name, 64)}
        return [sha256(name) for name in sorted(manifests ^ trees)]

    def _walked(self, digest: Digest) -> Summary:
        sizes: dict[str, int] = {}
        names: Counter[str] = Counter()
        for parent, _, files in os.walk(self._layout.snapshot(digest)):
            for name in files:
                found = os.lstat(os.path.join(parent, name))
                names[f"inode {found.st_ino}"] += 1
                sizes[f"inode {found.st_ino}"] = found.st_size
        return Summary(digest, dict(names), sizes, sum(names.values()))


def _is_unsealed(directory: str | Path) -> bool:
    try:
        return stat.S_IMODE(os.stat(directory).st_mode) != DIRECTORY_MODE
    except FileNotFoundError:
        return False


def _summary(digest: Digest, data: bytes) -> Summary:
    names: dict[str, int] = {}
    sizes: dict[str, int] = {}
    try:
        record = json.loads(data)
        files, compartment = record["files"], record.get("compartment", "")
        if compartment:
            checked_compartment(compartment)
        for file in files:
            digits = file["sha256"]
            if not is_hex(digits, 64):
                raise ValueError(f"`{digits}` is no sha256")
            names[digits] = names.get(digits, 0) + 1
            sizes[digits] = int(file["size_bytes"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRecord(f"not a manifest ({error})") from error
    return Summary(digest, names, sizes, len(files), compartment)
