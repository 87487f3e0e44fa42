"""Putting right what a disk damaged, from what else the store holds: manifests, refs, trees, and chunks of damaged blobs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from modelcache.abc.snapshot import Ref, RefFile
from modelcache.chunks import CHUNK_BYTES, chunk_count, chunk_range
from modelcache.digest import Digest
from modelcache.errors import DamagedRecord, ModelCacheError, NotCached
from modelcache.manifest import Manifest, ManifestFile
from modelcache.patience import Cancellation
from modelcache.store import durable, records
from modelcache.store.blobs import EMPTY, Blobs, readable_table
from modelcache.store.direct import disk_reader
from modelcache.store.keys import decode_key
from modelcache.store.layout import FIXED_MTIME_S, Layout
from modelcache.store.parts import Parts
from modelcache.store.refs import decode_files, decode_head
from modelcache.store.snapshots import DIRECTORY_MODE, MOVABLE_MODE

UNKNOWN_REVISION = "unknown"
"""Of a ref whose own one was lost: any answer of the origin is another, and files a ref anew."""


class Mending:
    """Rebuilds from the store alone; asks no origin. What it makes proves itself: a manifest by its digest, a tree by its inodes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._layout = parts.root.layout

    # -- records --------------------------------------------------------------------------------------------------

    def manifest(self, digest: Digest) -> Manifest | None:
        """The manifest of a published tree, from a ref or from the blobs whose inodes the tree shows; None if neither is it."""
        for head in self._parts.refs.of_manifest(digest):
            ref = self._parts.refs.get(head.key)
            if ref is not None and (found := _manifest_of(ref.files, head.key.compartment)).digest == digest:
                return found
        return self._manifest_of_tree(digest)

    def _manifest_of_tree(self, digest: Digest) -> Manifest | None:
        compartments = self._parts.compartments()
        contents = {found.st_ino: (name, item.name) for item in compartments for _, name, found in item.blobs.every()}
        shown: set[str] = set()
        top = self._layout.snapshot(digest)
        files = []
        for parent, _, names in os.walk(top):
            for name in names:
                path = Path(parent, name)
                found = os.lstat(path)
                content, compartment = (EMPTY, None) if found.st_size == 0 else contents.get(found.st_ino, (None, None))
                if content is None or not stat.S_ISREG(found.st_mode):
                    return None
                shown |= set() if compartment is None else {compartment}
                files.append(ManifestFile(str(path.relative_to(top)), found.st_size, content))
        try:
            tried = [Manifest.of(files, compartment) for compartment in shown or {item.name for item in self._parts.compartments()}]
        except ModelCacheError:
            return None
        return next((rebuilt for rebuilt in tried if rebuilt.digest == digest), None)

    def ref(self, path: Path) -> Ref | None:
        """The ref of a damaged file, as far as what is left of it proves itself; None if nothing can be said.

        With a sound head the files come from the snapshot, and say nothing of the origin. With a damaged one, its URI and origin
        count if they are what the file is named by, and its files if they have the digest that it states.
        """
        try:
            line, newline, second = records.read(path).partition(b"\n")
        except (FileNotFoundError, DamagedRecord):
            return None
        try:
            head, _ = decode_head(line + newline, str(path))
        except DamagedRecord:
            return self._ref_of_files(path, line, second)
        try:
            manifest = self._parts.snapshots.manifest(head.manifest)
        except (NotCached, DamagedRecord):
            return None
        if self._layout.ref(head.key) != path:
            return None
        files = tuple(RefFile(item.path, item.size_bytes, "", item.sha256) for item in manifest.files)
        return Ref(head.key, head.revision, head.immutable, head.manifest, files, head.created_at_s, head.checked_at_s)

    def _ref_of_files(self, path: Path, line: bytes, second: bytes) -> Ref | None:
        try:
            record: Any = json.loads(line)
            key = decode_key(record)
            if self._layout.ref(key) != path or hashlib.sha256(second).hexdigest() != record["files_sha256"]:
                return None
            files = decode_files(second, str(path))
        except (DamagedRecord, ValueError, KeyError, TypeError, RecursionError):
            return None
        return Ref(key, UNKNOWN_REVISION, False, _manifest_of(files, key.compartment).digest, files, self._parts.root.clock(), 0.0)

    # -- chunks ---------------------------------------------------------------------------------------------------

    @staticmethod
    def salvage(digest: Digest, cancel: Cancellation, blobs: Blobs) -> Iterator[tuple[int, memoryview]]:
        """`Upkeep.salvage`."""
        table = readable_table(blobs, digest)
        if table is None:
            return
        wanted = set(range(chunk_count(table.size_bytes)))
        buffer_bytes = max(CHUNK_BYTES, chunk_range(0, table.size_bytes).size_bytes)
        for path in blobs.quarantined_inodes(digest):
            with contextlib.suppress(FileNotFoundError), disk_reader(path, buffer_bytes) as reader:
                for index in sorted(wanted):
                    cancel.check()
                    span = chunk_range(index, table.size_bytes)
                    view = reader.span(span.start, span.size_bytes)
                    if view is not None and xxhash.xxh3_128_digest(view) == table.marks[index]:
                        yield index, view
                        wanted.discard(index)

    # -- trees ----------------------------------------------------------------------------------------------------

    def tree(self, digest: Digest) -> tuple[str, ...]:
        """`Upkeep.mend`. Takes the exclusive store lock."""
        with self._parts.root.lock.exclusive():
            if self._parts.snapshots.find(digest) is None:
                raise NotCached(f"there is no snapshot `{digest}`", address=self._parts.root.address)
            manifest = self._parts.snapshots.manifest(digest)
            top, blobs = self._layout.snapshot(digest), self._parts.compartment(manifest.compartment).blobs
            loose: set[Path] = set()
            try:
                changed = self._remove_strangers(top, manifest, loose)
                changed += [item.path for item in manifest.files if self._put_right(blobs, top, item, loose)]
            finally:
                for directory in sorted(loose, reverse=True):
                    durable.chmod(directory, DIRECTORY_MODE)
                    durable.fsync_directory(directory)
        self._parts.trash.empty()
        return tuple(changed)

    def _remove_strangers(self, top: Path, manifest: Manifest, loose: set[Path]) -> list[str]:
        """What the manifest does not name, and what stands where it names a directory."""
        files = {item.path for item in manifest.files}
        directories = {str(parent) for path in files for parent in Path(path).parents}
        removed = []
        for place, below, names in os.walk(top):
            links = [name for name in below if Path(place, name).is_symlink()]
            for name in [*names, *links]:
                relative = os.path.relpath(os.path.join(place, name), top)
                if relative not in files:
                    _loosen(Path(place), loose)
                    self._parts.trash.take(top / relative)
                    removed.append(relative)
            for name in list(below):
                relative = os.path.relpath(os.path.join(place, name), top)
                if name not in links and relative not in directories:
                    below.remove(name)
                    _loosen(Path(place), loose)
                    durable.chmod(top / relative, MOVABLE_MODE)
                    self._parts.trash.take(top / relative)
                    removed.append(relative)
        return removed

    def _put_right(self, blobs: Blobs, top: Path, item: ManifestFile, loose: set[Path]) -> bool:
        """Whether a file was not what it should be, and now is."""
        path = top / item.path
        if _is_right(blobs, path, item):
            return False
        temporary = Layout.temporary(self._layout.root)
        if item.sha256 == EMPTY:
            durable.write_new(temporary, b"", sync=True, mode=0o444)
            durable.utime(temporary, FIXED_MTIME_S)
        elif not blobs.link(item.sha256, item.size_bytes, temporary, Layout.temporary(self._layout.root)):
            return False
        for parent in reversed([top / parent for parent in Path(item.path).parents]):
            if not parent.is_dir():
                durable.mkdir(parent, MOVABLE_MODE)
            _loosen(parent, loose)
        if path.is_dir():
            durable.chmod(path, MOVABLE_MODE)
            self._parts.trash.take(path)
        durable.rename(temporary, path)
        return True


def _is_right(blobs: Blobs, path: Path, item: ManifestFile) -> bool:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if item.sha256 == EMPTY:
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    return any(blob.st_ino == found.st_ino for _, blob in blobs.inodes(item.sha256))


def _manifest_of(files: tuple[RefFile, ...], compartment: str) -> Manifest:
    return Manifest.of((ManifestFile(item.path, item.size_bytes, item.sha256) for item in files), compartment)


def _loosen(directory: Path, loose: set[Path]) -> None:
    """Let its owner change a directory of a snapshot, for as long as the exclusive store lock is held."""
    if directory not in loose:
        durable.chmod(directory, MOVABLE_MODE)
        loose.add(directory)
